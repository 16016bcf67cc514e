"""`tt train --resume`: what may change and what not, what stops a run, old checkpoints, and the space on the disk."""

import json
import re
import shutil
import signal
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from interrupting import interrupted_at, send
from run_files import log_of, sums, write_rows
from safetensors.torch import load_file, save_file

from tinkertools import space
from tinkertools.config import TrainConfig
from tinkertools.fingerprints import of_base_model
from tinkertools.loop import Ended
from tinkertools.runs.directory import RunDirectory
from tinkertools.runs.pruning import keep_newest

Tt = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"
ROWS, BATCH, STEPS, STOPPED_AFTER = 12, 4, 6, 3
PEAK = 1e-3
RUN = Path("checkpoints/run")

# A run that was stopped, and a whole one: made once, and copied.
_made: dict[str, Path] = {}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """A folder with data and a base model."""
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(tiny, folder / "model")
    write_rows(folder / "data.jsonl", sums(ROWS))
    return folder


@pytest.fixture
def new(tt: Tt, place: Path, monkeypatch: pytest.MonkeyPatch) -> Tt:
    """Start a run; curves take most of its time."""
    monkeypatch.setattr("tinkertools.runs.plots.write_plots", lambda *_: None)
    return lambda *more: tt(
        "train", "--base-model", place / "model", "--data", place / "data.jsonl", "--batch", BATCH, "--max-steps",
        STEPS, "--save-every", 2, "--learning-rate", PEAK, "--rank", 2, "--run-name", "run", *more,
    )  # fmt: skip


@pytest.fixture
def stopped(new: Tt, place: Path) -> RunDirectory:
    """A run that was stopped after three of six steps."""
    if "stopped" not in _made:
        with interrupted_at(STOPPED_AFTER - 1):
            found = new()
        assert found.code == 130, found.err
        _made["stopped"] = shutil.copytree(RUN, place / "stopped")
    else:
        shutil.copytree(_made["stopped"], RUN)
    return RunDirectory(RUN)


@pytest.fixture
def whole(new: Tt, place: Path) -> bytes:
    """The final weights of a run that was never stopped."""
    if "whole" not in _made:
        found = new("--output-dir", "elsewhere")
        assert found.code == 0, found.err
        _made["whole"] = shutil.copytree("elsewhere/run", place / "whole")
    return (_made["whole"] / "final_lora_weights" / WEIGHTS).read_bytes()


def config_of(run: RunDirectory) -> dict[str, Any]:
    return run.read_config()


def change_config(run: RunDirectory, change: Callable[[dict[str, Any]], Any]) -> None:
    values = run.read_config()
    change(values)
    run.write_config(values)


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def rates(run: RunDirectory) -> list[float]:
    return [entry["learning_rate"] for entry in log_of(run)["steps"]]


# What may change.


def test_options_of_the_same_value_change_nothing(tt: Tt, stopped: RunDirectory, place: Path, whole: bytes) -> None:
    before = (stopped.path / "config.json").read_bytes()
    found = tt(
        "train", "--resume", "latest", "--rank", 2, "--batch", BATCH, "--learning-rate", "0.001", "--max-steps", STEPS,
        "--save-every", 2, "--data", place / "data.jsonl", "--base-model", place / "model", "--engine", "auto",
        "--renderer", "chat-template", "--train-on-what", "all-assistant-messages", "--run-name", "run",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert f"going on with step {STOPPED_AFTER + 1} of {STEPS}\n" in found.err
    assert "from now on" not in found.err
    assert (stopped.path / "config.json").read_bytes() == before
    assert (stopped.final_weights / WEIGHTS).read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", 32], "--rank 32: the run was started with 2"),
        (["--batch", 2, "--seed", 1], "--batch 2: the run was started with 4; --seed 1: the run was started with 0"),
        (["--learning-rate", "2e-3"], "--learning-rate 0.002: the run was started with 0.001"),
        (["--learning-rate", "auto"], "the run was started with 0.001"),
        (["--lr-schedule", "cosine"], "--lr-schedule cosine: the run was started with linear"),
        (["--warmup-steps", 1], "--warmup-steps 1: the run was started with 0"),
        (["--engine", "tinker"], "--engine tinker: the run was started with local"),
        (["--max-length", 64], "--max-length 64: the run was started with 0"),
        (["--overlength", "drop"], "--overlength drop: the run was started with error"),
        (
            ["--train-on-what", "ALL_TEXT"],
            "--train-on-what ALL_TOKENS: the run was started with ALL_ASSISTANT_MESSAGES",
        ),
        (["--renderer", "qwen3"], "--renderer qwen3: the run was started with auto"),
        (["--run-name", "other"], "--run-name other: the run is checkpoints/run"),
        (["--base-url", "http://a:1"], "--base-url http://a:1: the run was started on this machine, and goes on here"),
        (["--max-steps", 5], "--max-steps 5: 5 steps in all, and the run was started with 6"),
        (["--max-steps", 1], "--max-steps 1: 1 step in all, and the run has done 3 already"),
        (["--epochs", 1, "--max-steps", 0], "--max-steps 0 --epochs 1: 3 steps in all, and the run was started with 6"),
        (["--keep-last", -1], "--keep-last is -1, but must be a whole number, 0 or more"),
    ],
)
def test_what_would_change_the_result_is_refused(
    tt: Tt, stopped: RunDirectory, options: list[object], words: str
) -> None:
    before = contents(stopped.path)
    found = tt("train", "--resume", "latest", *options)
    assert (found.code, found.out) == (2, "")
    assert words in found.flat
    assert "→" in found.err
    assert contents(stopped.path) == before


