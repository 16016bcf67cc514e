"""What the tests of kills share: `tt` in processes that are cheap to start and to kill, and what must hold after."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tinkertools.shipped import SAMPLE_TRAINING_DATA

SERVER = Path(__file__).with_name("fork_server.py")


@dataclass(frozen=True)
class Fault:
    """Where a process ends: at the `occurrence`th point of a label, at the `index`th point, or after computing so long.

    With `stop` it does not end there: it is held, until it is killed from outside.
    """

    label: str | None = None
    occurrence: int = 1
    index: int | None = None
    cpu_seconds: float | None = None
    stop: bool = False

    def __str__(self) -> str:
        if self.cpu_seconds is not None:
            return f"after {self.cpu_seconds:.2f} s of computing"
        return f"point {self.index}" if self.label is None else f"{self.label!r} ({self.occurrence})"


@dataclass(frozen=True)
class Ended:
    """How a process ended: an exit code, or a kill; its points in order, its data and talk, seconds it computed."""

    code: int | None
    points: list[str]
    out: str
    err: str
    computed: float

    @property
    def killed(self) -> bool:
        """Whether it was killed, and did not end by itself."""
        return self.code is None


@dataclass
class Started:
    """A `tt` that runs."""

    server: "ForkServer"
    pid: int
    files: dict[str, Path]
    stopped: bool = False

    def wait(self) -> Ended | None:
        """How it ended; None where it is held at a point."""
        answer = self.server.ask(do="wait", pid=self.pid)
        self.stopped = "stopped" in answer
        if self.stopped:
            return None
        if answer.get("signal") not in (None, signal.SIGKILL, signal.SIGPROF):
            raise AssertionError(f"signal {answer['signal']}: {self.files['err'].read_text()}")
        points = self.files["points"].read_text().splitlines() if self.files["points"].exists() else []
        out, err = (self.files[name].read_text(errors="replace") for name in ("out", "err"))
        return Ended(answer.get("code"), points, out, err, answer["computed"])

    def end(self) -> Ended:
        """How it ended, where no point holds it."""
        ended = self.wait()
        assert ended is not None
        return ended

    def kill(self) -> Ended:
        """End it where it is."""
        os.kill(self.pid, signal.SIGKILL)
        return self.end()


class ForkServer:
    """A process that forks `tt`s: each takes a second instead of ten."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._numbers = count()
        # One thread computes: the same bytes at every time.
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("TINKER_", "HF_"))},
            "OMP_NUM_THREADS": "1",
            "MPLCONFIGDIR": str(scratch / "matplotlib"),
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One question, one answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "the fork server ended"}')
        assert "error" not in answer, answer
        return answer

    def start(self, arguments: Sequence[object], cwd: Path, fault: Fault | None = None) -> Started:
        """Start `tt` in `cwd`, where it also has its cache: every change to a file under it is a point."""
        number = next(self._numbers)
        files = {name: self._scratch / f"{number}.{name}" for name in ("points", "out", "err")}
        answer = self.ask(
            do="start",
            arguments=[str(a) for a in arguments],
            cwd=str(cwd),
            environment={"XDG_CACHE_HOME": str(cwd / "cache")},
            fault=asdict(fault) if fault else None,
            **{name: str(path) for name, path in files.items()},
        )
        return Started(self, answer["pid"], files)

    def run(self, arguments: Sequence[object], cwd: Path, fault: Fault | None = None) -> Ended:
        """Run `tt` to its end, whichever."""
        return self.start(arguments, cwd, fault).end()

    def close(self) -> None:
        """End the server. Children have ended, or their tests have failed."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def fork_server(scratch: Path) -> Iterator[ForkServer]:
    """A server for a `with` block."""
    server = ForkServer(scratch)
    try:
        yield server
    finally:
        server.close()


STEPS = 6
EVAL_EVERY = 2
TIMES = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class Straight:
    """A run that nothing happened to: what every other must end with.

    Attributes:
        arguments: of its `tt train`.
        folder: where that was typed.
        ended: how it ended: its points, and the seconds it computed.
        steps: its log, without times.
    """

    arguments: list[str]
    folder: Path
    ended: Ended
    steps: list[dict[str, Any]]


def run_of(folder: Path) -> Path:
    """The directory of the run that was started in `folder`."""
    return folder / "checkpoints" / "r"


def run_straight(server: ForkServer, folder: Path) -> Straight:
    """Train the starter model for a few steps, with a state after every second."""
    rows = SAMPLE_TRAINING_DATA.read_text().splitlines(keepends=True)
    data, held_out = (folder.with_name(f"{folder.name}.{name}jsonl") for name in ("", "val."))
    data.write_text("".join(rows[:24]))
    held_out.write_text("".join(rows[24:27]))
    arguments = [
        "train", "--engine", "local", "--data", str(data), "--batch", "3", "--max-steps", str(STEPS), "--rank", "4",
        "--save-every", "2", "--keep-last", "1", "--run-name", "r", "--eval-data", str(held_out),
        "--eval-every", str(EVAL_EVERY), "--sample-every", "5",
    ]  # fmt: skip
    ended = server.run(arguments, folder)
    assert ended.code == 0, ended.err
    return Straight(arguments, folder, ended, steps_of(run_of(folder)))


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The steps and evaluations in the log, without times; none where there is no log yet. It must be valid."""
    file = run / "training_log.json"
    if not file.exists():
        return []
    log = json.loads(file.read_bytes())
    assert log["version"] == 1
    # An evaluation is logged after its step: what is known of a step is known in this order.
    entries = sorted([*log["steps"], *log["evals"]], key=lambda entry: (entry["step"], "nll" in entry))
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def last_state(run: Path) -> int:
    """The step of the newest state that is whole; 0 where there is none. Found without the product's help."""
    found = [0]
    for folder in run.glob("*training_state*"):
        try:
            info = json.loads((folder / "state.json").read_bytes())
            json.loads((folder / "optimizer.json").read_bytes())
            whole = all(_is_whole(folder / f"{name}.safetensors") for name in ("adapter_model", "optimizer"))
        except FileNotFoundError:
            continue
        if whole:
            found.append(int(info["step"]))
    return max(found)


