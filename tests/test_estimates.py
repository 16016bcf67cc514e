"""What a run will take: the arithmetic is exact, and the memory is that of the run."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preference_data import preferences
from run_files import write_rows

from tinkertools import shipped
from tinkertools.chat.batching import Batches
from tinkertools.chat.datums import to_datums
from tinkertools.chat.examples import Example
from tinkertools.estimates import (
    Rehearsal,
    heaviest,
    longest_of_steps,
    measure,
    tokens_of_steps,
    typical,
)
from tinkertools.reporting import Report

# How far the memory estimate may be from what a run then needs.
TOLERANCE = 0.25
# Bytes that a process takes to see that they count.
BLOCK = 1 << 28


@dataclass
class Done:
    """A future: what is asked for is done when it is waited for."""

    do: Callable[[], None] = lambda: None

    def result(self) -> None:
        """Do it."""
        self.do()


@dataclass
class FakeClient:
    """A training client that keeps how many datums and tokens each step had, and takes a second a token."""

    clock: float = 0.0
    asked: list[str] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)

    def forward_backward(self, data: Sequence[Any], loss_fn: str) -> Done:
        """Takes a second a token."""
        self.asked.append(loss_fn)
        self.steps.append([datum.model_input.length + 1 for datum in data])
        return Done(partial(self._tick, sum(self.steps[-1])))

    def _tick(self, seconds: float) -> None:
        self.clock += seconds

    def optim_step(self, adam: Any) -> Done:
        """Takes no time."""
        self.asked.append(f"learning rate {adam.learning_rate}")
        return Done()


@dataclass
class FakeSteps:
    """A method whose steps are examples, by their batches, and cross-entropy."""

    client: Any
    examples: Sequence[Example]
    batches: Batches

    def submit(self, step: int) -> Any:
        """One pass."""
        return self.client.forward_backward(to_datums([self.examples[i] for i in self.batches.at(step)]), "a loss")

    def lengths(self, step: int) -> list[int]:
        """Of the step's examples."""
        return [len(self.examples[i].tokens) for i in self.batches.at(step)]

    def rehearsal(self) -> Rehearsal:
        """All of it."""
        shortest = min(self.examples, key=lambda example: len(example.tokens))
        return Rehearsal(self, self.lengths, shortest)


@contextmanager
def silent(*_: object) -> Iterator[Report]:
    """No display."""
    yield lambda done, note="": None


def examples_of(*lengths: int) -> list[Example]:
    """Examples of so many tokens, of which the last is trained."""
    weights = [np.zeros(length, np.float32) for length in lengths]
    for weight in weights:
        weight[-1] = 1
    return [Example(np.arange(len(weight), dtype=np.int32), weight) for weight in weights]


def test_the_tokens_of_a_run_are_those_of_its_steps() -> None:
    examples = examples_of(*range(2, 12))
    batches = Batches(10, 4, seed=0)
    steps = [sum(len(examples[i].tokens) for i in batches.at(step)) for step in range(1, 6)]
    assert tokens_of_steps(FakeSteps(None, examples, batches).lengths, 5).tolist() == steps
    # Whole epochs hold every example once.
    assert sum(steps[:3]) == sum(range(2, 12))


def test_the_longest_of_a_step_are_counted_together() -> None:
    lengths = FakeSteps(None, examples_of(5, 9, 2, 7), Batches(4, 4, seed=0)).lengths
    assert longest_of_steps(lengths, 1, most=2).tolist() == [16]
    assert longest_of_steps(lengths, 1, most=9).tolist() == [23]


def test_the_heaviest_steps_are_that_of_most_tokens_and_that_of_the_longest() -> None:
    assert heaviest(np.array([5, 9, 7]), np.array([4, 3, 6])) == [2, 3]
    assert heaviest(np.array([5, 9, 7]), np.array([4, 8, 6])) == [2]


def test_typical_steps_are_neither_the_lightest_nor_the_heaviest() -> None:
    tokens = np.array([90, 10, 50, 20, 70, 30, 80, 40, 60])
    assert [int(tokens[step - 1]) for step in typical(tokens, 3)] == [20, 50, 80]
    assert typical(np.array([3]), 3) == [1]
    assert typical(np.array([7, 7, 7]), 3) == [1, 2, 3]


