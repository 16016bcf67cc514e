"""What a run will take, before it is started: a few of its steps are computed, and what came of them is thrown away."""

import io
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from tinkertools.reporting import ProgressMaker

if TYPE_CHECKING:
    from tinkertools.chat.examples import Example
    from tinkertools.engines import TrainingClient

# A number for each step of a run.
Counts = npt.NDArray[np.int64]
# How many tokens each example of a step (from 1) has.
Lengths = Callable[[int], Sequence[int]]

# Steps that are timed, unless fewer take so long already that they tell enough.
_TIMED_STEPS = 3
_ENOUGH_SECONDS = 20.0
_OWN_PEAK = re.compile(rb"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class Steps(Protocol):
    """What sends steps to an engine (`loop.Method`)."""

    def submit(self, step: int) -> Any:
        """Send the passes of a step."""
        ...


@dataclass(frozen=True)
class Rehearsal:
    """Steps as a run will take them.

    Attributes:
        steps: sends them.
        lengths: of their examples.
        shortest: of all examples, the one with the fewest tokens.
    """

    steps: Steps
    lengths: Lengths
    shortest: "Example"


@dataclass(frozen=True)
class Estimate:
    """What a run will take on the embedded engine.

    Attributes:
        seconds: of all its steps, without start-up and saving.
        tokens_per_second: of the steps that were timed.
        peak_memory: in bytes, as `peak_memory` counts.
        steps_measured: how many steps were timed.
    """

    seconds: float
    tokens_per_second: float
    peak_memory: int
    steps_measured: int


def measure(
    client: "TrainingClient", rehearsal: Rehearsal, total_steps: int, progress: ProgressMaker,
    clock: Callable[[], float] = time.perf_counter,
) -> Estimate:  # fmt: skip
    """Compute those steps of a run that tell what all of it takes. The process should have done nothing larger before.

    Saving needs no step of its own: it copies the adapter once, and a step has a gradient of that size.

    Args:
        client: of the embedded engine, with a fresh adapter of the run's rank. It is to be thrown away: its weights
            stay as they are, but its optimizer does not.
        rehearsal: the steps, with that client.
        total_steps: of the run.
        progress: makes the display of the measuring.
        clock: tells the time in seconds.
    """
    from tinkertools.chat.datums import to_datums

    tokens_S = tokens_of_steps(rehearsal.lengths, total_steps)
    heavy = heaviest(tokens_S, longest_of_steps(rehearsal.lengths, total_steps, _side_by_side()))
    timed = typical(tokens_S, _TIMED_STEPS)
    seconds, measured = 0.0, 0
    with progress("measure", 1 + len(heavy) + len(timed), "steps") as report:
        # The optimizer's moments are made by the first step and belong to the peak of all later ones.
        first = client.forward_backward(to_datums([rehearsal.shortest]), "cross_entropy")
        _end_step(client, first)
        report(1)
        for done, step in enumerate(heavy, 2):
            _end_step(client, rehearsal.steps.submit(step))
            report(done)
        for step in timed:
            passes = rehearsal.steps.submit(step)
            # A run makes what it sends while the step before is computed.
            started = clock()
            _end_step(client, passes)
            seconds += clock() - started
            measured += 1
            report(1 + len(heavy) + measured)
            if seconds >= _ENOUGH_SECONDS:
                break
    _draw_a_picture()
    speed = float(tokens_S[[step - 1 for step in timed[:measured]]].sum()) / seconds
    return Estimate(float(tokens_S.sum()) / speed, speed, peak_memory(), measured)


def peak_memory() -> int:
    """The most bytes used so far: the GPU's where one is used, this process's resident set elsewhere."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts the program that started this one into `ru_maxrss` (getrusage(2): it survives execve), and a sweep or
    # a notebook had much more; "VmHWM" of proc_pid_status(5) is this program's alone.
    if sys.platform == "linux" and (line := _OWN_PEAK.search(Path("/proc/self/status").read_bytes())):
        return int(line[1]) * 1024
    import resource

    # Systems other than macOS count in kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tokens_of_steps(lengths: Lengths, total_steps: int) -> Counts:
    """How many tokens each step of a run has, those without a weight too: they are computed and paid for."""
    return np.array([sum(lengths(step)) for step in range(1, total_steps + 1)], dtype=np.int64)


def longest_of_steps(lengths: Lengths, total_steps: int, most: int) -> Counts:
    """How many tokens the `most` longest examples of each step have together."""
    return np.array([sum(sorted(lengths(step))[-most:]) for step in range(1, total_steps + 1)], dtype=np.int64)


def heaviest(tokens_S: Counts, longest_S: Counts) -> list[int]:
    """The steps, from 1, that may need the most memory: that of the most tokens, and that of the longest examples.

    What fits together goes through the model at once, up to a number of tokens; longer examples go through it whole.
    """
    return list(dict.fromkeys((int(tokens_S.argmax()) + 1, int(longest_S.argmax()) + 1)))


def typical(tokens_S: Counts, count: int) -> list[int]:
    """At most `count` steps, from 1, that stand for all: as many have fewer tokens as more, on either side of each."""
    order = np.argsort(tokens_S, kind="stable")
    places = [(2 * k + 1) * len(order) // (2 * count) for k in range(count)]
    return list(dict.fromkeys(int(order[place]) + 1 for place in places))


def _side_by_side() -> int:
    """How many examples are computed at once that are too long to share a pass."""
    import torch

    from tinkertools.local import threads

    return threads.count(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _end_step(client: "TrainingClient", passes: Any) -> None:
    """Step with what passes bring, and wait for both. No weight changes."""
    from tinker import types

    stepped = client.optim_step(types.AdamParams(learning_rate=0.0))
    passes.result()
    stepped.result()


def _draw_a_picture() -> None:
    """A run draws its pictures in its own process, in memory that nothing gives back before."""
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1])
    figure.savefig(io.BytesIO(), format="svg")
