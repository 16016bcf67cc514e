"""Defaults that are no field's of `TrainConfig` alone: several commands have them, or one that trains nothing."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from tinkertools.config.words import Engine, Format, TrainOnWhat

# What `tt prepare` writes and `tt train` looks for when neither names a file.
TRAINING_DATA = Path("data/training_data.jsonl")
OUTPUT_DIR = Path("checkpoints")

ENGINE: Engine = "auto"

# The renderer that is chosen by the base model's name, and what of conversations is trained.
AUTO_RENDERER = "auto"
TRAIN_ON_WHAT: TrainOnWhat = "ALL_ASSISTANT_MESSAGES"

# LoRA as Tinker does it: the scale is LORA_ALPHA / rank whatever the rank.
LORA_ALPHA = 32

# The day that chat templates and renderers which write the current date are given, so that a run can be repeated.
TEMPLATE_DATE = datetime.date(2026, 1, 1)

# `--learning-rate auto` for a model family without a published formula.
FALLBACK_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class PrepareDefaults:
    """Defaults of `tt prepare`."""

    split: str = "train"
    format: Format = "auto"
    val_fraction: float = 0.0
    seed: int = 0
    errors_shown: int = 10
    preview: int = 0
    pairs_per_document: int = 5
    generator_at_once: int = 8


@dataclass(frozen=True)
class AnswerDefaults:
    """Defaults of `tt test` and `tt compare`."""

    max_tokens: int = 150
    temperature: float = 0.7
    seed: int = 0
    data_prompts: int = 0
    judge_at_once: int = 8
    test_output: Path = Path("lora_test_results.json")
    compare_output: Path = Path("comparison_results.json")
