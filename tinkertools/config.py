"""The one home of every default and the configuration of a run."""

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tinkertools.errors import RunError, UsageError

Engine = Literal["auto", "tinker", "local"]
MethodName = Literal["sft", "dpo", "reward", "rl", "distill", "selfplay"]
PresetName = Literal["quick", "standard", "quality"]
PolicyLoss = Literal["importance_sampling", "ppo", "cispo"]
PreferenceLoss = Literal["sigmoid", "ipo"]
Schedule = Literal["linear", "cosine", "constant"]
Overlength = Literal["error", "drop", "truncate"]
TrainOnWhat = Literal[
    "ALL_ASSISTANT_MESSAGES", "LAST_ASSISTANT_MESSAGE", "LAST_ASSISTANT_TURN", "ALL_MESSAGES", "ALL_TOKENS",
    "ALL_USER_AND_SYSTEM_MESSAGES", "CUSTOMIZED",
]  # fmt: skip
IfExists = Literal["ask", "overwrite", "fail", "resume"]
TrackerName = Literal["wandb", "trackio", "tensorboard", "mlflow"]
Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "preference", "sections"]
# What `tt prepare` can have a model write.
Generate = Literal["qa"]

# What a step of training is made of: `batch` says how many.
BATCH_OF: dict[MethodName, str] = {
    "sft": "conversations", "dpo": "pairs", "reward": "pairs", "rl": "prompts", "distill": "prompts",
    "selfplay": "games",
}  # fmt: skip
# What the evaluations of methods are judged by.
JUDGED_OF: dict[MethodName, str] = {
    "sft": "nll", "distill": "nll", "dpo": "loss", "reward": "loss", "rl": "reward", "selfplay": "win_rate",
}  # fmt: skip
# The figure of its own, beside the loss, by which the steps of a method are followed.
FOLLOWED_BY: dict[MethodName, str] = {"dpo": "accuracy", "reward": "accuracy", "rl": "reward", "selfplay": "win_rate"}

# Of `config.json`: 2 since masks end with the end-of-turn token and data are fingerprinted with their tools. A setting
# that it does not hold has its default.
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


# What may become of a setting when a run goes on: `fixed` ones decide what is computed; `free` ones do not; `once` ones
# do not either, and are of one command only; `longer` ones may make the run longer; `moved` ones name something that
# may lie elsewhere, known by its fingerprint.
OnResume = Literal["fixed", "free", "once", "longer", "moved"]


@dataclass(frozen=True)
class Setting:
    """What belongs to a field of `TrainConfig`, beside its type and its default.

    Attributes:
        key: its place in the YAML file, `section.key`, or `key` alone.
        help: what it is, for `--help` and for readers of the file.
        on_resume: whether it may change when a run goes on.
        sweep: whether a list of values makes a grid of runs.
        flag: the switch that sets it, where it is one; a `--no-…` alone switches it off.
        expects: what its values are, in words, where type and bounds do not say it.
        methods: those it counts for; empty where that is all of them.
    """

    key: str
    help: str
    on_resume: OnResume = "fixed"
    sweep: bool = False
    flag: str = ""
    expects: str = ""
    methods: tuple[MethodName, ...] = ()


# Larger whole numbers than this are no numbers to torch, or to a server.
MOST = 2**63 - 1

_Positive = Field(ge=1, le=MOST)
_Count = Field(ge=0, le=MOST)
# Paths and tuples are written as text and as lists.
_Lenient = Field(strict=False)


def _at_home(value: object) -> object:
    """A shell writes ~ out; in a file nobody else does."""
    if not isinstance(value, str | Path) or not str(value).startswith("~/"):
        return value
    return type(value)(Path.home() / str(value)[2:].lstrip("/"))


def _or_nothing(value: object) -> object:
    """An empty text is nothing."""
    return None if value == "" else _at_home(value)


