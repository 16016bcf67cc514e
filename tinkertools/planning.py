"""What is to be trained, where it computes and where it goes: decided from the settings, before anything is done."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinkertools.config import TRAINING_DATA, IfExists, ServerSettings, TrainConfig, without_password
from tinkertools.engines import Choice, choose
from tinkertools.errors import ModelError, RunError, UsageError
from tinkertools.presets import without_preset
from tinkertools.reporting import Notify
from tinkertools.resuming import read_started, with_options
from tinkertools.schedules import auto_learning_rate, no_formula, of_method
from tinkertools.settings.given import Given
from tinkertools.shipped import SAMPLE_TRAINING_DATA, is_starter

if TYPE_CHECKING:
    from tinkertools.engines import Service
    from tinkertools.local.limits import Limits
    from tinkertools.runs.directory import RunDirectory
    from tinkertools.runs.many import ManyRuns

# Asked where a run's directory is there: overwrite, resume, or None for neither.
Ask = Callable[[Path], Literal["overwrite", "resume"] | None]


@dataclass(frozen=True)
class Plan:
    """What is to be trained and where it goes.

    Of a run that goes on, `metadata` is what its `config.json` holds, `started` the configuration in it, and `given`
    are the settings given beside it, which are in `config` already. `replaces` is whether a run that is there goes.
    """

    config: TrainConfig
    choice: Choice
    run: "RunDirectory"
    metadata: dict[str, Any] | None = None
    started: TrainConfig | None = None
    given: Given = field(default_factory=Given)
    replaces: bool = False


def plan_run(given: Given, ask: Ask) -> Plan:
    """A new run, or one to go on with where its directory is there and the settings say so; nothing is done yet.

    Raises:
        UsageError: settings contradict each other, or more is needed.
        RunError: the run's directory is there.
    """
    from tinkertools.runs.directory import RunDirectory, never_begun, new_run

    config = given.config()
    path = config.log_path or (config.output_dir / config.run_name if config.run_name else None)
    replaces = False
    if path is not None and path.exists() and not never_begun(path):
        decided = _when_there(path, config.behavior_if_log_dir_exists, ask)
        if decided == "resume":
            return plan_resumed(RunDirectory(path), given)
        replaces = True
    server = ServerSettings.from_environment(config.base_url)
    choice = choose(config.engine, config.base_model or None, server)
    named = {name: _from_anywhere(name, value) for name in _NAMES if (value := getattr(config, name))}
    named["data"] = "" if config.method == "selfplay" else data_source(config.data, choice)
    named["base_model"] = choice.base_model
    address = without_password(choice.base_url) if choice.base_url else None
    config = config.changed(engine=choice.engine, base_url=address, **named)
    now = datetime.now().astimezone()
    run = RunDirectory(path) if path is not None else new_run(config.output_dir, config.base_model, now)
    return Plan(config, choice, run, given=given, replaces=replaces)


def _when_there(path: Path, behavior: IfExists, ask: Ask) -> Literal["overwrite", "resume"]:
    """What to do with a run's directory that is there.

    Raises:
        RunError: it stays as it is.
    """
    from tinkertools.runs.directory import RunDirectory

    decided = ask(path) if behavior == "ask" else behavior
    if decided == "overwrite":
        if not RunDirectory(path).exists:
            raise RunError(f"{path} exists and holds no run: it is not overwritten", hint="choose another place")
        return "overwrite"
    if decided == "resume":
        return "resume"
    raise RunError(f"{path} exists", hint=f"choose another --run-name, or go on with it: tt train --resume {path}")


def when_there(runs: "ManyRuns", behavior: IfExists, ask: Ask) -> Literal["overwrite", "resume"]:
    """What to do with the directory of several runs that is there.

    Raises:
        RunError: it stays as it is.
    """
    path = runs.path
    if not runs.exists:
        raise RunError(f"{path} exists and holds no {runs.WHAT}", hint="choose another place")
    decided = ask(path) if behavior == "ask" else behavior
    if decided in ("overwrite", "resume"):
        return decided
    raise RunError(f"{path} exists", hint=f"choose another place, or go on with it: tt train --resume {path}")


def is_empty(path: Path) -> bool:
    """Whether a directory holds nothing, or only the lock of a process that was killed before it wrote anything."""
    return path.is_dir() and all(found.name.startswith(".") for found in path.iterdir())


def plan_resumed(run: "RunDirectory", given: Given) -> Plan:
    """A run to go on with, in the configuration it was started with and with the settings that may change.

    Raises:
        RunError: it is damaged, or another version wrote it.
        UsageError: a setting would change the result.
    """
    metadata = run.read_config()
    started = read_started(metadata, run.path)
    for name in ("run_name", "log_path"):
        named = given.values.get(name)
        if named is not None and Path(named).name != run.path.resolve().name:
            place = given.places[name]
            shown = f"{place} {named}" if place.startswith("--") else f"{place}: {named}"
            raise UsageError(f"{shown}: the run is {run.path}", hint="leave it out")
    asked = without_preset(given.values, given.places)
    values = {name: value for name, value in asked.items() if name not in _PLACES}
    config = with_options(started, as_started(values, started, metadata), given.places)
    server = ServerSettings.from_environment(given.values.get("base_url"))
    engine: Literal["tinker", "local"] = "tinker" if config.engine == "tinker" else "local"
    choice = Choice(engine, config.base_model, f"as {run.path} was started", server.base_url or config.base_url)
    return Plan(config, choice, run, metadata, started, given)


# Settings that may name a file or a folder.
_NAMES = ("data", "base_model", "eval_data", "load_checkpoint_path", "teacher", "teacher_system", "reward", "game")

# Where a run is, is known when it goes on.
_PLACES = ("log_path", "output_dir", "run_name")


def as_started(given: dict[str, Any], started: TrainConfig, metadata: dict[str, Any]) -> dict[str, Any]:
    """Settings given beside a run as the run's are kept, so that equal ones are equal."""
    from tinkertools.chat.rendering import choose_renderer

    found = {name: _from_anywhere(name, value) if name in _NAMES and value else value for name, value in given.items()}
    if found.get("engine") == "auto":
        del found["engine"]
    if found.get("base_url"):
        found["base_url"] = without_password(found["base_url"])
    if found.get("learning_rate") == "auto":
        found["learning_rate"] = resolve(started.changed(learning_rate="auto"), lambda _: None).learning_rate
    if "renderer" in found and choose_renderer(started.base_model, found["renderer"]).name == metadata.get("renderer"):
        found["renderer"] = started.renderer
    return found


