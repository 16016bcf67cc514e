"""The settings of `tt train` in YAML and as options: read exactly as they were written, or refused with what to do."""

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from run_files import sums, write_rows

from tinkertools.cli import build
from tinkertools.config import MOST, SettingError, TrainConfig, setting
from tinkertools.errors import FileError, TinkertoolsError, UsageError
from tinkertools.runs.directory import RunDirectory
from tinkertools.settings.given import Given
from tinkertools.settings.reading import from_options, read_file
from tinkertools.settings.schema import json_schema
from tinkertools.settings.writing import write_yaml

Tt = Callable[..., Any]
FIELDS = tuple(TrainConfig.model_fields)
KEYS = {setting(name).key: name for name in FIELDS}
SWEPT = tuple(name for name in FIELDS if setting(name).sweep)
# Options of `tt train` that are about the command, not about a run.
OF_THE_COMMAND = {"config", "resume", "dry_run", "print_config", "print_schema"}

# The recipe that people come with, its example values as they stand there.
RECIPE = """\
model:
  name: "meta-llama/Llama-3.1-8B"
  lora_rank: 32
  renderer_name: null
dataset:
  name: no_robots
  max_length: 16384
  batch_size: 256
  train_on_what: null
  num_examples: null
training:
  learning_rate: null
  lr_schedule: linear
  num_epochs: 1
checkpointing:
  save_every: 20
  eval_every: 20
  ttl_seconds: 604800
post_training:
  enabled: false
  hf_repo_id: "me/my-model"
  hf_private: true
  download_dir: "./hf"
logging:
  log_path: null
  wandb_project: null
  wandb_name: null
infrastructure:
  base_url: null
  load_checkpoint_path: null
  behavior_if_log_dir_exists: ask
"""


def read(text: str | bytes) -> Given:
    """What a file of this content gives; errors call it run.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_file(path)


# Any configuration.

# Texts that YAML may take for something else.
ODD = [
    "", " ", " a ", "a: b", "a:", "#a", "a #b", "'", '"', "''", "it's \"so\"", "\\", "C:\\new", "-", "- a", "?", "? a",
    "|", ">", "&a", "*a", "!a", "!!str a", "%a", "@a", "`a`", "{a}", "[a]", "a,b", ",", "null", "Null", "~", "~/a",
    "true", "False", "yes", "no", "on", "OFF", "y", "1", "-1", "1.5", "1e-4", "1_0", "0x1F", "0o7", "010", "1:30",
    ".inf", "-.INF", ".nan", "nan", "inf", "2024-01-01", "2024-01-01T00:00:00Z", "12:30:45", "=", "<<", "---", "--- a",
    "...", "a\nb", "a\n", "\na", "a\n\n b\n", "\t", "a\tb", "\r", "a\r\nb", "\x01\x1b\x7f", "\x85", "a\u2028b",
    "\ufeff", "\ufffe", "é", "e\u0301", "日本語", "🎉", "${HOME}", "word " * 300, "x" * 5000,
]  # fmt: skip
TEXT = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def _bounds(metadata: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in metadata:
        # `Field(gt=0)` within a union keeps its own list.
        found |= _bounds(getattr(item, "metadata", ()))
        found |= {bound: getattr(item, bound) for bound in ("ge", "gt", "le", "lt") if hasattr(item, bound)}
    return found


def values_of(kind: Any, metadata: Any) -> st.SearchStrategy[Any]:
    """All values of a type within its bounds."""
    bounds = _bounds(metadata)
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return values_of(inner, more)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        return st.lists(values_of(get_args(kind)[0], ()), unique=True).map(tuple)
    if kind is int:
        return st.integers(bounds.get("ge"), bounds.get("le"))
    if kind is float:
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("lt")
        return st.floats(
            low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds, allow_nan=False, allow_infinity=False
        )
    simple = {bool: st.booleans(), type(None): st.none(), str: TEXT, Path: TEXT.map(Path)}
    if kind in simple:
        return simple[kind]
    return st.one_of([values_of(one, metadata) for one in get_args(kind)])


def values_of_field(name: str) -> st.SearchStrategy[Any]:
    info = TrainConfig.model_fields[name]
    return values_of(info.annotation, info.metadata)


def is_of(name: str, method: str) -> bool:
    """Whether a setting counts for a method."""
    return not setting(name).methods or method in setting(name).methods


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Any configuration whose settings do not contradict each other."""
    method = draw(values_of_field("method"))
    values = {name: draw(values_of_field(name)) for name in FIELDS if is_of(name, method)} | {"method": method}
    if method == "rl":
        values["reward"] = values["reward"] or "math"
        values["group_size"] = max(2, values["group_size"])
    if values.get("preference_loss") == "ipo":
        values["label_smoothing"] = 0.0
    if method == "selfplay":
        values |= {"data": "", "eval_data": "", "val_fraction": 0.0, "max_steps": max(1, values["max_steps"])}
    values["train_unembed"] |= not (values["train_attn"] or values["train_mlp"])
    if values["eval_data"]:
        values["val_fraction"] = 0.0
    if not (values["eval_data"] or values["val_fraction"] or method == "selfplay"):
        values["early_stop"] = 0
    if values["log_path"]:
        values["run_name"] = None
    values["upload"] &= bool(values["hf_repo_id"])
    return TrainConfig(**values)


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    names = draw(st.lists(st.sampled_from(SWEPT), unique=True, max_size=4))
    return {name: draw(st.lists(values_of_field(name), min_size=1, max_size=4, unique=True)) for name in names}


@given(configs(), grids(), st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_is_written_as_yaml_is_read_back_exactly(
    config: TrainConfig, grid: dict[str, list[Any]], explained: bool
) -> None:
    found = read(write_yaml(config, grid, explained=explained))
    assert found.config() == config
    assert found.grid == grid
    assert list(found.grid) == list(grid)


@given(configs())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_a_run_keeps_as_json_is_read_back_exactly(config: TrainConfig) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json())), Path("config.json")) == config
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        run.write_config({"config": config.to_json()})
        assert TrainConfig.from_json(run.read_config()["config"], Path("config.json")) == config


def test_odd_texts_are_read_back_exactly() -> None:
    """Each of them, whatever hypothesis comes upon; a name may be swept, so one file holds them all."""
    texts = list(dict.fromkeys(ODD))
    assert read(write_yaml(TrainConfig(), {"renderer": texts})).grid == {"renderer": texts}


# From a file to a run and back.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "chats.jsonl", sums(12))