def _in_any_case(value: object) -> object:
    """ALL_TEXT is another name for ALL_TOKENS."""
    if not isinstance(value, str):
        return value
    name = value.upper().replace("-", "_")
    return "ALL_TOKENS" if name == "ALL_TEXT" else name


def _with_commas(value: object) -> object:
    return tuple(filter(None, (name.strip() for name in value.split(",")))) if isinstance(value, str) else value


# The same in the JSON Schema of the file, where nothing else says that case and commas are free.
_ANY_CASE = "|".join(
    "".join("[_-]" if c == "_" else f"[{c}{c.lower()}]" for c in name) for name in (*get_args(TrainOnWhat), "ALL_TEXT")
)
_ONE_NAME = "|".join(get_args(TrackerName))
_InAnyCase = TrainOnWhat | Annotated[str, Field(pattern=f"^({_ANY_CASE})$")]
_Listed = Annotated[str, Field(pattern=f"^[, ]*(({_ONE_NAME})( *,[, ]*|$))*$")] | list[TrackerName]


class TrainConfig(BaseModel):
    """Everything about a run, and the one home of its defaults: `tt train --help`, the YAML file, its schema and
    `config.json` are made from these fields.

    What "" or None stands for is chosen when the run is planned. `learning_rate` "auto" means the published formula for
    the model's family; `max_steps` 0 means `epochs` whole epochs; `max_length` 0 means the model's own limit;
    `num_examples` 0 means all; `save_every` 0 means only the final weights; `keep_last` 0 means every checkpoint;
    `ttl_seconds` 0 keeps checkpoints for good; `early_stop` and `sample_every` 0 mean never.

    Raises:
        pydantic.ValidationError: a value is of the wrong kind or out of bounds.
        SettingError: settings contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)

    method: Annotated[
        MethodName,
        Setting(
            "method",
            "sft: conversations; dpo and reward: preferences; rl: rewards; distill: a teacher; selfplay: a game.",
        ),
    ] = "sft"
    preset: Annotated[
        PresetName | None,
        Setting(
            "preset", "Rank, learning rate, batch and group size that work as a start; what is given beside it wins."
        ),
    ] = None

    base_model: Annotated[
        str,
        BeforeValidator(_at_home),
        Setting(
            "model.name", "A folder in Hugging Face's layout, or a name. Left out: the starter model, on this machine."
        ),
    ] = ""
    rank: Annotated[int, _Positive, Setting("model.lora_rank", "Rank of the adapter.", sweep=True)] = 16
    renderer: Annotated[
        str,
        Setting(
            "model.renderer_name",
            "auto (by the model's name), chat-template (the model's own), or one of the vendor's, as qwen3.",
            sweep=True,
        ),
    ] = AUTO_RENDERER
    train_attn: Annotated[bool, Setting("model.train_attn", "Train the attention layers.", sweep=True)] = True
    train_mlp: Annotated[bool, Setting("model.train_mlp", "Train the MLP layers.", sweep=True)] = True
    train_unembed: Annotated[bool, Setting("model.train_unembed", "Train the output layer.", sweep=True)] = True

    data: Annotated[
        str,
        BeforeValidator(_at_home),
        Setting(
            "dataset.name",
            f"Conversations: a file, a folder, a Hub name, no_robots or tulu3. Left out: {TRAINING_DATA}, else on the "
            "starter model the sample conversations.",
            on_resume="moved",
        ),
    ] = ""
    num_examples: Annotated[
        int, _Count, Setting("dataset.num_examples", "The first so many conversations; 0 is all.", sweep=True)
    ] = 0
    eval_data: Annotated[
        str,
        BeforeValidator(_at_home),
        Setting("dataset.eval_data", "Held-out conversations to evaluate on, as --data.", on_resume="moved"),
    ] = ""
    val_fraction: Annotated[
        float,
        Field(ge=0, lt=1),
        Setting(
            "dataset.val_fraction",
            "Hold out this share of the data to evaluate on; equal conversations stay on one side.",
            expects="a number of at least 0 and less than 1",
        ),
    ] = 0.0
    batch: Annotated[
        int,
        _Positive,
        Setting("dataset.batch_size", "Conversations a step; or pairs, prompts, or games.", sweep=True),
    ] = 64
    max_length: Annotated[
        int,
        _Count,
        Setting("dataset.max_length", "Most tokens a conversation; 0 is the model's limit.", sweep=True),
    ] = 0
    overlength: Annotated[Overlength, Setting("dataset.overlength", "What becomes of longer ones.", sweep=True)] = (
        "error"
    )
    train_on_what: Annotated[
        TrainOnWhat,
        BeforeValidator(_in_any_case, json_schema_input_type=_InAnyCase),
        Setting(
            "dataset.train_on_what",
            "ALL_ASSISTANT_MESSAGES, LAST_ASSISTANT_MESSAGE, LAST_ASSISTANT_TURN, ALL_MESSAGES, ALL_TEXT, "
            "ALL_USER_AND_SYSTEM_MESSAGES, or CUSTOMIZED (messages have trainable, weight or loss_weight); in any "
            "case.",
            sweep=True,
            methods=("sft",),
        ),
    ] = TRAIN_ON_WHAT
    cache: Annotated[
        bool,
        Setting(
            "dataset.cache",
            "Tokens are taken from the cache and kept there; --no-cache tokenises anew.",
            on_resume="once",
            flag="--no-cache",
        ),
    ] = True

    learning_rate: Annotated[
        Annotated[float, Field(gt=0)] | Literal["auto"],
        Setting(
            "training.learning_rate",
            "The peak: a number, or auto for the published formula of the model's family, lowered for the method.",
            sweep=True,
            expects="a number above 0, or auto",
        ),
    ] = "auto"
    lr_schedule: Annotated[Schedule, Setting("training.lr_schedule", "How it falls to zero, or not.", sweep=True)] = (
        "linear"
    )
    warmup_steps: Annotated[int, _Count, Setting("training.warmup_steps", "Steps until the peak.", sweep=True)] = 0
    epochs: Annotated[
        int,
        _Positive,
        Setting("training.num_epochs", "How often each conversation is seen.", on_resume="longer", sweep=True),
    ] = 1
    max_steps: Annotated[
        int,
        _Count,
        Setting("training.max_steps", "Steps in all; 0 means --epochs whole epochs.", on_resume="longer", sweep=True),
    ] = 0
    seed: Annotated[
        int,
        Field(ge=-MOST, le=MOST),
        Setting(
            "training.seed",
            "Seed of the adapter and of the order of the data.",
            sweep=True,
            expects="a whole number",
        ),
    ] = 0
    early_stop: Annotated[
        int,
        _Count,
        Setting("training.early_stop", "Stop after so many evaluations without improvement; 0 never does."),
    ] = 0

    beta: Annotated[
        float,
        Field(gt=0),
        Setting(
            "preference.beta",
            "How much the answers' likelihoods count against the starting model's: more of it stays nearer to that.",
            sweep=True,
            expects="a number above 0",
            methods=("dpo",),
        ),
    ] = 0.1
    preference_loss: Annotated[
        PreferenceLoss,
        Setting("preference.loss", "sigmoid is DPO's own; ipo does not push pairs apart for ever.", sweep=True,
                methods=("dpo",)),
    ] = "sigmoid"  # fmt: skip
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=0.5),
        Setting(
            "preference.label_smoothing",
            "The share of pairs that are taken to be the wrong way round.",
            sweep=True,
            expects="a number of at least 0 and less than 0.5",
            methods=("dpo", "reward"),
        ),
    ] = 0.0

    reward: Annotated[
        str,
        Setting(
            "rl.reward",
            "What an answer is worth: math, regex:PATTERN, code, judge:MODEL, score:RUN, or MODULE:FUNCTION.",
            methods=("rl",),
        ),
    ] = ""
    reward_timeout: Annotated[
        float,
        Field(gt=0),
        Setting(
            "rl.reward_timeout",
            "Seconds that the reward of an answer may take.",
            on_resume="free",
            expects="a number above 0",
            methods=("rl",),
        ),
    ] = 30.0
    group_size: Annotated[
        int,
        _Positive,
        Setting("rl.group_size", "Answers to each prompt.", sweep=True, methods=("rl", "distill")),
    ] = 8
    policy_loss: Annotated[
        PolicyLoss,
        Setting("rl.loss", "How answers are learnt from.", sweep=True, methods=("rl", "distill", "selfplay")),
    ] = "importance_sampling"
    kl_penalty: Annotated[
        float,
        Field(ge=0),
        Setting(
            "rl.kl_penalty",
            "How much going away from the starting model costs; 0 asks nothing of it.",
            sweep=True,
            expects="a number of 0 or more",
            methods=("rl",),
        ),
    ] = 0.0
    refresh_every: Annotated[
        int,
        _Positive,
        Setting(
            "rl.refresh_every",
            "Steps whose answers come from the same weights; more of them overlap sampling and training.",
            sweep=True,
            methods=("rl", "distill"),
        ),
    ] = 1
    max_tokens: Annotated[
        int,
        _Positive,
        Setting("rl.max_tokens", "Most tokens an answer.", sweep=True, methods=("rl", "distill", "selfplay")),
    ] = 256
    temperature: Annotated[
        float,
        Field(gt=0),
        Setting(
            "rl.temperature",
            "Of the answers that are trained on.",
            sweep=True,
            expects="a number above 0",
            methods=("rl", "distill", "selfplay"),
        ),
    ] = 1.0

    teacher: Annotated[
        str | None,
        BeforeValidator(_or_nothing),
        Setting(
            "distillation.teacher",
            "A base model, a run, or a tinker:// path. Left out: the model that is trained, as it is at the start.",
            methods=("distill",),
        ),
    ] = None
    teacher_system: Annotated[
        str | None,
        Setting(
            "distillation.teacher_system",
            "A system message that only the teacher sees: text, or a file that holds it.",
            methods=("distill",),
        ),
    ] = None
    on_policy: Annotated[
        bool,
        Setting(
            "distillation.on_policy",
            "The student answers and the teacher says how likely that was, or the teacher answers.",
            flag="--on-policy/--off-policy",
            methods=("distill",),
        ),
    ] = False

    game: Annotated[
        str,
        Setting("selfplay.game", "What is played: nim, FILE.py:CLASS, or MODULE:CLASS.", methods=("selfplay",)),
    ] = "nim"
    eval_games: Annotated[
        int,
        _Positive,
        Setting("selfplay.eval_games", "Games against the fixed opponent an evaluation.", methods=("selfplay",)),
    ] = 100

    save_every: Annotated[
        int,
        _Count,
        Setting(
            "checkpointing.save_every", "Steps between checkpoints; 0 saves the final weights only.", on_resume="free"
        ),
    ] = 50
    keep_last: Annotated[
        int,
        _Count,
        Setting(
            "checkpointing.keep_last",
            "How many step checkpoints are kept, the newest; 0 keeps all.",
            on_resume="free",
        ),
    ] = 0
    eval_every: Annotated[
        int,
        _Count,
        Setting(
            "checkpointing.eval_every",
            "Steps between evaluations; there is one at the start and one at the end, and with 0 no other.",
        ),
    ] = 50
    sample_every: Annotated[
        int,
        _Count,
        Setting(
            "checkpointing.sample_every",
            "Steps between answers to a few prompts, kept in the run; 0 asks for none.",
            on_resume="free",
        ),
    ] = 0
    ttl_seconds: Annotated[
        int,
        _Count,
        Setting(
            "checkpointing.ttl_seconds",
            "How long a server keeps checkpoints that are not the final one; 0 is for good.",
            on_resume="free",
        ),
    ] = 7 * 24 * 3600
    download: Annotated[
        bool,
        Setting(
            "checkpointing.download",
            "Adapters are fetched from the server too; --no-download leaves them there.",
            on_resume="free",
            flag="--no-download",
        ),
    ] = True

    upload: Annotated[
        bool,
        Setting("post_training.enabled", "Upload the result to the Hub.", on_resume="free", flag="--upload"),
    ] = False
    hf_repo_id: Annotated[
        str | None,
        BeforeValidator(_or_nothing),
        Setting("post_training.hf_repo_id", "The repository: USER/NAME.", on_resume="free"),
    ] = None
    hf_private: Annotated[
        bool,
        Setting("post_training.hf_private", "Who may see it.", on_resume="free", flag="--hf-private/--hf-public"),
    ] = True
    merge: Annotated[
        bool,
        Setting(
            "post_training.merge",
            "Full weights, merged into the base model, or the adapter.",
            on_resume="free",
            flag="--merge/--adapter-only",
        ),
    ] = False
    download_dir: Annotated[
        Path | None,
        _Lenient,
        BeforeValidator(_or_nothing),
        Setting("post_training.download_dir", "Where the repository is built.", on_resume="free"),
    ] = None

    log_path: Annotated[
        Path | None,
        _Lenient,
        BeforeValidator(_or_nothing),
        Setting("logging.log_path", "The run's directory. Left out: made up, under --output-dir.", on_resume="once"),
    ] = None
    output_dir: Annotated[
        Path, _Lenient, BeforeValidator(_at_home), Setting("logging.output_dir", "Where runs are.", on_resume="once")
    ] = OUTPUT_DIR
    run_name: Annotated[
        str | None,
        BeforeValidator(_or_nothing),
        Setting("logging.run_name", "Name of the run's directory under --output-dir.", on_resume="once"),
    ] = None
    track: Annotated[
        tuple[TrackerName, ...],
        _Lenient,
        BeforeValidator(_with_commas, json_schema_input_type=_Listed),
        Setting(
            "logging.track",
            "Send the log to wandb, trackio, tensorboard or mlflow; several with commas.",
            on_resume="free",
        ),
    ] = ()
    wandb_project: Annotated[
        str | None,
        BeforeValidator(_or_nothing),
        Setting("logging.wandb_project", "Project at the tracker, whichever; alone it means wandb.", on_resume="free"),
    ] = None
    wandb_name: Annotated[
        str | None,
        BeforeValidator(_or_nothing),
        Setting("logging.wandb_name", "Name of the run at the tracker.", on_resume="free"),
    ] = None

    engine: Annotated[Engine, Setting("infrastructure.engine", "Where to compute; local is torch in this process.")] = (
        ENGINE
    )
    base_url: Annotated[
        str | None,
        BeforeValidator(_or_nothing),
        Setting("infrastructure.base_url", "The address of a Tinker server.", on_resume="free"),
    ] = None
    load_checkpoint_path: Annotated[
        str | None,
        BeforeValidator(_or_nothing),
        Setting(
            "infrastructure.load_checkpoint_path",
            "Start from these weights: a run, a checkpoint, its state, or a tinker:// path of one. The optimizer "
            "starts anew.",
        ),
    ] = None
    behavior_if_log_dir_exists: Annotated[
        IfExists,
        Setting(
            "infrastructure.behavior_if_log_dir_exists",
            "What to do where the run's directory is there; ask fails where nobody can answer.",
            on_resume="once",
        ),
    ] = "ask"
    timeout: Annotated[
        float,
        Field(gt=0),
        Setting(
            "infrastructure.timeout",
            "Seconds that a request to a server may take; the first contact has a minute at most.",
            on_resume="once",
            expects="a number above 0",
        ),
    ] = TIMEOUT_SECONDS
    jobs: Annotated[
        int, _Positive, Setting("infrastructure.jobs", "Runs of a sweep at once, on a server.", on_resume="once")
    ] = 1
    price: Annotated[
        float | None,
        Field(ge=0),
        Setting(
            "infrastructure.price",
            "Dollars for a million trained-on tokens, for --dry-run. Left out: a table that ships.",
            on_resume="once",
            expects="a number of 0 or more",
        ),
    ] = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise SettingError(
                "train_unembed", "nothing is left to train: --train-attn, --train-mlp and --train-unembed are false",
                hint="leave one of them true",
            )  # fmt: skip
        if self.eval_data and self.val_fraction:
            raise SettingError(
                "val_fraction", "--eval-data and --val-fraction are two ways to hold data out",
                hint="leave one of them out",
            )  # fmt: skip
        if self.early_stop and not self.evaluates:
            raise SettingError(
                "early_stop", "--early-stop has nothing to go by", hint="add --eval-data FILE or --val-fraction 0.1"
            )
        if self.log_path is not None and self.run_name is not None:
            raise SettingError(
                "run_name", "--log-path is the whole path of the run, and --run-name its last part",
                hint="leave one of them out",
            )  # fmt: skip
        self._fit_the_method()
        if self.upload and not self.hf_repo_id:
            raise SettingError("upload", "--upload needs the repository", hint="add --hf-repo-id USER/NAME")
        return self

    def _fit_the_method(self) -> None:
        for name, info in type(self).model_fields.items():
            methods = setting(name).methods
            if methods and self.method not in methods and getattr(self, name) != info.default:
                flag = setting(name).flag.partition("/")[0] or f"--{name.replace('_', '-')}"
                raise SettingError(
                    name, f"{flag} is of --method {' and '.join(methods)}, and this is {self.method}",
                    hint="leave it out",
                )  # fmt: skip
        if self.method == "rl" and not self.reward:
            raise SettingError(
                "reward", "--method rl needs --reward: what an answer is worth",
                hint="for example --reward math, or --reward rewards.py:FUNCTION",
            )  # fmt: skip
        if self.method == "rl" and self.group_size < 2:
            raise SettingError(
                "group_size", "--group-size 1: an answer is held against the others of its group", hint="--group-size 8"
            )
        if self.preference_loss == "ipo" and self.label_smoothing:
            raise SettingError(
                "label_smoothing", "--label-smoothing is of --preference-loss sigmoid, and this is ipo",
                hint="leave it out",
            )  # fmt: skip
        if self.method == "selfplay" and (self.data or self.eval_data or self.val_fraction):
            raise SettingError(
                "data", "--method selfplay makes its own data, by playing", hint="leave --data and --eval-data out"
            )
        if self.method == "selfplay" and not self.max_steps:
            raise SettingError(
                "max_steps", "--method selfplay has no epochs: say how long it goes on", hint="--max-steps 100"
            )

    @property
    def evaluates(self) -> bool:
        """Whether there is something to evaluate on."""
        return bool(self.eval_data or self.val_fraction) or self.method == "selfplay"

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """Where the log is sent."""
        return self.track or (("wandb",) if self.wandb_project else ())

    def changed(self, **values: Any) -> Self:
        """The same with other values, which are checked as the first ones were."""
        return type(self).model_validate({name: getattr(self, name) for name in type(self).model_fields} | values)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, values: dict[str, Any], where: Path) -> Self:
        """The configuration that `to_json` wrote.

        Raises:
            RunError: a key is unknown, as in a file that a newer version wrote, or a value is none.
        """
        if unknown := sorted(values.keys() - cls.model_fields.keys()):
            raise RunError(
                f"{where}: unknown settings: {', '.join(unknown)}",
                hint="the run was written by another version of tinkertools; install that version to go on with it",
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise RunError(
                f"{where} is damaged: {name} is {first['input']!r}", hint="put a copy of it back, or start a new run"
            ) from error


def setting(name: str) -> Setting:
    """What belongs to a field of `TrainConfig`."""
    return next(item for item in TrainConfig.model_fields[name].metadata if isinstance(item, Setting))


class SettingError(UsageError):
    """A setting that does not go with the others; `field` is its name in `TrainConfig`."""

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


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
