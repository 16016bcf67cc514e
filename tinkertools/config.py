"""The one home of every default and the configuration of a run."""

import dataclasses
import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args
from urllib.parse import urlsplit, urlunsplit

from tinkertools.errors import RunError, UsageError

Engine = Literal["auto", "tinker", "local"]
Schedule = Literal["linear", "cosine", "constant"]
Overlength = Literal["error", "drop", "truncate"]
TrainOnWhat = Literal[
    "ALL_ASSISTANT_MESSAGES", "LAST_ASSISTANT_MESSAGE", "LAST_ASSISTANT_TURN", "ALL_MESSAGES", "ALL_TOKENS",
    "ALL_USER_AND_SYSTEM_MESSAGES", "CUSTOMIZED",
]  # fmt: skip
Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "sections"]

# Of `config.json`: 2 since masks end with the end-of-turn token and data are fingerprinted with their tools.
CONFIG_VERSION = 2

# What `tt prepare` writes and `tt train` looks for when neither names a file.
TRAINING_DATA = Path("data/training_data.jsonl")
OUTPUT_DIR = Path("checkpoints")

ENGINE: Engine = "auto"

# What the environment may say of servers and of the Hub.
SERVER_VARIABLES = (
    "TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_API_BASE", "TINKER_PROJECT_ID", "TINKER_TAGS", "TINKER_TELEMETRY",
    "TINKER_CREDENTIAL_CMD", "HF_TOKEN", "HF_ENDPOINT",
)  # fmt: skip

# Seconds that a request to a server may take, and the first contact with it.
TIMEOUT_SECONDS = 600.0
CONTACT_SECONDS = 60.0
# How long a server keeps a checkpoint that is not the final one: a week.
TTL_SECONDS = 7 * 24 * 3600

# The renderer that is chosen by the base model's name.
AUTO_RENDERER = "auto"

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


@dataclass(frozen=True)
class AnswerDefaults:
    """Defaults of `tt test` and `tt compare`."""

    max_tokens: int = 150
    temperature: float = 0.7
    seed: int = 0
    test_output: Path = Path("lora_test_results.json")
    compare_output: Path = Path("comparison_results.json")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes, resolved: `config.json` in the run directory is this and no secret.

    `learning_rate` "auto" means the published formula for the model's family; `max_steps` 0 means `epochs` whole
    epochs; `max_length` 0 means the model's own limit; `save_every` 0 means only the final weights; `keep_last` 0
    means every checkpoint. `base_url`, `ttl_seconds` (0 keeps checkpoints for good) and `download` (of adapters) are
    for runs on a server.
    """

    base_model: str = ""
    data: str = ""
    engine: Engine = ENGINE
    batch: int = 64
    max_steps: int = 0
    epochs: int = 1
    rank: int = 16
    learning_rate: float | Literal["auto"] = "auto"
    lr_schedule: Schedule = "linear"
    warmup_steps: int = 0
    save_every: int = 50
    keep_last: int = 0
    max_length: int = 0
    overlength: Overlength = "error"
    train_on_what: TrainOnWhat = "ALL_ASSISTANT_MESSAGES"
    renderer: str = AUTO_RENDERER
    seed: int = 0
    base_url: str | None = None
    ttl_seconds: int = TTL_SECONDS
    download: bool = True
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    def __post_init__(self) -> None:
        positive = {"batch": self.batch, "epochs": self.epochs, "rank": self.rank}
        for name, value in positive.items():
            if value < 1:
                raise UsageError(f"--{name} is {value}, but must be at least 1", hint=f"for example --{name} 1")
        not_negative = {
            "max-steps": self.max_steps,
            "warmup-steps": self.warmup_steps,
            "save-every": self.save_every,
            "keep-last": self.keep_last,
            "max-length": self.max_length,
            "ttl-seconds": self.ttl_seconds,
        }
        for name, value in not_negative.items():
            if value < 0:
                raise UsageError(f"--{name} is {value}, but must be 0 or more", hint=f"for example --{name} 0")
        if self.learning_rate != "auto" and not 0 < self.learning_rate < float("inf"):
            raise UsageError(
                f"--learning-rate is {self.learning_rate}, but must be a number above 0, or auto",
                hint="for example --learning-rate 1e-4",
            )
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise UsageError("nothing is left to train", hint="leave one of attention, MLP and unembedding switched on")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], where: Path) -> Self:
        """The configuration that `to_json` wrote.

        Raises:
            RunError: a key is unknown, as in a file that a newer version wrote.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise RunError(
                f"{where}: unknown settings: {', '.join(unknown)}",
                hint="the run was written by another version of tinkertools; install that version to go on with it",
            )
        return cls(**values)


def parse_train_on_what(text: str) -> TrainOnWhat:
    """One of `TrainOnWhat` in any letter case. ALL_TEXT is another name for ALL_TOKENS.

    Raises:
        UsageError: it is none.
    """
    name = text.upper().replace("-", "_")
    name = "ALL_TOKENS" if name == "ALL_TEXT" else name
    for known in get_args(TrainOnWhat):
        if name == known:
            return cast(TrainOnWhat, known)
    raise UsageError(f"--train-on-what is '{text}'", hint=f"one of {', '.join(get_args(TrainOnWhat))}")


def parse_learning_rate(text: str) -> float | Literal["auto"]:
    """`auto` or a number.

    Raises:
        UsageError: it is neither.
    """
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"--learning-rate is '{text}', but must be a number or auto", hint="for example --learning-rate 1e-4"
        ) from None


def without_password(url: str) -> str:
    """An address to show or to keep: without the name and password that may stand in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@dataclass(frozen=True)
class ServerSettings:
    """What the environment says of a Tinker server; the key's value is never kept."""

    base_url: str | None
    has_key: bool

    @classmethod
    def from_environment(cls, base_url: str | None = None) -> Self:
        """`base_url` (an option) wins over TINKER_BASE_URL, which wins over TINKER_API_BASE.

        Raises:
            UsageError: it is no address.
        """
        url = base_url or os.environ.get("TINKER_BASE_URL") or os.environ.get("TINKER_API_BASE")
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise UsageError(f"'{url}' is no address of a server", hint="for example --base-url http://localhost:8000")
        return cls(base_url=url or None, has_key=bool(os.environ.get("TINKER_API_KEY")))