PLACES = ("log_path", "output_dir", "run_name", "behavior_if_log_dir_exists")


@pytest.mark.parametrize(
    ("text", "elsewhere"),
    [
        (
            "model: {lora_rank: 3, train_mlp: false}\n"
            "dataset: {batch_size: 4, val_fraction: 0.25, train_on_what: all_text}\n"
            "training: {learning_rate: 1e-3, lr_schedule: cosine, warmup_steps: 1, num_epochs: 2, seed: 7}\n"
            "checkpointing: {save_every: 2, eval_every: 1, keep_last: 1}\n"
            "logging: {output_dir: some where, run_name: '2024-01-01'}\n",
            ["--output-dir", "else where", "--run-name", "null"],
        ),
        (
            "dataset: {batch_size: 2, max_length: 16, overlength: truncate, num_examples: 7, cache: false}\n"
            "training: {learning_rate: auto, lr_schedule: constant, max_steps: 3}\n"
            "post_training: {enabled: false, hf_repo_id: '', download_dir: null}\n"
            "logging: {log_path: runs/a}\n"
            "infrastructure: {behavior_if_log_dir_exists: overwrite, timeout: 5}\n",
            ["--log-path", "runs/b"],
        ),
    ],
)
def test_a_run_is_repeated_from_what_it_prints(
    tt: Tt, tiny: str, data: Path, monkeypatch: pytest.MonkeyPatch, text: str, elsewhere: list[str]
) -> None:
    monkeypatch.setattr("tinkertools.runs.plots.write_plots", lambda *_: None)
    Path("run.yaml").write_text(text)
    runs = []
    for options in (["run.yaml", "--base-model", tiny, "--data", data], ["printed.yaml", *elsewhere]):
        trained = tt("train", "--config", *options)
        assert trained.code == 0, trained.err
        runs.append(RunDirectory(Path(trained.out.strip())))
        printed = tt("train", "--resume", runs[-1].path, "--print-config")
        assert printed.code == 0, printed.err
        Path("printed.yaml").write_text(printed.out)
    first, second = (run.read_config()["config"] for run in runs)
    assert runs[0].path != runs[1].path
    moved = dict.fromkeys(PLACES)
    assert first | moved == second | moved
    given_there = read(text).config(base_model=tiny, data=str(data), engine="local").to_json()
    if given_there["learning_rate"] == "auto":
        given_there["learning_rate"] = first["learning_rate"]
    assert first == given_there
    name = "final_lora_weights/adapter_model.safetensors"
    assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes()


def test_the_recipe_is_read_with_null_and_with_values() -> None:
    found = read(RECIPE)
    assert found.grid == {}
    assert found.config() == TrainConfig(
        base_model="meta-llama/Llama-3.1-8B",
        rank=32,
        data="no_robots",
        max_length=16384,
        batch=256,
        save_every=20,
        eval_every=20,
        ttl_seconds=604800,
        hf_repo_id="me/my-model",
        download_dir=Path("hf"),
    )
    assert found.places["rank"].endswith("run.yaml:3: model.lora_rank")


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("dataset.name", "tulu3", "tulu3"),
        ("dataset.name", "path.jsonl", "path.jsonl"),
        ("dataset.train_on_what", "ALL_ASSISTANT_MESSAGES", "ALL_ASSISTANT_MESSAGES"),
        ("dataset.train_on_what", "LAST_ASSISTANT_MESSAGE", "LAST_ASSISTANT_MESSAGE"),
        ("dataset.train_on_what", "ALL_TEXT", "ALL_TOKENS"),
        ("training.lr_schedule", "cosine", "cosine"),
        ("training.lr_schedule", "constant", "constant"),
        ("training.learning_rate", "1e-4", 1e-4),
        ("logging.log_path", "/tmp/runs/a", Path("/tmp/runs/a")),
        ("logging.wandb_project", "mine", "mine"),
        ("logging.wandb_name", "first", "first"),
        ("infrastructure.base_url", "http://localhost:10610", "http://localhost:10610"),
        (
            "infrastructure.load_checkpoint_path",
            '"tinker://xxx/state/checkpoint-100"',
            "tinker://xxx/state/checkpoint-100",
        ),
        ("infrastructure.behavior_if_log_dir_exists", "overwrite", "overwrite"),
        ("infrastructure.behavior_if_log_dir_exists", "fail", "fail"),
        ("post_training.hf_repo_id", '""', None),
    ],
)
def test_other_values_of_the_recipe(key: str, written: str, value: object) -> None:
    section, _, last = key.partition(".")
    assert getattr(read(f"{section}:\n  {last}: {written}\n").config(), KEYS[key]) == value


def test_home_is_written_out_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = read("dataset: {name: ~/a.jsonl}\nlogging: {log_path: ~/runs/a}\nmodel: {name: '~me/x'}\n").config()
    assert (found.data, found.log_path, found.base_model) == ("/home/me/a.jsonl", Path("/home/me/runs/a"), "~me/x")


# Options.


def options_of_train() -> Mapping[str, Any]:
    commands: Any = typer.main.get_command(build())
    return {option.name: option for option in commands.commands["train"].params}


def test_every_key_has_an_option_and_every_option_a_key() -> None:
    options = options_of_train()
    assert options.keys() - OF_THE_COMMAND == set(FIELDS) == set(KEYS.values())
    assert options.keys() >= OF_THE_COMMAND
    assert len(KEYS) == len(FIELDS)
    sections = [key.rpartition(".")[0] for key in KEYS]
    assert sections == sorted(sections, key=sections.index)
    assert [key for key in KEYS if not re.fullmatch(r"[a-z_]+\.[a-z_]+", key)] == ["method", "preset"]
    of_help: Any = typer.main.get_command(build())
    context = of_help.commands["train"].make_context("train", [], resilient_parsing=True)
    assert of_help.commands["train"].get_help_option(context) is not None


@pytest.mark.parametrize("name", FIELDS)
def test_the_default_that_help_shows_is_the_one_in_effect(name: str) -> None:
    default = TrainConfig.model_fields[name].default
    option = options_of_train()[name]
    assert option.default is None  # the command line only tells what was given
    _, _, shown = str(option.help).partition("Default: ")
    shown = shown.removesuffix(".")
    flag = setting(name).flag
    if flag:
        on, _, off = flag.partition("/")
        assert shown == ((on if default else off).removeprefix("--") if off else "")
        given_alone = from_options({name: True}).values[name]
        assert given_alone is (True if off else not default)
    elif shown:
        assert from_options({name: shown}).values[name] == default
    else:
        assert default in (None, "", ())


