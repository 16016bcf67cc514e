"""What safety costs: how long a save holds training up, and how soon a resumed run takes its first step."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinkertools.config import TrainConfig

COMMAND = [sys.executable, "-m", "tinkertools", "train", "--batch", "16", "--output-dir", "runs"]
STEPS, TURNS = 24, 3


def steps_of(run: Path) -> list[float]:
    """Seconds of each step, without the first two, in which memory is found and filled."""
    steps = json.loads((run / "training_log.json").read_bytes())["steps"]
    return [float(step["seconds"]) for step in steps][2:]


def train(folder: Path, environment: dict[str, str], *options: object) -> None:
    command = [*COMMAND, *map(str, options)]
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_what_a_save_costs(tmp_path: Path, environment: dict[str, str]) -> None:
    """A run that saves after each step beside one that never does; the default saves every so many steps."""
    without: list[float] = []
    saving: list[float] = []
    for turn in range(TURNS):
        train(tmp_path, environment, "--max-steps", STEPS, "--save-every", 0, "--run-name", f"without_{turn}")
        train(tmp_path, environment, "--max-steps", STEPS, "--save-every", 1, "--run-name", f"saving_{turn}")
        without += steps_of(tmp_path / "runs" / f"without_{turn}")
        saving += steps_of(tmp_path / "runs" / f"saving_{turn}")
    step = statistics.median(without)
    stall = statistics.median(saving) - step
    every = TrainConfig().save_every
    print(f"\na step {step * 1000:.0f} ms, a save of state and checkpoint holds it up by {stall * 1000:.0f} ms")
    print(f"every {every} steps that is {stall / step / every:.2%} of a step for each")
    assert stall / every < 0.05 * step


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_how_soon_a_run_goes_on(tmp_path: Path, environment: dict[str, str]) -> None:
    def first_step(run: Path, *options: object) -> float:
        """Seconds from the command to the log's next entry; the run is killed then."""
        log = run / "training_log.json"
        before = len(json.loads(log.read_bytes())["steps"]) if log.is_file() else 0
        start = time.perf_counter()
        process = subprocess.Popen(
            [*COMMAND, *map(str, options)], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if log.is_file() and len(json.loads(log.read_bytes())["steps"]) > before:
                    return time.perf_counter() - start
                time.sleep(0.01)
            pytest.fail("the run ended")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    fresh: list[float] = []
    again: list[float] = []
    for turn in range(TURNS):
        run = tmp_path / "runs" / f"run_{turn}"
        fresh.append(first_step(run, "--run-name", run.name, "--save-every", 4))
        train(tmp_path, environment, "--max-steps", 5, "--save-every", 4, "--run-name", f"base_{turn}")
        # An unfinished run with a state after its fourth step.
        state = tmp_path / "runs" / f"base_{turn}"
        config = json.loads((state / "config.json").read_bytes())
        (state / "config.json").write_text(json.dumps(config | {"config": config["config"] | {"max_steps": 40}}))
        for name in ("final_lora_weights", "plots"):
            (state / name).rename(state / f"old_{name}")
        again.append(first_step(state, "--resume", state))
    print(f"\nthe first step of a new run after {statistics.median(fresh):.1f} s, ", end="")
    print(f"of a resumed one after {statistics.median(again):.1f} s")
    assert statistics.median(again) < 2 * statistics.median(fresh)