def test_more_steps_and_a_schedule_that_follows(tt: Tt, stopped: RunDirectory) -> None:
    found = tt("train", "--resume", RUN, "--max-steps", 9, "--save-every", 4, "--keep-last", 1, "--timeout", 5)
    assert found.code == 0, found.err
    assert "going on with step 4 of 9\n" in found.err
    assert "--max-steps 9 from now on (before: 6)\n" in found.err
    assert "--save-every 4 from now on (before: 2)\n" in found.err
    assert "steps: 9 in all (before: 6); the learning rate follows the new number from step 4 on\n" in found.err
    assert rates(stopped) == [pytest.approx(PEAK * (1 - (step - 1) / (6 if step <= 3 else 9))) for step in range(1, 10)]
    assert [step for step, _ in stopped.checkpoints()] == [8]
    saved = config_of(stopped)
    assert (saved["config"]["max_steps"], saved["config"]["save_every"], saved["config"]["keep_last"]) == (9, 4, 1)
    assert saved["changes"] == [{"step": 4, "max_steps": [6, 9], "save_every": [2, 4], "keep_last": [0, 1]}]


def test_the_next_resume_knows_what_was_changed(tt: Tt, stopped: RunDirectory) -> None:
    with interrupted_at(4, signal.SIGTERM):
        found = tt("train", "--resume", RUN, "--epochs", 3)
    assert found.code == 143, found.err
    assert "--max-steps 0 from now on (before: 6)\n" in found.err
    assert "stopped after step 5 of 9; the state is saved" in found.err
    assert "going on with step 6 of 9\n" in (again := tt("train", "--resume", RUN)).err
    assert again.code == 0
    assert len(rates(stopped)) == 9


def test_data_may_move(tt: Tt, stopped: RunDirectory, place: Path, whole: bytes) -> None:
    shutil.copy(place / "data.jsonl", "moved.jsonl")
    found = tt("train", "--resume", RUN, "--data", "moved.jsonl")
    assert found.code == 0, found.err
    moved = str(Path("moved.jsonl").resolve())
    assert f"--data {moved} from now on (before: {place / 'data.jsonl'})\n" in found.err
    assert config_of(stopped)["config"]["data"] == moved
    assert (stopped.final_weights / WEIGHTS).read_bytes() == whole


# What must be as it was.


