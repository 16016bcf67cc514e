"""tinkertools: from conversations to a fine-tuned LoRA adapter, and proof of what changed."""

__version__ = "0.1.0"
