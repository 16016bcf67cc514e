"""Tracking, with the real libraries and no network: what arrives, what goes on, and what does not stop training."""

import builtins
import importlib.util
import json
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tinkertools.errors import UsageError
from tinkertools.runs.directory import RunDirectory
from tinkertools.tracking import check_trackers, tracking
from tinkertools.tracking import worker as workers
from tinkertools.tracking.trackers import TRACKERS, Mlflow, Start, TensorBoard, Wandb

SECRET = "planted-7c1d92ab-secret"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run in an empty folder, with nothing of this machine's logins, and a secret in the environment."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "wandb"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "SAY_AFTER_SECONDS", 60)  # a busy machine may take longer than usual
    (tmp_path / "home").mkdir()
    directory = RunDirectory(tmp_path / "checkpoints" / "lora_x")
    directory.path.mkdir(parents=True)
    return directory


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path / 'ml.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def step(number: int) -> dict[str, Any]:
    return {"step": number, "epoch": 1, "loss": 1 / number, "learning_rate": 1e-4, "tokens": 10 * number}


def track(run: RunDirectory, tracker: str, steps: range, notes: list[str] | None = None, **config: Any) -> None:
    """Add steps, and an evaluation of the last one, as a process does that begins with the first of them."""
    said: list[str] = []
    config = {"rank": 16, "nested": {"a": "b"}} | config
    with tracking(
        [tracker], run, project=None, name=None, config=config, next_step=steps[0], notify=said.append
    ) as tracked:
        for number in steps:
            tracked.add_step(step(number))
        tracked.add_eval({"step": steps[-1], "nll": 0.25, "perplexity": 1.5})
    if notes is None:
        assert said == []
    else:
        notes += said


def ids(run: RunDirectory) -> Any:
    return json.loads((run.path / "tracking.json").read_bytes())


def whole_records(folder: Path) -> list[Any]:
    """All records of an offline run: its own process writes them, and the last one says that there are no more."""
    found: list[Any] = []
    for _ in range(600):
        with suppress(Exception):  # not there yet, or half of a record: what is read then can be anything
            found = list(wandb_records(folder))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    pytest.fail(f"{folder} never ended: {[record.WhichOneof('record_type') for record in found]}")


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log after seven bytes, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content = next(folder.glob("*.wandb")).read_bytes()
    at, joined = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no room for a header
            at += -at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        joined += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(joined)
            yield record
            joined = b""


def test_wandb_gets_values_and_steps_and_goes_on_by_id(run: RunDirectory) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.exit, sys.excepthook
    track(run, "wandb", range(1, 4))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.exit, sys.excepthook) == handlers
    known = ids(run)["wandb"]
    track(run, "wandb", range(3, 5))
    assert ids(run)["wandb"] == known
    folders = sorted((run.path / "wandb").glob("offline-run-*"))
    # Two of one second are told apart by what follows the id.
    assert len(folders) == 2 and all(known["id"] in folder.name for folder in folders)
    found, begun, kinds = [], [], set()
    for record in (record for folder in folders for record in whole_records(folder)):
        kinds.add(record.WhichOneof("record_type"))
        if record.HasField("run"):
            begun.append((record.run.run_id, record.run.project, record.run.display_name))
            assert not record.run.git.commit
        if record.HasField("history"):
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found.append({key: value for key, value in items.items() if not key.startswith("_")})
    assert set(begun) == {(known["id"], "tinkertools", "lora_x")}
    losses = [(row["step"], row["train/loss"]) for row in found if "train/loss" in row]
    # Each folder is a process; the second took step 3 again.
    assert sorted(losses) == sorted([(1, 1.0), (2, 0.5), (3, 1 / 3), (3, 1 / 3), (4, 0.25)])
    assert [row["eval/nll"] for row in found if "eval/nll" in row] == [0.25, 0.25]
    assert "stats" not in kinds and "output_raw" not in kinds
    assert secret_files(run) == []