def _is_whole(file: Path) -> bool:
    """Whether a file of tensors has the size that its header says."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return len(content) == 8 + length + int(max(ends))


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run by its name, but for those that hold times."""
    files = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    with_times = ("config.json", "training_log.json", "plots/tokens_per_second.svg")
    return {name: b"" if name in with_times else path.read_bytes() for name, path in files.items()}


def assert_same_end(run: Path, straight: Straight) -> None:
    """What a finished run must hold, whatever it went through: all that the uninterrupted one does, and no more."""
    expected, found = contents(run_of(straight.folder)), contents(run)
    weights = "final_lora_weights/adapter_model.safetensors"
    assert found.get(weights) == expected[weights], "other weights"
    assert steps_of(run) == straight.steps, "another log"
    missing, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    assert not missing, f"missing: {sorted(missing)}"
    assert not more, f"left over: {sorted(more)}"
    others = [name for name in expected if found[name] != expected[name]]
    assert not others, f"other bytes: {others}"


def live_through(server: ForkServer, straight: Straight, folder: Path, faults: Sequence[Fault]) -> int:
    """Start the run of `straight` in `folder` with each fault in turn, then without one; return how many kills it had.

    After every kill the log must be valid and hold what the uninterrupted one holds so far, and no state may be lost;
    the end must be the same.
    """
    run = run_of(folder)
    kills = state = 0
    told: list[str] = []
    for fault in (*faults, None):
        resumes = (run / "config.json").is_file()
        finished = (run / "final_lora_weights").is_dir()
        ended = server.run(["train", "--resume", str(run)] if resumes else straight.arguments, folder, fault)
        told.append(f"{'tt train --resume' if resumes else 'tt train'}, {fault}: {ended.code}; {ended.err[-400:]}")
        story = "\n".join(told)
        if match := re.search(r"going on with step (\d+)", ended.err):
            assert int(match[1]) == state + 1, story
        steps = steps_of(run)
        assert steps == straight.steps[: len(steps)], story
        assert sum("loss" in entry for entry in steps) >= last_state(run) >= state, story
        state = last_state(run)
        if not ended.killed:
            assert ended.code == 0, story
            assert not finished or "is finished" in ended.err, story
        kills += ended.killed
        if not ended.killed:
            break
    try:
        assert_same_end(run, straight)
    except AssertionError as error:
        error.add_note("\n".join(told))
        raise
    return kills


def live_through_instants(server: ForkServer, straight: Straight, folder: Path, seed: int, kills: int) -> None:
    """Runs that are killed at random instants until so many kills were made.

    How long a process computes differs by half from one time to another on a busy machine, so a run may end before its
    instant. Then another begins, with earlier instants where that one had no kill at all.
    """
    chance = random.Random(seed)
    earliest, latest = 0.05 * straight.ended.computed, 0.65 * straight.ended.computed
    made = 0
    for number in count():
        if made >= kills:
            break
        place = folder / str(number)
        place.mkdir()
        faults = [Fault(cpu_seconds=chance.uniform(earliest, latest)) for _ in range(kills - made)]
        if found := live_through(server, straight, place, faults):
            made += found
        else:
            earliest, latest = earliest / 2, latest / 2


def is_change(label: str) -> bool:
    """Whether what is on the disk differs before and after a point, and in a way of its own."""
    return label.startswith(("replace", "rename", "unlink", "rmdir", "truncate", "write", "save_file half"))


def faults_after(first: Fault, seed: int) -> list[Fault]:
    """A kill, and three more of what goes on after it: soon after the start, or as far as the next states."""
    chance = random.Random(seed)
    return [first, *(Fault(index=chance.randrange(points)) for points in (160, 80, 120))]
