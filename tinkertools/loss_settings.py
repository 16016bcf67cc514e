"""What may be set of Tinker's losses, on every engine."""

from collections.abc import Mapping

# By the name of the loss, the keys of its `loss_fn_config` and their defaults, which are those of tutorial 202 at
# https://tinker-docs.thinkingmachines.ai; None where a value must be given: no default of beta is published.
LOSS_SETTINGS: Mapping[str, Mapping[str, float | None]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": None},
}
