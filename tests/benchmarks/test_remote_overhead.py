"""What `tt train` costs beside the vendor's minimal loop, on a server that answers at once and on one that is far away.

Steps a second of each, from the steps themselves: `tt` writes the seconds of a step into its log, and the loops of the
bare SDK are timed around their steps. So neither start-up nor saving counts. The first steps, in which connections are
opened, do not count either. The server is a process of its own, as a server is. All loops do what a step takes:
they make the request of a batch and the loss of the answer.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tinkertools.chat.datums import to_datums
from tinkertools.chat.records import read_all
from tinkertools.chat.rendering import load_renderer, render_all
from tinkertools.chat.sources import find_source

Tt = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]

# The median of so many turns, taken in alternation: what else the machine does disturbs both, and luck counts less.
TURNS = 9
WARM_UP = 5
BATCH = 8

Loop = Callable[[Any, list[Any], Any], None]


def submit_then_wait(client: Any, examples: list[Any], adam: Any) -> None:
    """A step of the vendor's minimal loop."""
    datums = to_datums(examples)
    forward_backward = client.forward_backward(datums, "cross_entropy")
    optim_step = client.optim_step(adam)
    mean_nll(forward_backward.result(), datums)
    optim_step.result()


def wait_for_each(client: Any, examples: list[Any], adam: Any) -> None:
    """A step of a loop that waits for each call."""
    datums = to_datums(examples)
    mean_nll(client.forward_backward(datums, "cross_entropy").result(), datums)
    client.optim_step(adam).result()


def mean_nll(output: Any, datums: list[Any]) -> float:
    """The loss of a step; the weights of a batch add up to one."""
    pairs = zip(output.loss_fn_outputs, datums, strict=True)
    return -sum(
        float(found["logprobs"].to_torch() @ datum.loss_fn_inputs["weights"].to_torch()) for found, datum in pairs
    )


@contextmanager
def server(base_model: str, latency: float) -> Iterator[str]:
    """The address of a stand-in in a process of its own."""
    script = (
        "import sys\n"
        "from standin import StandIn\n"
        f"with StandIn([{base_model!r}], latency={latency}) as server:\n"
        "    print(server.url, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT / "tests" / "remote", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Conversations of a hundred tokens each."""
    text = " ".join(f"word {i}" for i in range(20))
    file = tmp_path / "data.jsonl"
    with file.open("w") as rows:
        for i in range(4 * BATCH):
            messages = [{"role": "user", "content": f"Say it {i} times."}, {"role": "assistant", "content": text}]
            rows.write(json.dumps({"messages": messages}) + "\n")
    return file


def batches_of(data: Path, base_model: str) -> list[list[Any]]:
    """The batches that `tt` makes of the data."""
    conversations, _ = read_all(find_source(str(data)), 1)
    examples = render_all(load_renderer(base_model), conversations, 1).examples
    return [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]


def bare(url: str, base_model: str, batches: list[list[Any]], steps: int, loop: Loop) -> float:
    """Steps a second of a loop with the bare SDK."""
    import tinker

    client = tinker.ServiceClient(base_url=url).create_lora_training_client(base_model=base_model, rank=32).result()
    adam = tinker.types.AdamParams(learning_rate=1e-3)
    for step in range(steps):
        if step == WARM_UP:
            start = time.perf_counter()
        loop(client, batches[step % len(batches)], adam)
    return (steps - WARM_UP) / (time.perf_counter() - start)


def ours(tt: Tt, url: str, base_model: str, data: Path, steps: int, name: str) -> float:
    """Steps a second of `tt train`."""
    result = tt(
        "train", "--data", data, "--base-model", base_model, "--base-url", url, "--batch", BATCH, "--max-steps", steps,
        "--save-every", 0, "--learning-rate", "1e-3", "--run-name", name, "--no-download",
    )  # fmt: skip
    assert result.code == 0, result.err
    entries = json.loads((data.parent / "checkpoints" / name / "training_log.json").read_bytes())["steps"]
    return (steps - WARM_UP) / float(sum(entry["seconds"] for entry in entries[WARM_UP:]))


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("latency", "steps", "turns", "loop", "least"),
    [
        pytest.param(0.0, 150, TURNS, submit_then_wait, 0.98, id="server at once, minimal loop"),
        pytest.param(0.02, 60, 3, submit_then_wait, 0.98, id="server nearby, minimal loop"),
        pytest.param(0.2, 20, 1, wait_for_each, 1.5, id="server far away, loop that waits"),
    ],
)
def test_overhead(
    latency: float, steps: int, turns: int, loop: Loop, least: float, tt: Tt, starter: str, data: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TINKER_API_KEY", "tml-benchmark")
    batches = batches_of(data, starter)
    speeds: dict[str, list[float]] = {"tt": [], loop.__name__: []}
    with server(starter, latency) as url:
        for turn in range(turns):
            speeds[loop.__name__].append(bare(url, starter, batches, steps, loop))
            speeds["tt"].append(ours(tt, url, starter, data, steps, f"turn_{turn}"))
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    ratio = middle["tt"] / middle[loop.__name__]
    with capsys.disabled():
        print(f"\n{latency * 1000:.0f} ms an answer, the median of {turns}: {ratio:.2f} times as fast")
        for name, found in speeds.items():
            print(f"{name:17} {middle[name]:8.2f} steps/s ({', '.join(f'{speed:.2f}' for speed in found)})")
    assert ratio >= least
