"""Demonstrations, then a reward model, then reinforcement by it: three stages that are computed from end to end."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupting import interrupted_in_stage
from preference_data import POLITE, RUDE, preferences
from run_files import write_rows

from tinkertools.runs.directory import RunDirectory

Tt = Callable[..., Any]
RL_STEPS = 4
WEIGHTS = "final_lora_weights/adapter_model.safetensors"

STAGES = f"""\
model: {{lora_rank: 4}}
dataset: {{batch_size: 4}}
training: {{max_steps: 3, learning_rate: 1e-3}}
checkpointing: {{eval_every: 0, save_every: 2}}
stages:
  - name: sft
    method: sft
    dataset: {{name: shown.jsonl}}
  - name: judge
    method: reward
    dataset: {{name: preferences.jsonl}}
  - name: rl
    method: rl
    dataset: {{name: shown.jsonl, batch_size: 2}}
    training: {{max_steps: {RL_STEPS}}}
    infrastructure: {{load_checkpoint_path: stage:sft}}
    rl: {{reward: score:stage:judge, group_size: 2, max_tokens: 12}}
"""


def states() -> list[str]:
    return [entry["state"] for entry in json.loads(Path("checkpoints/s/stages.json").read_text())["stages"]]


def made(name: str) -> tuple[bytes, int]:
    """The weights that a stage ended with, and when they were written."""
    path = Path("checkpoints/s", name, WEIGHTS)
    return path.read_bytes(), path.stat().st_mtime_ns


def scores_by(tt: Tt, run: str, conversations: Path) -> list[float]:
    found = tt("test", "--lora-weights", run, "--score", conversations, "--output", "scores.json")
    assert found.code == 0, found.err
    return [row["score"] for row in json.loads(Path("scores.json").read_text())["scores"]]


@pytest.fixture
def stages(tt: Tt, tmp_path: Path) -> Path:
    """The file of the stages, with its data."""
    rows = preferences(8, better=RUDE, worse=POLITE)
    write_rows(tmp_path / "preferences.jsonl", rows)
    write_rows(tmp_path / "shown.jsonl", [{"messages": [*row["prompt"], *row["rejected"]]} for row in rows])
    path = tmp_path / "rlhf.yaml"
    path.write_text(STAGES)
    return path


@pytest.mark.slow
def test_the_three_stages_go_on_where_they_were_and_rewards_are_scores(tt: Tt, stages: Path, tmp_path: Path) -> None:
    log = tmp_path / "checkpoints/s/rl/training_log.json"
    with interrupted_in_stage("rl", log):
        stopped = tt("train", "--config", stages, "--run-name", "s")
    assert stopped.code == 130, stopped.err
    assert "stopped in stage 3 of 3, rl; 2 of 3 stages are finished" in stopped.err
    assert states() == ["finished", "finished", "unfinished"]
    earlier = [made(name) for name in ("sft", "judge")]

    found = tt("train", "--resume", "checkpoints/s")
    assert found.code == 0, found.err
    for number, name in enumerate(("sft", "judge"), 1):
        assert f"stage {number} of 3, {name}: finished already" in found.err
    assert "[rl] going on with step" in found.err
    assert [made(name) for name in ("sft", "judge")] == earlier
    runs = {name: RunDirectory(Path("checkpoints/s", name)) for name in ("sft", "judge", "rl")}
    assert [run.finished for run in runs.values()] == [True] * 3
    steps = json.loads(log.read_text())["steps"]
    assert [entry["step"] for entry in steps] == list(range(1, RL_STEPS + 1))
    assert all(math.isfinite(entry["reward"]) and entry["unrewarded"] == 0 for entry in steps)

    kept = [json.loads(line) for line in runs["rl"].rollouts.read_text().splitlines()]
    assert [line["step"] for line in kept] == list(range(1, RL_STEPS + 1))
    rows = [
        {"messages": [*line["prompt"], {"role": "assistant", "content": answer}]}
        for line in kept
        for answer in line["answers"]
    ]
    rewards = [reward for line in kept for reward in line["rewards"]]
    answers = write_rows(tmp_path / "answers.jsonl", rows)
    assert scores_by(tt, "checkpoints/s/judge", answers) == pytest.approx(rewards, abs=1e-4)
    # No other weights of the same model say the same.
    others = scores_by(tt, "checkpoints/s/sft", answers)
    assert min(abs(one - other) for one, other in zip(rewards, others, strict=True)) > 1e-2

    before = {name: made(name) for name in runs}
    again = tt("train", "--resume", "checkpoints/s")
    assert again.code == 0, again.err
    assert again.err.count("finished already") == 3
    assert {name: made(name) for name in runs} == before