def test_help_shows_defaults_and_kinds(tt: Tt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = tt("train", "--help").out
    for words in (
        "NUMBER|auto,…",
        "INTEGER,…",
        "true|false,…",
        "linear|cosine|constant,…",
        "Rank of the adapter. Default: 16.",
        "Default: 604800.",
    ):
        assert words in text


@given(configs())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=25)
def test_options_give_what_the_file_gives(config: TrainConfig) -> None:
    typed: dict[str, Any] = {}
    for name, value in config.to_json().items():
        if isinstance(value, bool) and setting(name).flag:
            typed[name] = value is not setting(name).flag.startswith("--no-")
        elif isinstance(value, bool):
            typed[name] = str(value).lower()
        elif name == "track":
            typed[name] = ",".join(value)
        elif value is not None and not (setting(name).sweep and "," in str(value)):
            typed[name] = str(value)
    names = [name for name in typed if name in FIELDS]
    assert {name: getattr(from_options(typed).config(), name) for name in names} == {
        name: getattr(config, name) for name in names
    }


def test_options_win_over_the_file_and_the_file_over_defaults(tt: Tt, tiny: str, data: Path) -> None:
    Path("run.yaml").write_text(
        "model: {lora_rank: 8, train_mlp: false}\ndataset: {batch_size: 4}\ntraining: {num_epochs: null, seed: 5}\n"
        "post_training: {hf_private: false, merge: true}\nlogging: {wandb_name: a}\ncheckpointing:\n"
    )
    options = ["--base-model", tiny, "--data", data, "--rank", 2, "--hf-private", "--adapter-only", "--wandb-name", "",
               "--upload", "--hf-repo-id", "me/it"]  # fmt: skip
    found = tt("train", "--config", "run.yaml", *options, "--print-config")
    assert found.code == 0, found.err
    config = read(found.out).config()
    assert (config.rank, config.train_mlp, config.batch, config.epochs, config.seed) == (2, False, 4, 1, 5)
    assert (config.hf_private, config.merge, config.wandb_name, config.save_every) == (True, False, None, 50)
    assert sorted(p.name for p in Path().iterdir()) == ["chats.jsonl", "run.yaml"]


def test_an_option_of_one_value_replaces_a_list_in_the_file() -> None:
    text = "model: {lora_rank: 4}\nsweep: {lora_rank: [8, 16], training: null, lr_schedule: [linear, cosine]}\n"
    file = read(text.replace(" training: null,", ""))
    assert file.grid == {"rank": [8, 16], "lr_schedule": ["linear", "cosine"]}
    beside = file.under(from_options({"rank": "2", "lr_schedule": "cosine,constant"}))
    assert beside.grid == {"lr_schedule": ["cosine", "constant"]}
    assert beside.config().rank == 2
    assert list(file.combinations()) == [
        {"rank": rank, "lr_schedule": schedule} for rank, schedule in itertools.product([8, 16], ["linear", "cosine"])
    ]


@pytest.mark.parametrize("section", ["model", "training", "sweep"])
def test_null_is_the_same_as_nothing(section: str) -> None:
    assert read(f"{section}:\ndataset: {{batch_size: ~}}\n") == Given()
    assert read("{}") == Given()


# What is wrong in a file.


def within(section: str, line: str) -> str:
    return f"# a run\n{section}:\n  {line}\n"


