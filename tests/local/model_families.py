"""Tiny models of the families that the engine knows, and of some that it must refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "tie_word_embeddings": False,
    "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None,
}  # fmt: skip

# Grouped heads, a window, a cap on scores, sinks and experts: everything that attention knows of.
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8, "final_logit_softcapping": None},
    "GptOss": {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": None},
}

# Positions that are added to scores, recurrent layers, convolutions.
REFUSED: dict[str, dict[str, Any]] = {
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mamba": {},
    "Qwen3Next": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "Lfm2": {"block_multiple_of": 8, "layer_types": ["conv", "full_attention"]},
}


def make(family: str) -> Any:
    """A model of random weights, in float32."""
    import torch
    import transformers

    changes = FAMILIES | REFUSED
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**(SIZES | changes[family]))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    # Larger weights than at initialisation: logits that differ, so that a wrong one shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.eval()
    return model.requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def family_model() -> Callable[[str], Any]:
    """Makes a model of a family."""
    return make


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes a model of a family, with the starter's tokenizer, as a folder."""
    from transformers import AutoTokenizer

    from tinkertools.shipped import STARTER_MODEL

    made: dict[str, Path] = {}

    def folder(family: str) -> str:
        if family not in made:
            path = tmp_path_factory.mktemp("families") / family
            make(family).save_pretrained(path)
            AutoTokenizer.from_pretrained(STARTER_MODEL).save_pretrained(path)
            made[family] = path
        return str(made[family])

    return folder
