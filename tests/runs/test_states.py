"""States are replaced, killed over and damaged in any order: while there is a whole one, it is found."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tinkertools.errors import RunError
from tinkertools.runs import states
from tinkertools.runs.directory import RunDirectory
from tinkertools.runs.log import TrainingLog

FOLDERS = ("training_state", ".training_state.previous", ".training_state.next")


class Killed(BaseException):
    """The process is gone: nothing that comes after runs, not even what follows `except` and `finally`."""


def killed_at(point: int, run: Callable[[], object]) -> bool:
    """Run with a kill before the given call to the file system; False where there are fewer."""
    calls = 0
    with pytest.MonkeyPatch.context() as patch:

        def counted(function: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls > point:  # all that comes after, in `finally` too
                    raise Killed
                return function(*args, **kwargs)

            return call

        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            run()
        except Killed:
            return True
    return False


def saved(folder: Path, step: int) -> Path:
    """What an engine saves: two files whose content tells the step."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"%d" % step * 100)
    (folder / "optimizer.json").write_text(json.dumps({"step": step}))
    return folder


def holds(state: states.State) -> bool:
    """Whether the files of a state are those of its step."""
    return (state.directory / "adapter_model.safetensors").read_bytes() == b"%d" % state.step * 100


class Runs(RuleBasedStateMachine):
    """A run directory under any sequence of steps, saves, kills, damages and resumes."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.run = RunDirectory(self.root / "run")
        self.run.path.mkdir()
        self.log = TrainingLog(self.run.log)
        self.log.__enter__()
        self.confirmed = 0  # the newest state that a save came back from, and that nobody damaged
        self.done = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(count=st.integers(1, 4))
    def train(self, count: int) -> None:
        for _ in range(count):
            self.done += 1
            self.log.add_step({"step": self.done, "loss": 1 / self.done})

    @precondition(lambda self: self.done > 0)
    @rule()
    def save(self) -> None:
        self.run.take_state(saved(self.root / "engine", self.done), self.done, {})
        self.confirmed = self.done
        assert self.found() == self.done

    @precondition(lambda self: self.done > 0)
    @rule(point=st.integers(0, 60))
    def save_and_be_killed(self, point: int) -> None:
        folder = saved(self.root / "engine", self.done)
        good = self.good()
        if not killed_at(point, lambda: self.run.take_state(folder, self.done, {})):
            self.confirmed = self.done
        # Never fewer states to go on from than before, but for the oldest of them once a newer one is whole.
        assert len(self.good()) >= min(len(good), 2)
        assert self.found() in (self.confirmed, self.done)
        self.resume()

    @rule(point=st.integers(0, 20))
    def die_and_be_killed_while_resuming(self, point: int) -> None:
        before = self.found()
        killed_at(point, lambda: self.run.recover_state(lambda _: None))
        assert self.found() == before
        self.resume()

    @precondition(lambda self: len(self.good()) > 1)
    @rule(cut=st.booleans(), file=st.sampled_from(["adapter_model.safetensors", "optimizer.json", "state.json"]))
    def damage_the_newest(self, cut: bool, file: str) -> None:
        newest, _ = states.newest(self.run.path)
        assert newest is not None
        path = newest.directory / file
        content = path.read_bytes()
        path.write_bytes(content[:-3] if cut else content.replace(b"%d" % newest.step, b"%d" % (newest.step + 1)))
        said: list[str] = []
        state = self.run.recover_state(said.append)
        assert state is not None
        assert state.step <= newest.step
        assert len(said) >= 1
        assert any(str(newest.directory) in line for line in said)
        self.confirmed = state.step
        self.resume()

    def resume(self) -> None:
        """As the command does: what is there decides where to go on, and the log forgets the rest."""
        state = self.run.recover_state(lambda _: None)
        self.done = state.step if state else 0
        self.confirmed = self.done
        self.log = TrainingLog.reopen(self.run.log, self.done + 1)
        self.log.__enter__()

    def good(self) -> list[states.State]:
        read = [states._read(self.run.path / name) for name in FOLDERS if (self.run.path / name).is_dir()]
        return [state for state in read if isinstance(state, states.State)]

    def found(self) -> int:
        state, _ = states.newest(self.run.path)
        return state.step if state else 0

    @invariant()
    def the_log_is_valid_and_complete(self) -> None:
        if not hasattr(self, "run"):
            return
        content = json.loads(self.run.log.read_bytes())
        assert [entry["step"] for entry in content["steps"]] == list(range(1, self.done + 1))

    @invariant()
    def what_is_found_is_what_was_saved(self) -> None:
        if not hasattr(self, "run"):
            return
        assert self.found() == self.confirmed == self.run.next_step() - 1
        assert all(holds(state) for state in self.good())


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_every_point_of_a_save(tmp_path: Path) -> None:
    """Killed before each call to the file system in turn, the third save leaves the second state or the third."""
    for point in range(1000):
        run = tmp_path / f"run_{point}"
        run.mkdir()
        for step in (1, 2):
            states.take(run, saved(tmp_path / "engine", step), step, {})
        folder = saved(tmp_path / "engine", 3)
        done = not killed_at(point, lambda run=run, folder=folder: states.take(run, folder, 3, {}))  # type: ignore[misc]
        state, problems = states.recover(run)
        assert problems == []
        assert state is not None
        assert state.step in ((3,) if done else (2, 3))
        assert holds(state)
        assert state.directory.name == "training_state"
        if done:
            assert point > 10
            return
    pytest.fail("no end")


def test_damage_is_named_and_the_previous_state_taken(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    said: list[str] = []
    assert run.recover_state(said.append) is None
    for step in (4, 8):
        run.take_state(saved(tmp_path / "engine", step), step, {})
    torn = tmp_path / "training_state" / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    state = run.recover_state(said.append)
    assert state is not None
    assert (state.step, state.next_step, run.next_step()) == (4, 5, 5)
    assert said == [f"{torn} was damaged or changed after it was written: going on from the state of step 4"]
    # The damaged one gives way; the good one stays until there is a newer one.
    run.take_state(saved(tmp_path / "engine", 8), 8, {})
    assert states.newest(tmp_path)[1] == []
    assert run.next_step() == 9
    previous = states._read(tmp_path / ".training_state.previous")
    assert isinstance(previous, states.State)
    assert previous.step == 4


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), "state.json is damaged: "),
        (lambda folder: (folder / "state.json").unlink(), " has no state.json"),
        (lambda folder: (folder / "optimizer.json").unlink(), " has no optimizer.json"),
        (
            lambda folder: (folder / "state.json").write_text(
                (folder / "state.json").read_text().replace('"step": 1', '"step": 9')
            ),
            "state.json was changed after it was written",
        ),
        (lambda folder: (folder / "optimizer.json").write_text("{}"), "optimizer.json was damaged or changed"),
    ],
)
def test_every_damage_has_its_words(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    run = RunDirectory(tmp_path)
    run.take_state(saved(tmp_path / "engine", 1), 1, {})
    damage(run.state)
    with pytest.raises(RunError) as raised:
        run.recover_state(lambda _: None)
    assert words in raised.value.message
    assert raised.value.hint == "no state of the run is whole: start a new run, or put the files back from a copy"


def test_a_state_without_checksums_is_taken(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    folder = saved(tmp_path / "training_state", 5)
    (folder / "state.json").write_text('{"step": 5, "paths": {"state": "tinker://x/weights/y"}, "next_step": 6}')
    state = RunDirectory(tmp_path).recover_state(lambda _: None)
    assert state is not None
    assert (state.next_step, state.server_path) == (6, "tinker://x/weights/y")
    assert holds(state)
    with pytest.raises(RunError, match="names no state on a server"):
        _ = states.State(folder, 1, {}).server_path
