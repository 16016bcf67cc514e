"""Settings that do not go together."""

from typing import TYPE_CHECKING

from tinkertools.config.fields import setting_of
from tinkertools.errors import UsageError

if TYPE_CHECKING:
    from tinkertools.config.training import TrainConfig


class SettingError(UsageError):
    """A setting that does not go with the others; `field` is its name in `TrainConfig`."""

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


def check_together(config: "TrainConfig") -> None:
    """Whether the settings of a run go together.

    Raises:
        SettingError: they contradict each other, or one is missing that others need.
    """
    if not (config.train_attn or config.train_mlp or config.train_unembed):
        raise SettingError(
            "train_unembed", "nothing is left to train: --train-attn, --train-mlp and --train-unembed are false",
            hint="leave one of them true",
        )  # fmt: skip
    if config.eval_data and config.val_fraction:
        raise SettingError(
            "val_fraction", "--eval-data and --val-fraction are two ways to hold data out",
            hint="leave one of them out",
        )  # fmt: skip
    if config.early_stop and not config.evaluates:
        raise SettingError(
            "early_stop", "--early-stop has nothing to go by", hint="add --eval-data FILE or --val-fraction 0.1"
        )
    if config.log_path is not None and config.run_name is not None:
        raise SettingError(
            "run_name", "--log-path is the whole path of the run, and --run-name its last part",
            hint="leave one of them out",
        )  # fmt: skip
    _check_the_method(config)
    if config.upload and not config.hf_repo_id:
        raise SettingError("upload", "--upload needs the repository", hint="add --hf-repo-id USER/NAME")


def _check_the_method(config: "TrainConfig") -> None:
    """Whether they go with the method.

    Raises:
        SettingError: one is of other methods, or one is missing.
    """
    for name, info in type(config).model_fields.items():
        methods = setting_of(info).methods
        if methods and config.method not in methods and getattr(config, name) != info.default:
            flag = setting_of(info).flag.partition("/")[0] or f"--{name.replace('_', '-')}"
            raise SettingError(
                name, f"{flag} is of --method {' and '.join(methods)}, and this is {config.method}",
                hint="leave it out",
            )  # fmt: skip
    if config.method == "rl" and not config.reward:
        raise SettingError(
            "reward", "--method rl needs --reward: what an answer is worth",
            hint="for example --reward math, or --reward rewards.py:FUNCTION",
        )  # fmt: skip
    if config.method == "rl" and config.group_size < 2:
        raise SettingError(
            "group_size", "--group-size 1: an answer is held against the others of its group", hint="--group-size 8"
        )
    if config.preference_loss == "ipo" and config.label_smoothing:
        raise SettingError(
            "label_smoothing", "--label-smoothing is of --preference-loss sigmoid, and this is ipo",
            hint="leave it out",
        )  # fmt: skip
    if config.method == "selfplay" and (config.data or config.eval_data or config.val_fraction):
        raise SettingError(
            "data", "--method selfplay makes its own data, by playing", hint="leave --data and --eval-data out"
        )
    if config.method == "selfplay" and not config.max_steps:
        raise SettingError(
            "max_steps", "--method selfplay has no epochs: say how long it goes on", hint="--max-steps 100"
        )
