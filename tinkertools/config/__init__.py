"""The one home of every default, and the configuration of a run.

That configuration is `TrainConfig`, in `training`: each field with its default, its place in a file and its help, made
of what is in `fields`; `contradictions` says what does not go together. Defaults of other commands, and of several, are
in `defaults`, what concerns servers in `servers`, the words that settings take in `words`.
"""

from tinkertools.config.contradictions import SettingError
from tinkertools.config.defaults import (
    AUTO_RENDERER,
    ENGINE,
    FALLBACK_LEARNING_RATE,
    LORA_ALPHA,
    OUTPUT_DIR,
    TEMPLATE_DATE,
    TRAIN_ON_WHAT,
    TRAINING_DATA,
    AnswerDefaults,
    PrepareDefaults,
)
from tinkertools.config.fields import MOST
from tinkertools.config.servers import (
    CONTACT_SECONDS,
    SERVER_VARIABLES,
    TIMEOUT_SECONDS,
    ServerSettings,
    without_password,
)
from tinkertools.config.training import CONFIG_VERSION, TrainConfig, setting
from tinkertools.config.words import (
    BATCH_OF,
    FOLLOWED_BY,
    JUDGED_OF,
    Engine,
    Format,
    Generate,
    IfExists,
    MethodName,
    Overlength,
    PolicyLoss,
    PreferenceLoss,
    PresetName,
    Schedule,
    TrackerName,
    TrainOnWhat,
)

__all__ = [
    "AUTO_RENDERER", "BATCH_OF", "CONFIG_VERSION", "CONTACT_SECONDS", "ENGINE", "FALLBACK_LEARNING_RATE", "FOLLOWED_BY",
    "JUDGED_OF", "LORA_ALPHA", "MOST", "OUTPUT_DIR", "SERVER_VARIABLES", "TEMPLATE_DATE", "TIMEOUT_SECONDS",
    "TRAINING_DATA", "TRAIN_ON_WHAT", "AnswerDefaults", "Engine", "Format", "Generate", "IfExists", "MethodName",
    "Overlength", "PolicyLoss", "PreferenceLoss", "PrepareDefaults", "PresetName", "Schedule", "ServerSettings",
    "SettingError", "TrackerName", "TrainConfig", "TrainOnWhat", "setting", "without_password",
]  # fmt: skip