WRONG: list[tuple[str, str | bytes, str, str]] = [
    # Numbers.
    (
        "rate-in-quotes",
        within("training", "learning_rate: '1e-4'"),
        ":3: training.learning_rate is the text '1e-4', but must be a number above 0, or auto",
        "write it without quotes: learning_rate: 1e-4",
    ),
    (
        "rate-in-double-quotes",
        within("training", 'learning_rate: "1e-4"'),
        ":3: training.learning_rate is the text '1e-4'",
        "without quotes",
    ),
    (
        "rate-of-words",
        within("training", "learning_rate: fast"),
        ":3: training.learning_rate is 'fast', but must be a number above 0, or auto",
        "for example learning_rate: 1e-4",
    ),
    (
        "rate-negative",
        within("training", "learning_rate: -1e-4"),
        ":3: training.learning_rate is -1e-4, but must be a number above 0",
        "learning_rate: 1e-4",
    ),
    (
        "rate-zero",
        within("training", "learning_rate: 0"),
        ":3: training.learning_rate is 0, but must be a number above 0",
        "learning_rate: 1e-4",
    ),
    (
        "rate-true",
        within("training", "learning_rate: true"),
        ":3: training.learning_rate is true, but",
        "learning_rate: 1e-4",
    ),
    (
        "rate-nan",
        within("training", "learning_rate: .nan"),
        ":3: training.learning_rate is .nan, but",
        "learning_rate: 1e-4",
    ),
    (
        "rate-inf",
        within("training", "learning_rate: .inf"),
        ":3: training.learning_rate is .inf, but",
        "learning_rate: 1e-4",
    ),
    (
        "rate-too-large",
        within("training", "learning_rate: 1e400"),
        ":3: training.learning_rate is 1e400, but",
        "learning_rate: 1e-4",
    ),
    (
        "rate-list",
        within("training", "learning_rate: [1e-4, 2e-4]"),
        ":3: training.learning_rate is the list [1e-4, 2e-4]",
        "one value; to try each, write sweep: learning_rate: [1e-4, 2e-4]",
    ),
    (
        "rate-section",
        within("training", "learning_rate: {a: 1}"),
        ":3: training.learning_rate is a section of keys, but",
        "learning_rate: 1e-4",
    ),
    (
        "whole-1.5",
        within("training", "num_epochs: 1.5"),
        ":3: training.num_epochs is 1.5, but must be a whole number of at least 1",
        "num_epochs: 1",
    ),
    (
        "whole-true",
        within("training", "num_epochs: true"),
        ":3: training.num_epochs is true, but must be a whole number",
        "num_epochs: 1",
    ),
    (
        "whole-zero",
        within("training", "num_epochs: 0"),
        ":3: training.num_epochs is 0, but must be a whole number of at least 1",
        "num_epochs: 1",
    ),
    (
        "whole-negative",
        within("checkpointing", "save_every: -1"),
        ":3: checkpointing.save_every is -1, but must be a whole number, 0 or more",
        "save_every: 50",
    ),
    ("whole-nan", within("training", "max_steps: .nan"), ":3: training.max_steps is .nan, but", "max_steps: 1"),
    ("whole-1e400", within("training", "max_steps: 1e400"), ":3: training.max_steps is 1e400, but", "max_steps: 1"),
    (
        "whole-in-quotes",
        within("model", "lora_rank: '8'"),
        ":3: model.lora_rank is the text '8', but",
        "write it without quotes: lora_rank: 8",
    ),
    ("whole-of-words", within("model", "lora_rank: eight"), ":3: model.lora_rank is 'eight', but", "lora_rank: 16"),
    (
        "whole-list",
        within("model", "lora_rank: [8, 16]"),
        ":3: model.lora_rank is the list [8, 16], but",
        "sweep: lora_rank: [8, 16]",
    ),
    (
        "whole-huge",
        within("training", f"seed: {MOST + 1}"),
        f":3: training.seed is {MOST + 1}, but must be a whole number, at most {MOST}",
        "seed: 1",
    ),
    (
        "whole-of-5000-digits",
        within("training", "seed: 1" + "0" * 5000),
        f"…, but must be a whole number, at most {MOST}",
        "seed: 1",
    ),
    (
        "whole-base-60",
        within("training", "num_epochs: 1:30"),
        ":3: training.num_epochs is '1:30', but",
        "num_epochs: 1",
    ),
    (
        "share-one",
        within("dataset", "val_fraction: 1"),
        ":3: dataset.val_fraction is 1, but must be a number of at least 0 and less than 1",
        "val_fraction: 0.1",
    ),
    (
        "share-percent",
        within("dataset", "val_fraction: 10%"),
        ":3: dataset.val_fraction is '10%', but",
        "val_fraction: 0.1",
    ),
    # Words.
    *[
        (
            f"switch-{word}",
            within("post_training", f"enabled: {word}"),
            f":3: post_training.enabled is '{word}', but must be true or false",
            f"write it so: enabled: {meant}",
        )
        for word, meant in {"yes": "true", "on": "true", "no": "false", "Off": "false"}.items()
    ],
    (
        "switch-1",
        within("model", "train_mlp: 1"),
        ":3: model.train_mlp is 1, but must be true or false",
        "train_mlp: true",
    ),
    (
        "switch-in-quotes",
        within("model", "train_mlp: 'false'"),
        ":3: model.train_mlp is 'false', but",
        "write it without quotes: train_mlp: false",
    ),
    (
        "switch-word",
        within("model", "train_mlp: maybe"),
        ":3: model.train_mlp is 'maybe', but must be true or false",
        "train_mlp: true",
    ),
    ("text-5", within("model", "name: 5"), ":3: model.name is 5, but must be text", "write it in quotes: name: '5'"),
    (
        "text-5.0",
        within("logging", "run_name: 5.0"),
        ":3: logging.run_name is 5.0, but must be text",
        "write it in quotes: run_name: '5.0'",
    ),
    (
        "text-true",
        within("model", "name: true"),
        ":3: model.name is true, but must be text",
        "write it in quotes: name: 'true'",
    ),
    (
        "text-list",
        within("model", "name: [a, b]"),
        ":3: model.name is the list [a, b], but must be text",
        "name: Qwen/Qwen3-8B",
    ),
    ("path-5", within("logging", "log_path: 5"), ":3: logging.log_path is 5, but must be a path", "log_path: '5'"),
    (
        "choice-near",
        within("training", "lr_schedule: cosin"),
        ":3: training.lr_schedule is 'cosin', but must be one of linear, cosine, constant",
        "did you mean cosine?",
    ),
    (
        "choice-case",
        within("training", "lr_schedule: Linear"),
        ":3: training.lr_schedule is 'Linear', but",
        "did you mean linear?",
    ),
    (
        "choice-near-in-capitals",
        within("dataset", "train_on_what: ALL_ASSISTENT_MESSAGES"),
        ":3: dataset.train_on_what is 'ALL_ASSISTENT_MESSAGES', but must be one of",
        "did you mean ALL_ASSISTANT_MESSAGES?",
    ),
    (
        "choice-5",
        within("dataset", "train_on_what: 5"),
        ":3: dataset.train_on_what is 5, but",
        "train_on_what: ALL_ASSISTANT_MESSAGES",
    ),
    (
        "tracker",
        within("logging", "track: [wandb, tensorbord]"),
        ":3: logging.track is the list [wandb, tensorbord], but must be one or more of wandb",
        "track: wandb",
    ),
    (
        "tag",
        within("model", "name: !thing a"),
        ":3: model.name is !thing a, but must be text",
        "write it in quotes: name: 'a'",
    ),
    (
        "python-tag",
        within("model", "name: !!python/object/apply:os.system ['true']"),
        ":3: model.name is the list [true], but",
        "name: Qwen",
    ),
    # Keys.
    ("section-near", "modle:\n  name: a\n", ":1: there is no section 'modle'", "did you mean model?"),
    ("section-in-capitals", "Model:\n  name: a\n", ":1: there is no section 'Model'", "did you mean model?"),
    (
        "section-unknown",
        "qqq:\n  name: a\n",
        ":1: there is no section 'qqq'",
        "sections are model, dataset, training, preference, rl, distillation, selfplay, checkpointing, post_training, "
        "logging, infrastructure, sweep; method and preset stand in none",
    ),
    (
        "sweep-of-a-key-of-two-sections",
        "sweep:\n  loss: [ipo, sigmoid]\n",
        ":2: there is no sweep.loss: several settings are called so",
        "did you mean preference_loss or policy_loss?",
    ),
    (
        "list-of-a-key-of-two-sections",
        "method: dpo\npreference:\n  loss: [ipo, sigmoid]\n",
        ":3: preference.loss is the list [ipo, sigmoid], but must be one of sigmoid, ipo",
        "sweep: preference_loss: [ipo, sigmoid]",
    ),
    (
        "method-in-a-section",
        "training:\n  method: dpo\n",
        ":2: there is no training.method",
        "write it as method: …, in no section",
    ),
    ("method-unknown", "method: dop\n", ":1: method is 'dop', but must be one of sft, dpo", "did you mean dpo?"),
    ("method-of-settings", "method: {name: dpo}\n", ":1: method is a section of keys, but must be", "method: sft"),
    (
        "section-scalar",
        "\nmodel: Qwen/Qwen3-8B\n",
        ":2: model is 'Qwen/Qwen3-8B', but must hold settings",
        "model: name: …",
    ),
    ("section-list", "model: [name]\n", ":1: model is the list [name], but must hold settings", "model: name: …"),
    (
        "section-no-space",
        "model:\n  lora_rank:4\n",
        ":1: model is 'lora_rank:4', but must hold settings",
        "model: name: …",
    ),
    ("key-unknown", within("dataset", "zzqq: 1"), ":3: there is no dataset.zzqq", "dataset has name, num_examples"),
    ("key-near", within("dataset", "bach_size: 4"), ":3: there is no dataset.bach_size", "did you mean batch_size?"),
    ("key-at-top", "batch_size: 4\n", ":1: there is no section 'batch_size'", "write it as dataset: batch_size: …"),
    ("key-near-at-top", "lora_rnak: 4\n", ":1: there is no section 'lora_rnak'", "write it as model: lora_rank: …"),
    (
        "key-elsewhere",
        within("training", "batch_size: 4"),
        ":3: there is no training.batch_size",
        "write it as dataset: batch_size: …",
    ),
    (
        "key-with-section",
        "dataset.batch_size: 4\n",
        ":1: there is no section 'dataset.batch_size'",
        "write it as dataset: batch_size: …",
    ),
    (
        "key-not-indented",
        "model:\nlora_rank: 3\n",
        ":2: there is no section 'lora_rank'",
        "write it as model: lora_rank: …",
    ),
    (
        "option-name",
        within("dataset", "batch: 4"),
        ":3: there is no dataset.batch",
        "write it as dataset: batch_size: …",
    ),
    ("option-name-at-top", "epochs: 4\n", ":1: there is no section 'epochs'", "write it as training: num_epochs: …"),
    (
        "option-name-with-dashes",
        within("model", "--base-model: a"),
        ":3: there is no model.--base-model",
        "write it as model: name: …",
    ),
    ("key-5", "5: a\n", ":1: 5 is no key", "a key is a word"),
    ("key-null", within("model", "~: a"), ":3: ~ is no key", "a key is a word"),
    ("key-list", "? [a, b]\n: c\n", ":1: the list [a, b] is no key", "a key is a word"),
    (
        "key-twice",
        "model:\n  name: a\n  lora_rank: 3\n  name: b\n",
        ":4: name stands here and in line 2",
        "leave one of them out",
    ),
    (
        "section-twice",
        "model:\n  name: a\ndataset:\nmodel:\n  lora_rank: 3\n",
        ":4: model stands here and in line 1",
        "leave one of them out",
    ),
    (
        "key-twice-quoted",
        "model:\n  name: a\n  'name': a\n",
        ":3: name stands here and in line 2",
        "leave one of them out",
    ),
    ("merge", "model: &m\n  name: a\ntraining:\n  <<: *m\n", ":4: keys cannot be merged in with <<", "write them here"),
    (
        "merge-and-key",
        "model:\n  <<: {lora_rank: 3}\n  lora_rank: 4\n",
        ":2: keys cannot be merged in with <<",
        "write them here",
    ),
    ("merge-of-itself", "model: &m\n  <<: *m\n", ":2: keys cannot be merged in with <<", "write them here"),
    (
        "anchors-in-a-section-of-their-own",
        "x: &m {lora_rank: 3}\nmodel: *m\n",
        ":1: there is no section 'x'",
        "sections are",
    ),
    (
        "secret",
        within("infrastructure", "api_key: tml-0123456789"),
        ":3: there is no infrastructure.api_key",
        "keys come from the environment or from .env, never from this file",
    ),
    (
        "secret-at-top",
        "HF_TOKEN: hf_0123456789\n",
        ":1: there is no section 'HF_TOKEN'",
        "from the environment or from .env",
    ),
    # Lists.
    (
        "sweep-scalar",
        within("sweep", "lora_rank: 8"),
        ":3: sweep.lora_rank is 8, but must be a list",
        "lora_rank: [8, …]",
    ),
    ("sweep-empty", within("sweep", "lora_rank: []"), ":3: sweep.lora_rank is an empty list", "name the values to try"),
    (
        "sweep-twice",
        within("sweep", "learning_rate: [1e-4, 0.0001]"),
        ":3: sweep.learning_rate has 0.0001 twice",
        "leave one out",
    ),
    (
        "sweep-zero-twice",
        within("sweep", "num_examples: [0, 5, 0]"),
        ":3: sweep.num_examples has 0 twice",
        "leave one out",
    ),
    (
        "sweep-false-twice",
        within("sweep", "train_mlp: [false, false]"),
        ":3: sweep.train_mlp has false twice",
        "leave one out",
    ),
    (
        "sweep-null",
        within("sweep", "lora_rank: [8, null]"),
        ":3: sweep.lora_rank is null, but must be a whole number",
        "lora_rank: 16",
    ),
    ("sweep-word", within("sweep", "lora_rank: [8, x]"), ":3: sweep.lora_rank is 'x', but", "lora_rank: 16"),
    (
        "sweep-nested",
        within("sweep", "lora_rank: [[8, 16]]"),
        ":3: sweep.lora_rank is the list [8, 16], but",
        "sweep: lora_rank: [8, 16]",
    ),
    (
        "sweep-fixed",
        within("sweep", "save_every: [1, 2]"),
        ":3: there is no sweep.save_every: it has one value in all runs",
        "these can be tried: lora_rank,",
    ),
    ("sweep-unknown", within("sweep", "zzqq: [1, 2]"), ":3: there is no sweep.zzqq", "sweep has lora_rank,"),
    ("sweep-near", within("sweep", "lora_rnk: [1, 2]"), ":3: there is no sweep.lora_rnk", "did you mean lora_rank?"),
    (
        "sweep-under-two-names",
        within("sweep", "lora_rank: [1, 2]\n  rank: [4]"),
        ":4: sweep.rank is the same setting as",
        "leave one of them out",
    ),
    # What is no YAML.
    ("tab", "model:\n\tname: a\n", ":2: a tab stands where only spaces may", "write spaces"),
    (
        "tab-after-spaces",
        "model:\n  name: a\n \tlora_rank: 3\n",
        ":3: a tab stands where only spaces may",
        "write spaces",
    ),
    ("tab-before-a-value", "model:\n  name:\ta\n", ":2: a tab stands where only spaces may", "write spaces"),
    (
        "colon-in-text",
        "model:\n  name: a: b\n",
        ":2: this is no YAML: mapping values are not allowed here",
        "--print-config",
    ),
    ("indentation", "model:\n   name: a\n  lora_rank: 3\n", ":3: this is no YAML", "--print-config"),
    ("open-bracket", "sweep:\n  lora_rank: [8, 16\n", ":3: this is no YAML", "--print-config"),
    ("open-brace", "model: {name: a\n", ":2: this is no YAML", "--print-config"),
    ("open-quote", "model:\n  name: 'a\n", ":3: this is no YAML", "--print-config"),
    (
        "backslash",
        'model:\n  name: "C:\\models"\n',
        ":2: this is no YAML: found unknown escape character 'm'",
        "in single quotes",
    ),
    ("unknown-alias", "model:\n  name: *a\n", ":2: this is no YAML: found undefined alias 'a'", "--print-config"),
    (
        "recursive-section",
        "model: &a\n  name: *a\n",
        ":2: model.name is a section of keys, but must be text",
        "name: Qwen",
    ),
    ("recursive-document", "&a\nmodel: *a\n", ":2: there is no model.model", "model has name"),
    (
        "recursive-list",
        "training:\n  learning_rate: &a [*a]\n",
        ":2: training.learning_rate is the list [[…]], but",
        "learning_rate: 1e-4",
    ),
    ("deep-brackets", "model: " + "[" * 5000, ":1: this is nested too deeply", "a file has sections of keys"),
    (
        "deep-braces",
        "model: " + "{a: " * 500 + "}" * 500,
        ":1: this is nested too deeply",
        "a file has sections of keys",
    ),
    (
        "deep-sections",
        "".join(" " * i + "a:\n" for i in range(1500)),
        ":21: this is nested too deeply",
        "a file has sections of keys",
    ),
    (
        "lists-of-lists",
        "sweep:\n  lora_rank:\n    - &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"    - &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")),
        ":2: sweep.lora_rank is the list [x, x",
        "lora_rank: 16",
    ),
    ("empty", "", " holds nothing", "tt train --print-config writes such a file"),
    ("comment", "# nothing\n", " holds nothing", "--print-config"),
    ("null", "null\n", " holds nothing", "--print-config"),
    ("word", "hello\n", ":1: this is 'hello', but a file must hold sections", "--print-config"),
    ("number", "\n5\n", ":2: this is 5, but a file must hold sections", "--print-config"),
    ("list", "- a\n- b\n", ":1: this is the list [a, b], but a file must hold sections", "--print-config"),
    (
        "two-documents",
        "model:\n  name: a\n---\nmodel:\n  name: b\n",
        ":3: a second document begins",
        "one file is one run",
    ),
    ("latin-1", b"# a\nmodel:\n  name: caf\xe9\n", ":3: this is not UTF-8", "save it as UTF-8"),
    ("utf-16", "model:\n  name: a\n".encode("utf-16"), ":1: this is not UTF-8", "save it as UTF-8"),
    ("nul", b"model:\n  name: a\0b\n", ":2: a character that no YAML has: '\\x00'", "without that character"),
    (
        "nul-after-windows-lines",
        b"model:\r\n  lora_rank: 3\r\n  name: a\0b\r\n",
        ":3: a character that no YAML has",
        "without that character",
    ),
    (
        "escaped-nul",
        'model:\n  name: "a\\0b"\n',
        ":2: model.name has the character '\\x00', which no text can have",
        "without that character",
    ),
    (
        "half-a-character",
        'logging:\n  log_path: "\\ud800"\n',
        ":2: logging.log_path has the character '\\ud800'",
        "without that character",
    ),
    ("windows-lines", "model:\r\n  name: a\r\n  lora_rank: x\r\n", ":3: model.lora_rank is 'x'", "lora_rank: 16"),
    ("byte-order-mark", b"\xef\xbb\xbfmodel:\r\n  lora_rank: x\r\n", ":2: model.lora_rank is 'x'", "lora_rank: 16"),
    (
        "other-yaml",
        "%YAML 2.0\n---\nmodel:\n  name: a\n",
        ":1: this is no YAML: found incompatible YAML document",
        "--print-config",
    ),
]