def test_tensorboard_gets_values_and_hides_what_is_written_again(run: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(run, "tensorboard", range(1, 6))
    track(run, "tensorboard", range(4, 7))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    rows = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert rows == [(n, pytest.approx(1 / n)) for n in range(1, 7)]
    assert [(event.step, event.value) for event in events.Scalars("eval/nll")] == [(6, 0.25)]
    assert secret_files(run) == []


@pytest.mark.slow
def test_mlflow_gets_values_goes_on_by_id_and_begins_anew_when_deleted(run: RunDirectory, mlflow_store: str) -> None:
    from mlflow import MlflowClient

    track(run, "mlflow", range(1, 4))
    known = ids(run)["mlflow"]
    track(run, "mlflow", range(3, 5), rank=32)
    assert ids(run)["mlflow"] == known
    client = MlflowClient(mlflow_store)
    found = client.get_run(known["id"])
    history = client.get_metric_history(known["id"], "train/loss")
    assert sorted({(metric.step, metric.value) for metric in history}) == [(n, 1 / n) for n in range(1, 5)]
    assert client.get_metric_history(known["id"], "eval/nll")[-1].value == 0.25
    assert found.data.params == {"rank": "16", "nested.a": "b"}
    assert found.info.run_name == "lora_x" and found.info.status == "FINISHED"
    assert secret_files(run) == []
    client.delete_run(known["id"])
    notes: list[str] = []
    track(run, "mlflow", range(5, 6), notes)
    assert ids(run)["mlflow"]["id"] != known["id"]
    assert notes == [f"mlflow: the tracked run {known['id']} cannot go on (it is deleted), a new one begins"]


def test_trackio_gets_values_and_goes_on_by_name(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    track(run, "trackio", range(1, 4))
    known = ids(run)["trackio"]
    track(run, "trackio", range(3, 5))
    assert ids(run)["trackio"] == known == {"id": "lora_x", "project": "tinkertools"}
    assert capfd.readouterr().out == ""
    with sqlite3.connect(next((tmp_path / "trackio").glob("**/*.db"))) as store:
        rows = store.execute("select run_id, step, metrics from metrics").fetchall()
    values = [(at, json.loads(text)) for _, at, text in rows]
    found = {(at, metrics["train/loss"]) for at, metrics in values if "train/loss" in metrics}
    assert sorted(found) == [(n, 1 / n) for n in range(1, 5)]
    assert len({run_id for run_id, _, _ in rows}) == 1
    assert secret_files(run) == []


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard", "mlflow"])
def test_library_that_fails_is_switched_off_with_one_line(
    tracker: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:////dev/null/{SECRET}/ml.db")
    # Files where the libraries want folders.
    for name in ("wandb", "tensorboard"):
        (run.path / name).write_text("")
    if tracker == "wandb":  # it would take another folder
        monkeypatch.setenv("WANDB_MODE", "no such mode")
    notes: list[str] = []
    track(run, tracker, range(1, 4), notes)
    assert len(notes) == 1
    assert notes[0].startswith(f"{tracker} is switched off, training goes on: ")
    assert SECRET not in notes[0] and "\n" not in notes[0]
    assert not (run.path / "tracking.json").exists()


class Fake:
    """A tracker that does one thing when it is begun, told of a metric, or finished."""

    def __init__(self, act: Any, when: str) -> None:
        self.act, self.when = act, when
        self.abandoned = 0

    def _at(self, moment: str) -> None:
        if moment == self.when:
            self.act()

    def begin(self, start: Start) -> dict[str, str] | None:
        self._at("begin")
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._at("log")

    def finish(self) -> None:
        self._at("finish")

    def abandon(self) -> None:
        self.abandoned += 1

    def hint(self, start: Start) -> str:
        return "look there"


@pytest.mark.parametrize("when", ["begin", "log", "finish"])
@pytest.mark.parametrize("error", [ValueError(f"bad {SECRET}\nline"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_a_tracker_raises_is_one_note(
    when: str, error: BaseException, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(TRACKERS, "wandb", lambda: Fake(fail, when))
    notes: list[str] = []
    track(run, "wandb", range(1, 50), notes)
    assert len(notes) == 1 and notes[0].endswith("; look there")
    assert type(error).__name__ in notes[0] and SECRET not in notes[0] and "\n" not in notes[0]


@pytest.mark.parametrize("when", ["begin", "log", "finish"])
def test_tracker_that_hangs_is_waited_for_a_bounded_time(
    when: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(workers, "SAY_AFTER_SECONDS", 0.1)
    release = threading.Event()
    fake = Fake(release.wait, when)
    monkeypatch.setitem(TRACKERS, "wandb", lambda: fake)
    notes: list[str] = []
    try:
        track(run, "wandb", range(1, 1000), notes)
    finally:
        release.set()
    assert [note.split(":")[0] for note in notes] == ["wandb", "wandb is switched off, training goes on"]
    assert "waiting until it has the last entries" in notes[0] and "did not take the last entries" in notes[1]
    assert fake.abandoned == 1


def test_leaving_at_once_does_not_wait(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LEAVING_SECONDS", 0.0)
    release = threading.Event()
    monkeypatch.setitem(TRACKERS, "wandb", lambda: Fake(release.wait, "begin"))
    notes: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt),
        tracking(["wandb"], run, project=None, name=None, config={}, next_step=1, notify=notes.append),
    ):
        raise KeyboardInterrupt
    release.set()
    assert len(notes) == 1


def test_tracker_whose_queue_is_full_is_switched_off(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MOST_WAITING", 3)
    monkeypatch.setattr(workers, "WAIT_SECONDS", 0.0)
    release = threading.Event()
    monkeypatch.setitem(TRACKERS, "wandb", lambda: Fake(release.wait, "begin"))
    notes: list[str] = []
    track(run, "wandb", range(1, 10), notes)
    release.set()
    assert notes == ["wandb is switched off, training goes on: it takes nothing any more; look there"]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_missing_library_names_the_command(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        check_trackers([tracker])
    assert error.value.hint == f"python -m pip install 'tinkertools[{tracker}]'"


def test_folder_of_records_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match="is not installed"):
        check_trackers(["wandb"])


def test_wandb_without_login_is_refused_and_nothing_is_asked(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("it asks")

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(UsageError, match="nobody is logged in"):
        check_trackers(["wandb"])
    (run.path.parents[1] / "home" / "netrc").write_text("machine example.com login user password x\n")
    with pytest.raises(UsageError, match="nobody is logged in"):
        check_trackers(["wandb"])


@pytest.mark.parametrize("where", ["offline", "key", "netrc", "own server", "settings", "mode in settings"])
def test_wandb_login_is_found_where_wandb_looks(where: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = run.path.parents[1] / "home"
    if where != "offline":
        monkeypatch.delenv("WANDB_MODE")
    if where == "key":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    if where == "own server":
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    if where in ("netrc", "own server"):
        host = "api.wandb.ai" if where == "netrc" else "wandb.example.com"
        (home / "netrc").write_text(f"machine {host} login user password {'k' * 40}\n")
    if "settings" in where:
        (home / "wandb").mkdir()
        line = "mode = offline" if "mode" in where else f"api_key = {'k' * 40}"
        (home / "wandb" / "settings").write_text(f"[default]\n{line}\n")
    check_trackers(["wandb"])


def secret_files(run: RunDirectory) -> list[Path]:
    """The files of the test's folder that hold the planted secret."""
    root = run.path.parents[1]
    return [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_trackers_are_the_named_ones() -> None:
    assert list(TRACKERS) == ["wandb", "trackio", "tensorboard", "mlflow"]
    assert [TRACKERS[name] for name in ("wandb", "tensorboard", "mlflow")] == [Wandb, TensorBoard, Mlflow]