@pytest.fixture
def restored(place: Path) -> Iterator[None]:
    """The folder of data and base model, put back afterwards."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    yield
    for path, content in before.items():
        path.write_bytes(content)


def change_data(place: Path) -> None:
    path = place / "data.jsonl"
    path.write_text(path.read_text().replace("plus", "and"))


def change_tokenizer(place: Path) -> None:
    path = place / "model" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["merges"] = values["model"]["merges"][:-1]
    path.write_text(json.dumps(values))


def change_template(place: Path) -> None:
    path = place / "model" / "chat_template.jinja"
    path.write_text(path.read_text() + "\n{# changed #}")


def change_weights(place: Path) -> None:
    path = place / "model" / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[-1] += 1
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([change_data], "the data in {data} have changed since checkpoints/run was started"),
        ([change_tokenizer], "the tokenizer has changed since checkpoints/run was started"),
        ([change_template], "the chat template has changed since checkpoints/run was started"),
        ([change_weights], "the base model {model} has changed since checkpoints/run was started"),
        (
            [change_data, change_weights, change_template],
            "the data in {data}, the base model {model} and the chat template have changed since checkpoints/run was",
        ),
    ],
)
def test_what_changed_is_named(
    tt: Tt, stopped: RunDirectory, place: Path, restored: None, change: list[Callable[[Path], None]], words: str
) -> None:
    for one in change:
        one(place)
    found = tt("train", "--resume", "latest")
    assert (found.code, found.out) == (1, "")
    assert f"error: {words.format(data=place / 'data.jsonl', model=place / 'model')}" in found.err
    assert not stopped.finished


def test_another_renderer_is_named_with_the_packages(tt: Tt, stopped: RunDirectory) -> None:
    def change(values: dict[str, Any]) -> None:
        values["fingerprints"]["renderer"] = "qwen3 of tml-renderers 0.1"
        values["versions"]["tml-renderers"] = "0.1"

    change_config(stopped, change)
    found = tt("train", "--resume", "latest")
    assert found.code == 1
    assert "the renderer (then qwen3 of tml-renderers 0.1, now chat-template) has changed since" in found.err
    assert "→ put back what it was, or start a new run (the run was started with tml-renderers 0.1, now " in found.err


def test_other_data_beside_resume_are_refused(tt: Tt, stopped: RunDirectory, place: Path) -> None:
    Path("other.jsonl").write_text((place / "data.jsonl").read_text().replace("plus", "and"))
    found = tt("train", "--resume", "latest", "--data", "other.jsonl")
    assert found.code == 1
    other = Path("other.jsonl").resolve()
    assert (
        f"--data {other}: the run was started with {place / 'data.jsonl'}, and the conversations are not" in found.err
    )


def test_an_older_run_goes_on_with_a_note(tt: Tt, stopped: RunDirectory, whole: bytes) -> None:
    now = config_of(stopped)["fingerprints"]

    def make_older(values: dict[str, Any]) -> None:
        del values["fingerprints"], values["config"]["keep_last"]

    change_config(stopped, make_older)
    found = tt("train", "--resume", "latest")
    assert found.code == 0, found.err
    assert (
        "note: tinkertools 0.1.0, which started the run, kept no fingerprints: whether the tokenizer, the chat "
        "template, the renderer and the base model are the same cannot be told; from now on it can\n" in found.err
    )
    assert (stopped.final_weights / WEIGHTS).read_bytes() == whole
    assert config_of(stopped)["fingerprints"] == now
    assert "changes" not in config_of(stopped)


@pytest.mark.parametrize(
    ("change", "words", "hint"),
    [
        (
            lambda values: values.update(version=3, tinkertools="9.0"),
            "checkpoints/run was written by tinkertools 9.0 in format 3; this version reads format 2",
            "go on with it in tinkertools 9.0",
        ),
        (
            lambda values: values["config"].update(lookahead=2),
            "checkpoints/run/config.json: unknown settings: lookahead",
            "the run was written by another version of tinkertools; install that version to go on with it",
        ),
        (
            lambda values: values.pop("config"),
            "checkpoints/run/config.json is damaged: it has no 'config'",
            "put a copy of it back, or start a new run",
        ),
        (
            lambda values: values["config"].update(batch=None),
            "checkpoints/run/config.json is damaged: ",
            "put a copy of it back, or start a new run",
        ),
    ],
)
def test_runs_of_other_versions_and_damaged_ones(
    tt: Tt, stopped: RunDirectory, change: Callable[[dict[str, Any]], Any], words: str, hint: str
) -> None:
    change_config(stopped, change)
    found = tt("train", "--resume", "latest")
    assert (found.code, found.out) == (1, "")
    assert f"error: {words}" in found.err
    assert f"  → {hint}\n" in found.err


def test_a_finished_run_says_so(tt: Tt, whole: bytes) -> None:
    shutil.copytree(_made["whole"], RUN)
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    found = tt("train", "--resume", RUN, "--rank", 2)
    assert (found.code, found.out) == (0, "checkpoints/run\n")
    assert found.err == (
        "checkpoints/run is finished: there is nothing left to train\n"
        "next            tt compare checkpoints/run --compare-base\n"
    )
    longer = tt("train", "--resume", RUN, "--max-steps", 9)
    assert longer.code == 2
    assert "--max-steps 9: checkpoints/run is finished, with its learning rate at its end" in longer.err
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == before


def test_samples_of_a_base_model(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large tensors the ends are read; a file that is no safetensors, or cut, has a fingerprint all the same."""
    monkeypatch.setattr("tinkertools.fingerprints._SAMPLE", 64)
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    first = of_base_model(str(model), "local")
    assert of_base_model(tiny, "local") == first
    found = [first]
    for content in (b"oops", b"\xff" * 100, (model / "model.safetensors").read_bytes()[:-1]):
        (model / "model.safetensors").write_bytes(content)
        found.append(of_base_model(str(model), "local"))
    (model / "config.json").write_bytes((model / "config.json").read_bytes() + b"\n")
    found.append(of_base_model(str(model), "local"))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    found.append(of_base_model(str(model), "local"))
    assert None not in found
    assert len(set(found)) == len(found)


