"""The learning rate: where it starts and how it moves."""

import math

from tinkertools.config import FALLBACK_LEARNING_RATE, MethodName, Schedule

# Exponents of the vendor's cookbook (`hyperparam_utils.get_lr`): lr = 5e-5 · 10 · (2000 / hidden_size) ** exponent.
_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}

# The published formula is for SFT. What other methods take of it, as one part in so many: the ratio of the cookbook's
# recipes to the formula for the models that they train.
# - dpo: 1e-5 for Llama-3.2-1B (`recipes/preference/dpo/train.py`), where the formula says 4.9e-4.
# - reward: 3e-4 for Llama-3.2-3B (`recipes/preference/rlhf/rlhf_pipeline.py`), where it says 3.6e-4.
# - rl: 2e-5 for Qwen3-8B (`recipes/math_rl/README.md`), where it says 4.7e-4.
# - distill: 1e-4 for Qwen3-8B (`recipes/distillation/on_policy_distillation.py`).
# - selfplay: 3e-5 for Qwen3-4B (`recipes/multiplayer_rl/text_arena/train.py`), where it says 4.9e-4.
_PARTS: dict[MethodName, int] = {"sft": 1, "dpo": 50, "reward": 1, "rl": 20, "distill": 5, "selfplay": 20}


def auto_learning_rate(model_type: str, hidden_size: int) -> tuple[float, str]:
    """The peak learning rate for LoRA, and where it comes from in words.

    The formula is the one in the Tinker cookbook's `hyperparam_utils.get_lr`: 5e-5 · 10 · (2000 / hidden)^e, with e
    0.781 for Llama and 0.0775 for Qwen. Other families have no published value.

    Args:
        model_type: `model_type` of the model's configuration, such as `qwen3`.
        hidden_size: the width of its residual stream.
    """
    for family, exponent in _EXPONENTS.items():
        if model_type.startswith(family):
            rate = 5e-5 * 10 * (2000 / hidden_size) ** exponent
            return rate, f"published formula for {family.title()}, hidden size {hidden_size}"
    return no_formula(f"'{model_type}' models")


def no_formula(what: str) -> tuple[float, str]:
    """The peak learning rate where none is published, and why in words."""
    return FALLBACK_LEARNING_RATE, f"no published formula for {what}"


def of_method(rate: float, why: str, method: MethodName) -> tuple[float, str]:
    """The peak learning rate of a method, where SFT's is `rate`, and why in words."""
    parts = _PARTS[method]
    return (rate, why) if parts == 1 else (rate / parts, f"{why}; a {_ORDINALS[parts]} of it for --method {method}")


_ORDINALS = {5: "fifth", 20: "twentieth", 50: "fiftieth"}


def learning_rate_at(step: int, total_steps: int, peak: float, schedule: Schedule, warmup_steps: int) -> float:
    """The learning rate of optimizer step `step`, 1 to `total_steps`.

    Warm-up rises linearly and reaches `peak` at step `warmup_steps`; a run that is no longer than that only rises.
    After it, with p the share of the remaining steps already taken (0 at the first): linear is peak · (1 − p), cosine
    is peak · (1 + cos πp) / 2.
    """
    if step <= warmup_steps:
        return peak * (step / warmup_steps)  # exactly the peak at its end
    share = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * (1 - share)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * share)) / 2
    return peak
