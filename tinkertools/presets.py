"""`--preset`: rank, learning rate, batch and group size that work as a start, by method."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tinkertools.config import MethodName, PresetName, TrainConfig
from tinkertools.settings.given import Given

# How the place of what a preset has set begins.
_PLACE = "--preset "

PRESETS: dict[MethodName, dict[PresetName, dict[str, Any]]] = {
    "sft": {
        "quick": {"rank": 8, "learning_rate": 1e-4, "batch": 8},
        "standard": {"rank": 32, "learning_rate": 1e-4, "batch": 64},
        "quality": {"rank": 64, "learning_rate": 1e-4, "batch": 128},
    },
    "dpo": {
        "quick": {"rank": 8, "learning_rate": 1e-5, "batch": 8},
        "standard": {"rank": 32, "learning_rate": 1e-5, "batch": 64},
        "quality": {"rank": 64, "learning_rate": 5e-6, "batch": 256},
    },
    "reward": {
        "quick": {"rank": 8, "learning_rate": 1e-4, "batch": 8},
        "standard": {"rank": 32, "learning_rate": 1e-4, "batch": 64},
        "quality": {"rank": 64, "learning_rate": 1e-4, "batch": 256},
    },
    "rl": {
        "quick": {"rank": 8, "learning_rate": 1e-5, "batch": 8, "group_size": 4},
        "standard": {"rank": 32, "learning_rate": 1e-5, "batch": 64, "group_size": 8},
        "quality": {"rank": 64, "learning_rate": 1e-5, "batch": 128, "group_size": 16},
    },
    "distill": {
        "quick": {"rank": 8, "learning_rate": 1e-4, "batch": 8, "group_size": 4},
        "standard": {"rank": 32, "learning_rate": 1e-4, "batch": 64, "group_size": 4},
        "quality": {"rank": 64, "learning_rate": 1e-4, "batch": 128, "group_size": 4},
    },
    "selfplay": {
        "quick": {"rank": 8, "learning_rate": 3e-5, "batch": 8},
        "standard": {"rank": 32, "learning_rate": 3e-5, "batch": 64},
        "quality": {"rank": 64, "learning_rate": 3e-5, "batch": 512},
    },
}
"""Where the numbers are from; paths are those of thinking-machines-lab/tinker-cookbook, `tinker_cookbook/recipes/`.

Ranks: 8 quick, 32 standard, 64 quality are the starting points of the guides to the Tinker API, for every method.

- sft: 1e-4 and a batch of 8 from the same guides; 64 is the batch of their script's full run; 1e-4, rank 32 and a batch
  of 128 are `sl_loop.py`'s.
- dpo: 1e-5 and a batch of 256 are `preference/dpo/train.py`'s; the cookbook's `docs/preferences/dpo-guide.mdx` names
  1e-5 to 1e-6 as usual, and 5e-6 is the guides' rate for fine changes.
- reward: learnt from labels as SFT is, at its rate; the batch of 256 is `preference/rlhf/rlhf_pipeline.py`'s, which
  takes 3e-4 at rank 64.
- rl: 1e-5 is the guides' rate, and that of `math_rl/train.py` and `rlhf_pipeline.py`, which also have groups of 4; 64
  prompts a step are `math_rl/README.md`'s; 128 prompts and groups of 16 are `rl_loop.py`'s.
- distill: 1e-4 and groups of 4 are `distillation/on_policy_distillation.py`'s, 8 and 64 prompts a step those of two
  commands in `distillation/README.md`, and 128 is the batch of `prompt_distillation/train.py`, at 1e-4 too.
- selfplay: 3e-5 and a batch of 512 are `multiplayer_rl/text_arena/train.py`'s.

What is not named is ours: quick takes SFT's batch of 8 and standard its 64, so that small data make enough steps, and
groups of 8 lie between those of quick and quality.
"""


def with_preset(given: Given) -> tuple[Given, str]:
    """The settings with what their preset says where nothing else does, and in words what it set; "" where nothing.

    The rank is left alone where training starts from weights, which have one.
    """
    name: PresetName | None = given.values.get("preset")
    if name is None:
        return given, ""
    method = given.values.get("method") or TrainConfig.model_fields["method"].default
    found = {
        key: value
        for key, value in PRESETS[method][name].items()
        if key != "rank" or not given.values.get("load_checkpoint_path")
    }
    there = given.values.keys() | given.grid.keys()
    chosen = {key: value for key, value in found.items() if key not in there}
    if not chosen:
        return given, ""
    words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in chosen.items())
    if stronger := [given.places[key] for key in found if key in there]:
        words += f"; {' and '.join(stronger)} given win{'s' * (len(stronger) == 1)}"
    places = dict.fromkeys(chosen, f"{_PLACE}{name}")
    return (
        dataclasses.replace(given, values=given.values | chosen, places=given.places | places),
        f"preset {name}: {words}",
    )


def without_preset(values: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """The settings that were given themselves, for a run that goes on as it was started."""
    return {key: value for key, value in values.items() if not places.get(key, "").startswith(_PLACE)}