def test_a_name_on_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "snapshots" / "abc123" / "config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(cached))
    assert of_base_model("some/model", "local") == "commit abc123"
    assert of_base_model("some/model", "tinker") == "some/model"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    assert of_base_model("some/model", "local") is None


# What stops a run.


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_saves(new: Tt, tt: Tt, whole: bytes, by: signal.Signals, code: int) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with interrupted_at(2, by):
        found = new()
    run = RunDirectory(RUN)
    assert (found.code, found.out) == (code, "")
    assert found.err.endswith(
        "stopping: finishing the steps in flight and saving the state (Ctrl-C again leaves at once)\n"
        "error: stopped after step 3 of 6; the state is saved\n"
        "  → go on with it: tt train --resume checkpoints/run\n"
    )
    assert (run.next_step(), len(rates(run)), run.finished) == (4, 3, False)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert tt("train", "--resume", "latest").code == 0
    assert (run.final_weights / WEIGHTS).read_bytes() == whole


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGTERM), 143),
        ((signal.SIGINT, signal.SIGTERM), 143),
    ],
)
def test_the_second_signal_leaves_at_once(
    new: Tt, tt: Tt, whole: bytes, signals: tuple[signal.Signals, ...], code: int
) -> None:
    with interrupted_at(4, *signals):
        found = new()
    run = RunDirectory(RUN)
    assert (found.code, found.out) == (code, "")
    assert found.err.endswith(
        "error: stopped at once; what checkpoints/run holds is whole\n"
        "  → go on with it: tt train --resume checkpoints/run\n"
    )
    assert run.next_step() == 3
    assert tt("train", "--resume", "latest").code == 0
    assert (run.final_weights / WEIGHTS).read_bytes() == whole


def test_sigterm_before_the_first_step_leaves_nothing(new: Tt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinkertools.methods.sft.read_conversations", lambda *_: send(signal.SIGTERM))
    found = new()
    assert (found.code, found.out) == (143, "")
    assert "error: stopped before the first step; nothing was written\n  → run the same command again\n" in found.err
    assert not Path("checkpoints").exists()


# Old checkpoints.


def test_only_the_newest_checkpoints_are_kept(new: Tt, whole: bytes) -> None:
    found = new("--save-every", 1, "--keep-last", 2)
    assert found.code == 0, found.err
    run = RunDirectory(RUN)
    assert [step for step, _ in run.checkpoints()] == [4, 5]
    assert not [path.name for path in RUN.iterdir() if path.name.startswith(".")]
    assert (run.final_weights / WEIGHTS).read_bytes() == whole
    assert config_of(run)["config"]["keep_last"] == 2


def test_checkpoints_on_a_server_and_what_a_killed_process_left(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (9, 10, 2):
        run.take_checkpoint(None, step, {"sampler": f"tinker://a/sampler_weights/{step}"})
    (tmp_path / ".checkpoint_step_1.gone-7").mkdir()
    keep_newest(run, 0)
    assert [step for step, _ in run.checkpoints()] == [2, 9, 10]
    keep_newest(run, 2)
    assert [step for step, _ in run.checkpoints()] == [9, 10]
    assert [step for step, _ in run.server_paths()] == [9, 10]
    assert not list(tmp_path.glob(".*gone*"))


def test_a_checkpoint_goes_out_of_sight_before_its_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2):
        run.take_checkpoint(None, step, {})
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda _: seen.append([step for step, _ in run.checkpoints()]))
    keep_newest(run, 1)
    assert seen == [[2]]