@pytest.mark.parametrize(("content", "words", "hint"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_file_is_refused_with_its_line_and_what_to_write(
    tt: Tt, content: str | bytes, words: str, hint: str
) -> None:
    Path("run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = tt("train", "--config", "run.yaml")
    assert (found.code, found.out) == (2, "")
    error, _, advice = found.flat.partition(" → ")
    assert error.startswith("error: run.yaml")
    assert words in error
    assert hint in advice
    assert not re.search("Traceback|unexpected (?!end)|0123456789(?!\\d)", found.err.replace(str(MOST + 1), ""))
    assert len(found.err) < 1000
    assert [path.name for path in Path().iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("make", "words"),
    [(None, "not found: run.yaml"), (Path.mkdir, "run.yaml is a directory, not a file")],
    ids=["missing", "directory"],
)
def test_a_file_that_cannot_be_read_is_a_failure(tt: Tt, make: Callable[[Path], None] | None, words: str) -> None:
    if make:
        make(Path("run.yaml"))
    found = tt("train", "--config", "run.yaml")
    assert (found.code, found.out) == (1, "")
    assert words in found.err
    assert "→" in found.err


@pytest.mark.parametrize(
    ("line", "value"),
    [
        *[(f"learning_rate: {text}", 1e-4) for text in ("1e-4", "1E-4", "1.0e-4", "0.0001", ".1e-3", "+1e-4")],
        ("learning_rate: 1", 1.0),
        ("learning_rate: auto", "auto"),
        ("learning_rate: 'auto'", "auto"),
    ],
)
def test_ways_to_write_a_number(line: str, value: object) -> None:
    assert read(within("training", line)).values == {"learning_rate": value}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("model:\r\n  name: a\r\n  lora_rank: 4\r\n", {"base_model": "a", "rank": 4}),
        ("\ufeffmodel:\n  name: a\n", {"base_model": "a"}),
        ("model:\n  name: &n a\nlogging:\n  run_name: *n\n", {"base_model": "a", "run_name": "a"}),
        (
            "model: {name: &n a}\nlogging: {run_name: &n b, wandb_name: *n}",
            {"base_model": "a", "run_name": "b", "wandb_name": "b"},
        ),
        ("logging:\n  run_name: 2024-01-01\n", {"run_name": "2024-01-01"}),
        ("logging: {track: 'wandb, tensorboard'}", {"track": ("wandb", "tensorboard")}),
        ("logging: {track: [mlflow]}", {"track": ("mlflow",)}),
        ("---\nmodel: {train_mlp: True}\n...\n", {"train_mlp": True}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_right_is_taken(text: str, values: dict[str, Any]) -> None:
    assert read(text).values == values


VALID = RECIPE + "sweep:\n  lora_rank: [8, 16]\n  learning_rate: [1e-4, auto]\n"
# What YAML is made of: put anywhere, it makes files that are nearly right.
PIECES = st.sampled_from([
    "", "\t", "\n", "\r", " ", "  ", ":", ": ", "-", "- ", "? ", "[", "]", "{", "}", ",", "#", "&a ", "*a", "!",
    "!!int ", "!!map ", "!!bool ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "<<: ", "<<: *a",
    "|\n", ">-\n", "|9\n", "'", '"', '"\\x', '"\\ud83d"', "%YAML 1.1\n", "%TAG ! x\n", "---\n", "...\n", "null", "true",
    ".inf", "1e999", "0x", "0o9", "1:60", "2024-13-45", "\0", "\x85", "\u2028", "\ufeff", "@", "`", "model:\n",
    "sweep:\n",
])  # fmt: skip


def refused_or_read(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(content)
        try:
            assert isinstance(read_file(path), Given)
        except (UsageError, FileError) as error:
            assert error.message.startswith(str(path))
            assert error.hint


@given(st.text() | st.lists(PIECES | st.text(max_size=3)).map("".join))
@example("!!bool x: 1")
@example("model: {name: !!int }")
@example("? ? ? a")
@example("a: !!timestamp 1")
def test_no_text_breaks_the_reading(text: str) -> None:
    refused_or_read(text.encode(errors="replace"))


@given(st.binary())
def test_no_bytes_break_the_reading(content: bytes) -> None:
    refused_or_read(content)


@given(st.data())
@settings(max_examples=100)
def test_nothing_put_into_a_right_file_breaks_the_reading(data: st.DataObject) -> None:
    text = VALID
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(PIECES | st.text(max_size=3)) + text[end:]
    refused_or_read(text.encode(errors="replace"))


# Contradictions.


@pytest.mark.parametrize(
    ("options", "section", "lines", "at", "words"),
    [
        (
            ["--train-attn", "false", "--train-mlp", "false", "--train-unembed", "false"],
            "model",
            ["train_attn: false", "train_mlp: false", "train_unembed: false"],
            "5: model.train_unembed",
            "nothing is left to train: --train-attn, --train-mlp and --train-unembed are false",
        ),
        (
            ["--eval-data", "a", "--val-fraction", "0.5"],
            "dataset",
            ["eval_data: a", "val_fraction: 0.5"],
            "4: dataset.val_fraction",
            "--eval-data and --val-fraction are two ways to hold data out",
        ),
        (["--early-stop", "3"], "training", ["early_stop: 3"], "3: training.early_stop", "--early-stop has nothing"),
        (
            ["--log-path", "a", "--run-name", "b"],
            "logging",
            ["log_path: a", "run_name: b"],
            "4: logging.run_name",
            "--log-path is the whole path of the run, and --run-name its last part",
        ),
        (
            ["--upload", "--hf-repo-id", ""],
            "post_training",
            ["enabled: true", "hf_repo_id: ''"],
            "3: post_training.enabled",
            "--upload needs the repository",
        ),
    ],
    ids=["nothing-to-train", "held-out-twice", "early-stop", "two-places", "upload"],
)
def test_settings_that_contradict_each_other_are_named(
    tt: Tt, options: list[str], section: str, lines: list[str], at: str, words: str
) -> None:
    found = tt("train", *options)
    assert found.code == 2
    assert f"error: {words}" in found.flat
    assert "→" in found.err
    Path("run.yaml").write_text(within(section, "\n  ".join(lines)))
    found = tt("train", "--config", "run.yaml")
    assert found.code == 2
    assert f"error: run.yaml:{at}: {words}" in found.flat
    assert "→" in found.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", "1.5"], "--rank is 1.5, but must be a whole number of at least 1 → for example --rank 16"),
        (["--rank", str(MOST + 1)], f"--rank is {MOST + 1}, but must be a whole number of at least 1, at most {MOST}"),
        (["--rank", "8,8"], "--rank has 8 twice"),
        (["--seed", "0,0"], "--seed has 0 twice"),
        (["--rank", ","], "--rank is an empty list"),
        (["--learning-rate", "1e400"], "--learning-rate is 1e400, but must be a number above 0, or auto"),
        (["--train-mlp", "maybe"], "--train-mlp is 'maybe', but must be true or false"),
        (
            ["--lr-schedule", "Linear"],
            "--lr-schedule is 'Linear', but must be one of linear, cosine, constant → did you",
        ),
        (["--run-name", "\udcff"], "--run-name has the character '\\udcff', which no text can have"),
        (["--timeout", "inf"], "--timeout is inf, but must be a number above 0"),
    ],
)
def test_options_are_held_to_the_same(tt: Tt, options: list[str], words: str) -> None:
    found = tt("train", *options)
    assert (found.code, found.out) == (2, "")
    assert words in found.flat


@pytest.mark.parametrize(
    ("options", "text", "at", "words", "hint"),
    [
        (
            ["--method", "reward", "--beta", "0.5"],
            "method: reward\npreference:\n  beta: 0.5\n",
            "3: preference.beta",
            "--beta is of --method dpo, and this is reward",
            "leave it out",
        ),
        (
            ["--kl-penalty", "0.1"],
            "rl:\n  kl_penalty: 0.1\n",
            "2: rl.kl_penalty",
            "--kl-penalty is of --method rl, and this is sft",
            "leave it out",
        ),
        (
            ["--on-policy"],
            "distillation:\n  on_policy: true\n",
            "2: distillation.on_policy",
            "--on-policy is of --method distill, and this is sft",
            "leave it out",
        ),
        (["--method", "rl"], "method: rl\n", "", "--method rl needs --reward", "for example --reward math"),
        (
            ["--method", "rl", "--reward", "math", "--group-size", "1"],
            "method: rl\nrl: {reward: math, group_size: 1}\n",
            "2: rl.group_size",
            "--group-size 1: an answer is held against the others",
            "--group-size 8",
        ),
        (
            ["--method", "selfplay"],
            "method: selfplay\n",
            "",
            "--method selfplay has no epochs: say how long it goes on",
            "--max-steps 100",
        ),
        (
            ["--method", "selfplay", "--max-steps", "5", "--data", "a"],
            "method: selfplay\ndataset: {name: a}\ntraining: {max_steps: 5}\n",
            "2: dataset.name",
            "--method selfplay makes its own data, by playing",
            "leave --data and --eval-data out",
        ),
    ],
    ids=["of-dpo", "of-rl", "switch", "no-reward", "group-of-one", "no-end", "data-of-a-game"],
)
def test_settings_that_are_not_of_the_method_are_refused(
    tt: Tt, options: list[str], text: str, at: str, words: str, hint: str
) -> None:
    Path("run.yaml").write_text(text)
    for given_as, place in ((options, ""), (["--config", "run.yaml"], f"run.yaml:{at}: " if at else "")):
        found = tt("train", *given_as)
        assert (found.code, found.out) == (2, "")
        error, _, advice = found.flat.partition(" → ")
        assert error.startswith(f"error: {place}{words}")
        assert hint in advice


@pytest.mark.parametrize("name", [name for name in FIELDS if setting(name).methods])
def test_a_setting_counts_for_its_methods_only(name: str) -> None:
    """Another value than the default is taken for its methods and refused for each other one."""
    default = TrainConfig.model_fields[name].default
    kind = TrainConfig.model_fields[name].annotation
    words = [word for word in get_args(kind) if word != default] if get_origin(kind) is Literal else ["math"]
    other = {bool: True, int: 3, float: 0.25}.get(type(default), words[0])
    needed: dict[str, dict[str, Any]] = {"rl": {"reward": "math"}, "selfplay": {"max_steps": 1}}
    for method in get_args(TrainConfig.model_fields["method"].annotation):
        values = needed.get(method, {}) | {"method": method, name: other}
        if method in setting(name).methods:
            assert getattr(TrainConfig(**values), name) == other
        else:
            with pytest.raises(SettingError, match=f"and this is {method}") as caught:
                TrainConfig(**values)
            assert caught.value.field == name


# The schema.


def accepts(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value fits a JSON Schema, of the words that ours is made of."""
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
        "number": (int, float),
    }  # fmt: skip

    def is_a(kind: str) -> bool:
        return isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))

    rules: dict[str, Callable[[Any], bool]] = {
        "anyOf": lambda ways: any(accepts(way, value) for way in ways),
        "type": lambda kind: any(map(is_a, [kind] if isinstance(kind, str) else kind)),
        "const": lambda constant: value == constant,
        "enum": lambda words: value in words,
        "pattern": lambda pattern: not isinstance(value, str) or bool(re.search(pattern, value)),
        "minimum": lambda least: not is_a("number") or value >= least,
        "maximum": lambda most: not is_a("number") or value <= most,
        "exclusiveMinimum": lambda least: not is_a("number") or value > least,
        "exclusiveMaximum": lambda most: not is_a("number") or value < most,
        "items": lambda each: not is_a("array") or all(accepts(each, item) for item in value),
        "minItems": lambda least: not is_a("array") or len(value) >= least,
        "uniqueItems": lambda _: not is_a("array") or not any(item in value[:i] for i, item in enumerate(value)),
        "properties": lambda known: not is_a("object") or all(accepts(known[k], value[k]) for k in known if k in value),
        "required": lambda keys: not is_a("object") or value.keys() >= {*keys},
        "additionalProperties": lambda _: not is_a("object") or value.keys() <= schema["properties"].keys(),
    }  # fmt: skip
    unread = {"$schema", "title", "description", "default", "format"}
    assert schema.keys() - unread <= rules.keys(), schema
    return all(rule(schema[word]) for word, rule in rules.items() if word in schema)


def is_read(document: Any) -> bool:
    try:
        read(json.dumps(document))  # JSON is YAML
    except TinkertoolsError:
        return False
    return True


SCHEMA = json_schema()


def test_the_schema_describes_every_key(tt: Tt) -> None:
    found = tt("train", "--print-schema")
    assert (found.code, json.loads(found.out)) == (0, SCHEMA)
    assert SCHEMA["additionalProperties"] is False
    found_keys: dict[str, Any] = {}
    for section, described in SCHEMA["properties"].items():
        if section == "stages":
            continue
        if section in KEYS:
            found_keys[section] = described
            continue
        assert described["additionalProperties"] is False
        if section != "sweep":
            found_keys |= {f"{section}.{key}": about for key, about in described["properties"].items()}
    assert list(found_keys) == list(KEYS)
    for key, about in found_keys.items():
        assert about["description"] == setting(KEYS[key]).help
        assert about["default"] == TrainConfig().to_json()[KEYS[key]] or KEYS[key] == "track"
    swept = {setting(n).key.split(".")[1] for n in SWEPT} - {"loss"}  # which is a key of two sections
    assert set(SCHEMA["properties"]["sweep"]["properties"]) == swept | {*SWEPT}


ANYTHING = [
    None, True, False, 0, 1, -1, 2, 64, 0.5, 1.5, -0.5, 1e-4, MOST, MOST + 1, -MOST - 1, "", "a", "auto", "5", "true",
    "linear", "cosine", "Linear", "all_text", "ALL-TEXT", "all_tokens", "customized", "ALL", "wandb", "wandb,mlflow",
    "wandb, mlflow,", "wandbmlflow", ["wandb"], ["wandb", "mlflow"], ["other"], [], [1], [8, 16], [8, 8], [0, 0],
    [True, False], ["linear", "cosine"], ["a", None], [[1]], {}, {"a": 1}, "error", "ask", "local", "sft",
    "rl", "quick",
]  # fmt: skip


@pytest.mark.parametrize("section", SCHEMA["properties"])
def test_the_schema_accepts_what_is_read_and_nothing_else(section: str) -> None:
    for key in SCHEMA["properties"][section].get("properties", ()):
        for value in ANYTHING:
            document = {section: {key: value}}
            assert accepts(SCHEMA, document) is is_read(document), document
    whole: list[Any] = [{"zzqq": 1}, 5, "a", [], None, {}, *ANYTHING]
    for document in [*whole, *({section: found} for found in whole)]:
        assert accepts(SCHEMA, document) is is_read(document), document


@given(configs(), grids())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=25)
def test_the_schema_accepts_what_is_written(config: TrainConfig, grid: dict[str, list[Any]]) -> None:
    from ruamel.yaml import YAML

    assert accepts(SCHEMA, YAML(typ="safe", pure=True).load(write_yaml(config, grid)))