def data_source(named: str, choice: Choice) -> str:
    """The data named, or those to take when none are: a file by its whole path, so that a run can go on anywhere.

    Raises:
        UsageError: none are named, there is no prepared file, and the base model is not the starter model.
    """
    if named or TRAINING_DATA.exists():
        return _whole_path(named or str(TRAINING_DATA))
    if is_starter(choice.base_model):
        return str(SAMPLE_TRAINING_DATA)
    raise UsageError(
        f"no --data, and no {TRAINING_DATA} here",
        hint="tt prepare --dataset FILE writes it, or name a file: tt train --data FILE",
    )


def _from_anywhere(name: str, value: str) -> str:
    """A setting that names something which may be a file, by its whole path: a run can go on from anywhere."""
    from tinkertools.games import whole_name

    for kind in ("score:", "judge:local:"):
        if name == "reward" and value.startswith(kind):
            return kind + _whole_path(value.removeprefix(kind))
    return whole_name(value) if name in ("game", "reward") else _whole_path(value)


def _whole_path(named: str) -> str:
    try:
        return str(Path(named).resolve()) if named and Path(named).exists() else named
    except OSError:  # a text that is too long for a name
        return named


def limits_of_model(config: TrainConfig, service: "Service | None") -> "Limits":
    """What the base model takes: as its folder says, and as the server says where one trains it and is spoken to."""
    import dataclasses

    from tinkertools.local.limits import Limits, limits_of

    if config.engine == "local":
        return limits_of(config.base_model)
    limits = limits_of(config.base_model) if Path(config.base_model).is_dir() else Limits(None, None)
    served = service.max_length(config.base_model) if service else None
    known = [length for length in (limits.max_length, served) if length]
    return dataclasses.replace(limits, max_length=min(known, default=None))


@dataclass(frozen=True)
class Start:
    """Weights to start from: what an engine takes them by, and their rank where somebody says it."""

    source: str
    rank: int | None


def start_of(config: TrainConfig, service: "Service") -> Start:
    """The weights that `load_checkpoint_path` names.

    Raises:
        RunError: there are none, or none where the engine could take them from.
    """
    from tinkertools import local
    from tinkertools.adapters.peft_files import rank_of
    from tinkertools.runs.directory import find_weights

    weights = find_weights(config.load_checkpoint_path, config.output_dir)
    if isinstance(service, local.ServiceClient):
        source = weights.source("local")
        return Start(source, rank_of(Path(source)))
    if weights.state_path is None:
        raise RunError(
            f"{weights.name} names no state on the server",
            hint="name a tinker:// path of weights, or a run that was trained there",
        )
    return Start(weights.state_path, service.rank_of(weights.state_path))


def rank_of_start(config: TrainConfig) -> int | None:
    """The rank of the weights to start from, where they lie here."""
    from tinkertools.adapters.peft_files import rank_of
    from tinkertools.runs.directory import find_weights

    if config.load_checkpoint_path is None:
        return None
    weights = find_weights(config.load_checkpoint_path, config.output_dir)
    return rank_of(weights.directory) if weights.directory else None


def resolve(config: TrainConfig, say: Notify) -> TrainConfig:
    """The configuration with `auto` replaced by the number in effect."""
    from tinkertools.local.limits import family_of

    rate = config.learning_rate
    if rate == "auto":
        try:
            rate, why = auto_learning_rate(*family_of(config.base_model))
        except ModelError:
            if config.engine == "local":
                raise
            rate, why = no_formula(f"{config.base_model}, whose configuration cannot be read here")
        rate, why = of_method(rate, why, config.method)
        say(f"learning rate: {rate:.3g} ({why})")
    return config.changed(learning_rate=rate)