# Space on the disk.

Usage = namedtuple("Usage", "total used free")


def give_space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9, 0, free))


def test_the_estimate_is_what_a_run_writes(place: Path, whole: bytes) -> None:
    run = RunDirectory(_made["whole"])
    config = TrainConfig.from_json(config_of(run)["config"], run.path)
    needs = space.needs_of(config, STEPS)
    assert needs is not None
    assert (run.final_weights / WEIGHTS).stat().st_size == pytest.approx(needs.adapter, rel=0.02)
    assert space.used_space(run.state) == pytest.approx(3 * needs.adapter, rel=0.1)
    assert (needs.checkpoints, needs.states) == (2, 3)


def test_a_run_that_does_not_fit_is_refused(
    new: Tt, tt: Tt, stopped: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig.from_json(config_of(stopped)["config"], RUN)
    needs = space.needs_of(config, 100)
    assert needs is not None
    adapter = needs.adapter
    assert (needs.checkpoints, needs.total) == (49, 59 * adapter + 100 * 300)
    more = ["--run-name", "more", "--max-steps", 100]
    give_space(monkeypatch, 20 * adapter)
    found = new(*more)
    assert (found.code, found.out) == (1, "")
    words = space.in_words
    assert (
        f"error: the run needs about {words(needs.total)} of disk space, and checkpoints has {words(20 * adapter)} "
        f"free: 49 checkpoints and the final weights of {words(adapter)}, 3 states of {words(3 * adapter)} while one "
        "is replaced\n"
    ) in found.err
    fits = next(n for n in range(49, 0, -1) if (n + 10) * adapter + 30_000 <= 20 * adapter)
    assert f"  → free some space, or keep fewer checkpoints: --keep-last {fits} fits\n" in found.err
    assert not Path("checkpoints/more").exists()
    monkeypatch.setattr("tinkertools.loop.Loop.run", lambda *_: Ended(1, interrupted=True))
    assert new(*more, "--keep-last", fits).code == 130
    give_space(monkeypatch, 5 * adapter)
    found = new(*more, "--run-name", "most")
    least = words(11 * adapter + 30_000)
    assert f"  → free some space; with --keep-last 1 it needs {least} in all\n" in found.err
    # A run that goes on needs less by what it has written.
    found = tt("train", "--resume", RUN, "--max-steps", 100)
    left = words(needs.total - space.used_space(RUN))
    assert (
        f"error: the run needs about {left} of disk space, and checkpoints has {words(5 * adapter)} free" in found.err
    )
    assert "; then go on with step 4: tt train --resume checkpoints/run\n" in found.err


def test_a_server_only_warns(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(base_model=tiny, engine="tinker", save_every=1)
    needs = space.needs_of(config, 10)
    assert needs is not None
    assert (needs.checkpoints, needs.states) == (9, 0)
    give_space(monkeypatch, 0)
    said: list[str] = []
    space.check_space(RunDirectory(tmp_path / "run"), config, needs, said.append)
    (line,) = said
    assert line.startswith("the run needs about ")
    assert "9 checkpoints and the final weights of " in line
    assert "states" not in line
    unknown = TrainConfig(base_model="some/model", engine="tinker", download=False)
    assert space.needs_of(unknown, 10) is None


def test_a_full_disk_stops_the_run_with_its_state(
    tt: Tt, stopped: RunDirectory, small_disk: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for what there is, and not for the next state beside it.
    run = RunDirectory(Path(shutil.move(RUN, small_disk / "run")))
    with monkeypatch.context() as patched:
        patched.setattr("tinkertools.space.check_space", lambda *_: None)
        found = tt("train", "--resume", run.path)
    assert (found.code, found.out) == (1, "")
    words = r"error: the disk is full: .* could not be written; the run needs about \d+ kB more, and \d+ kB are free\n"
    assert re.search(words, found.err)
    hint = "free some space, or keep fewer checkpoints with --keep-last; then go on with step 4"
    assert f"  → {hint}: tt train --resume {run.path}\n" in found.err
    assert run.next_step() == 4
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    found = tt("train", "--resume", run.path)
    assert found.code == 0, found.err
    assert (run.final_weights / WEIGHTS).read_bytes() == whole
