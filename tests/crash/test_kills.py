"""A run that is killed at any instant, any number of times, ends as one that ran through.

About 60 kills are chosen by seeds; all but a few of their stories are slow. Every point of a run, each with three more
kills of what goes on after it, and a hundred at random instants, about 1,400 in all in half an hour of one core:

    pytest -m long -n auto tests/crash
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from killing import (
    EVAL_EVERY,
    STEPS,
    Fault,
    ForkServer,
    Straight,
    assert_same_end,
    contents,
    faults_after,
    is_change,
    last_state,
    live_through,
    live_through_instants,
    run_of,
    steps_of,
)
from marks import mostly_slow

pytest_plugins = ["kill_fixtures"]

# Stories of up to four kills each: at a point of a new run, and at points of what goes on.
STORIES = 15
# Of at least four kills at random instants each, wherever the process computes.
RANDOM_STORIES = 3
# The long test in parts, so that processes can share it.
SHARES = 16

LOG_WRITE = "write checkpoints/r/training_log.json"
# That of step 4: before it come those of an evaluation, two steps, another evaluation and another step.
STEP_4 = 6


@pytest.mark.parametrize("seed", mostly_slow(range(STORIES), 1))
def test_killed_at_points(server: ForkServer, straight: Straight, tmp_path: Path, seed: int) -> None:
    changes = [index for index, label in enumerate(straight.ended.points) if is_change(label)]
    # Spread over the run, and never the same ones beside each other.
    first = Fault(index=changes[(2 * seed + 1) * len(changes) // (2 * STORIES)])
    kills = live_through(server, straight, tmp_path, faults_after(first, seed))
    # Whatever is begun after a kill near the end is soon done.
    assert kills == 4 or seed == STORIES - 1
    assert kills >= 1


@pytest.mark.parametrize("seed", mostly_slow(range(RANDOM_STORIES), 1))
def test_killed_at_random_instants(server: ForkServer, straight: Straight, tmp_path: Path, seed: int) -> None:
    live_through_instants(server, straight, tmp_path, seed, 4)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(SHARES))
def test_killed_at_every_point(server: ForkServer, straight: Straight, tmp_path: Path, share: int) -> None:
    kills = 0
    for index in range(share, len(straight.ended.points), SHARES):
        folder = tmp_path / str(index)
        folder.mkdir()
        found = live_through(server, straight, folder, faults_after(Fault(index=index), index))
        assert found >= 1
        kills += found
        shutil.rmtree(folder)
    print(f"{kills} kills")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 120))
def test_killed_at_many_random_instants(server: ForkServer, straight: Straight, tmp_path: Path, seed: int) -> None:
    live_through_instants(server, straight, tmp_path, seed, 5)


def test_the_points_are_all_there(straight: Straight) -> None:
    """What is not seen cannot be tested: each way to change a file shows among the points."""
    points = straight.ended.points
    for label in (
        "replace checkpoints/r/.config.json.part-PID to checkpoints/r/config.json",
        "fsync checkpoints/r",
        "mkdir checkpoints/r/.engine",
        "rmdir checkpoints/r/.engine",
    ):
        assert label in points
    assert sum(label == LOG_WRITE for label in points) == STEPS + STEPS // EVAL_EVERY + 1
    assert "replace checkpoints/r/.samples.jsonl.part-PID to checkpoints/r/samples.jsonl" in points
    for folder in ("weights", "sampler_weights"):
        assert any(p.startswith("save_file half of ") and f"/{folder}/.final.part-PID/" in p for p in points)
    for name in ("training_state", "checkpoint_step_2", "checkpoint_step_4", "final_lora_weights"):
        assert any(p.startswith("replace ") and p.endswith(f" to checkpoints/r/{name}") for p in points)


@pytest.mark.slow
def test_a_fork_computes_what_a_process_of_its_own_does(straight: Straight, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TINKER_", "HF_"))}
    environment |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tinkertools", *straight.arguments]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    shutil.rmtree(run_of(tmp_path) / "plots")
    shutil.copytree(run_of(straight.folder) / "plots", run_of(tmp_path) / "plots")
    assert_same_end(run_of(tmp_path), straight)


def test_a_finished_run_holds_nothing_else(straight: Straight) -> None:
    assert sorted(path.name for path in run_of(straight.folder).iterdir()) == [
        "checkpoint_step_4", "config.json", "final_lora_weights", "plots", "samples.jsonl",
        "training_log.json", "training_state",
    ]  # fmt: skip


def test_the_log_is_valid_whenever_it_is_read(server: ForkServer, straight: Straight, tmp_path: Path) -> None:
    started = server.start(straight.arguments, tmp_path)
    waiting = threading.Thread(target=started.wait)
    waiting.start()
    lengths = set()
    while waiting.is_alive():
        steps = steps_of(run_of(tmp_path))
        assert steps == straight.steps[: len(steps)]
        lengths.add(len(steps))
    assert steps_of(run_of(tmp_path)) == straight.steps
    assert len(lengths) > 1


def test_one_process_a_run(server: ForkServer, straight: Straight, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    held = server.start(straight.arguments, tmp_path, Fault(label=LOG_WRITE, occurrence=STEP_4, stop=True))
    assert held.wait() is None
    before = contents(run), steps_of(run)
    for name in (str(run), "latest"):
        refused = server.run(["train", "--resume", name], tmp_path)
        assert (refused.code, refused.out) == (1, "")
        assert f"another process is training {run if name != 'latest' else 'checkpoints/r'}" in refused.err
    again = server.run(straight.arguments, tmp_path)
    assert (again.code, "checkpoints/r exists" in again.err) == (1, True)
    assert (contents(run), steps_of(run)) == before
    assert held.kill().killed
    # A killed process holds nothing: the next one goes on.
    assert last_state(run) == 2
    resumed = server.run(["train", "--resume", str(run)], tmp_path)
    assert resumed.code == 0, resumed.err
    assert_same_end(run, straight)


def test_a_resume_that_is_held_keeps_others_out(server: ForkServer, straight: Straight, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert server.run(straight.arguments, tmp_path, Fault(label=LOG_WRITE, occurrence=STEP_4)).killed
    held = server.start(["train", "--resume", str(run)], tmp_path, Fault(label=LOG_WRITE, stop=True))
    assert held.wait() is None
    before = contents(run), steps_of(run)
    refused = server.run(["train", "--resume", str(run)], tmp_path)
    assert (refused.code, "another process is training" in refused.err) == (1, True)
    assert (contents(run), steps_of(run)) == before
    os.kill(held.pid, signal.SIGCONT)
    assert held.end().code == 0
    assert_same_end(run, straight)


def test_two_at_once_are_one(server: ForkServer, straight: Straight, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert server.run(straight.arguments, tmp_path, Fault(label=LOG_WRITE, occurrence=STEP_4)).killed
    both = [server.start(["train", "--resume", str(run)], tmp_path) for _ in range(2)]
    ended = [one.end() for one in both]
    assert sorted(str(one.code) for one in ended) == ["0", "1"], [one.err for one in ended]
    (refused,) = [one for one in ended if one.code == 1]
    # On a very busy machine the second begins when the first is done.
    assert "another process is training" in refused.err or "is finished" in refused.err
    assert_same_end(run, straight)