def test_the_time_is_that_of_all_tokens_at_the_speed_of_typical_steps() -> None:
    client: Any = FakeClient()
    examples = examples_of(*range(2, 22))
    steps_of = FakeSteps(client, examples, Batches(20, 4, seed=0))
    estimate = measure(client, steps_of.rehearsal(), 12, silent, lambda: float(client.clock))
    tokens = tokens_of_steps(steps_of.lengths, 12)
    measured = typical(tokens, 3)[: estimate.steps_measured]
    assert estimate.tokens_per_second == 1
    assert estimate.seconds == tokens.sum()
    # First the smallest example, for the optimizer's moments; then the heaviest steps; then those that are timed.
    steps = heaviest(tokens, longest_of_steps(steps_of.lengths, 12, _cores())) + measured
    assert client.steps == [[2], *(steps_of.lengths(step) for step in steps)]
    stepped = "learning rate 0.0"
    assert client.asked == ["cross_entropy", stepped, *["a loss", stepped] * (len(client.steps) - 1)]


def test_slow_steps_are_timed_no_longer_than_needed() -> None:
    client: Any = FakeClient()
    rehearsal = FakeSteps(client, examples_of(*[100] * 20), Batches(20, 4, seed=0)).rehearsal()
    estimate = measure(client, rehearsal, 5, silent, lambda: float(client.clock))
    assert estimate.steps_measured == 1
    assert estimate.seconds == 2000


def test_peak_memory_is_the_most_that_a_process_had() -> None:
    """Not the most that the program had which started it: here much more, with which it was replaced."""
    program = (
        "import numpy as np\nfrom tinkertools.estimates import peak_memory\nfound = [peak_memory()]\n"
        f"block = np.ones({BLOCK}, dtype=np.uint8)\nfound.append(peak_memory())\ndel block\n"
        "print(*found, peak_memory())"
    )
    starting = (
        f"import os, sys\nimport numpy as np\nblock = np.ones({3 * BLOCK}, dtype=np.uint8)\n"
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", starting, program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    before, after, later = map(int, done.stdout.split())
    assert before < 3 * BLOCK
    assert before + 0.9 * BLOCK < after < before + 1.1 * BLOCK
    # The kernel counts pages a few at a time on each core.
    assert later == pytest.approx(after, rel=0.01)


def _cores() -> int:
    import torch

    return 1 if torch.cuda.is_available() else torch.get_num_threads()


def _some_samples(file: Path) -> str:
    """The first of the sample conversations: all of them only take longer to read."""
    file.write_text("".join(shipped.SAMPLE_TRAINING_DATA.read_text().splitlines(keepends=True)[:400]))
    return str(file)


def _long_data(file: Path) -> str:
    """Conversations of which a few are very much longer than the others."""
    chosen = random.Random(0)
    rows = [json.loads(line) for line in shipped.SAMPLE_TRAINING_DATA.read_text().splitlines()]
    texts = [message["content"] for row in rows for message in row["messages"]]
    with file.open("w") as out:
        for at in range(32):
            answer = " ".join(chosen.choices(texts, k=150 if at % 16 == 1 else 3))
            messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": messages}) + "\n")
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["starter", "long", "dpo"])
def test_a_dry_run_knows_the_memory_of_the_run(
    case: str, tmp_path: Path, environment: dict[str, str], deep: str
) -> None:
    model, data, batch = str(shipped.STARTER_MODEL), _some_samples(tmp_path / "some.jsonl"), 16
    if case == "long":
        model, data, batch = deep, _long_data(tmp_path / "long.jsonl"), 4
    if case == "dpo":
        data = str(write_rows(tmp_path / "preferences.jsonl", preferences(60)))
    arguments = [
        *("train", "--engine", "local", "--base-model", model, "--data", data, "--no-cache"),
        *("--method", "dpo" if case == "dpo" else "sft"),
        *("--batch", str(batch), "--max-steps", "8", "--save-every", "4"),
        *("--learning-rate", "1e-4", "--output-dir", str(tmp_path / "runs")),
    ]
    # As many threads in both, whatever other tests run beside this one.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}

    def run(more: list[str]) -> str:
        command = [sys.executable, "-m", "tinkertools", *arguments, *more]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment | threads
        )
        return done.stderr

    # Side by side, each in a process of its own: a peak is that of the process.
    with ThreadPoolExecutor(2) as both:
        dry, real = both.map(run, [["--dry-run"], []])
    estimate, peak = _number(r"peak memory: about ([\d,]+) MB", dry), _number(r"peak memory +([\d,]+) MB", real)
    print(f"{case}: {estimate:,.0f} MB estimated, {peak:,.0f} MB needed")
    assert abs(estimate - peak) <= TOLERANCE * peak
    logs = list(tmp_path.glob("runs/*/training_log.json"))
    assert len(logs) == 1  # a dry run leaves none
    total = sum(entry["tokens"] for entry in json.loads(logs[0].read_text())["steps"])
    assert _number(r"tokens: ([\d,]+) in all steps", dry) == total
    assert "(3 steps measured)" in dry
    assert ("the reference (a forward pass of all pairs) comes before them" in dry) == (case == "dpo")


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found[1].replace(",", ""))
