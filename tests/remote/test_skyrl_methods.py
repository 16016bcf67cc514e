"""The other methods of `tt train` on SkyRL: reinforcement, distillation, reward models, sampled and trained there."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from servers import NEWEST, ROUNDED, ROUNDED_MEAN, Ran, Run, SkyRL, Start, ended, until_state

# Starting the server may take as long as downloading it.
pytestmark = pytest.mark.timeout(1500)

STEPS, GROUP = 3, 4

# Answers of an untaught model are wrong, and all the same to a rule; their lengths differ.
REWARDS = """
def length(sample):
    return len(sample.answer) / 10
"""
SYSTEM = "Answer in one word."


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(run: Path) -> list[Any]:
    """The log of a run, each step once."""
    steps: list[Any] = json.loads((run / "training_log.json").read_text())["steps"]
    assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1))
    assert all(math.isfinite(entry["loss"]) for entry in steps)
    return steps


def finished(ran: Ran, workplace: Path) -> Path:
    """The run that a command made, with an adapter that was fetched."""
    assert ran.code == 0, ran.err
    run = workplace / ran.out.strip()
    assert (run / "final_lora_weights" / "adapter_model.safetensors").is_file()
    return run


def whole_and_killed(
    start: Start, remote_tt: Run, workplace: Path, name: str, options: list[object]
) -> tuple[Path, Path]:  # fmt: skip
    """A run, and one like it that was killed once it had a state, and went on."""
    whole = finished(remote_tt(NEWEST, *options, "--run-name", name), workplace)
    killed = workplace / "checkpoints" / f"{name}_killed"
    process = start(NEWEST, "-m", "tinkertools", *options, "--run-name", killed.name)
    until_state(killed, process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    assert finished(remote_tt(NEWEST, "train", "--resume", killed), workplace) == killed
    return whole, killed


@pytest.fixture(scope="session")
def questions(shared_data: Path, workplace: Path) -> Path:
    """The shortest questions of GSM8K."""
    rows = (shared_data / "gsm8k_train.jsonl").read_text().splitlines()
    path = workplace / "questions.jsonl"
    path.write_text("".join(f"{row}\n" for row in sorted(rows, key=lambda row: len(json.loads(row)["question"]))[:6]))
    (workplace / "rewards.py").write_text(REWARDS)
    return path


@pytest.fixture(scope="session")
def asked(skyrl: SkyRL, served: str, questions: Path) -> list[object]:
    """What runs that sample have in common."""
    return [
        "--base-url", skyrl.url, "--base-model", served, "--data", questions, "--batch", 2, "--group-size", GROUP,
        "--max-tokens", 8, "--rank", 8, "--learning-rate", "1e-3", "--save-every", 1,
    ]  # fmt: skip


def test_answers_are_rewarded_by_the_rule_of_math(remote_tt: Run, asked: list[object], workplace: Path) -> None:
    options = ["--method", "rl", "--reward", "math", "--policy-loss", "ppo", "--max-steps", 2, "--run-name", "math"]
    run = finished(remote_tt(NEWEST, "train", *asked, *options), workplace)
    for entry in steps_of(run):
        right = (entry["reward"] + 0.1) / 1.1 * 2 * GROUP
        assert right == pytest.approx(round(right), abs=1e-6)
        assert (entry["unanswered"], entry["unrewarded"]) == (0, 0)


def test_real_preferences_are_trained_there(
    remote_tt: Run, skyrl: SkyRL, served: str, shared_data: Path, workplace: Path
) -> None:
    rows = sorted(json.loads((shared_data / "dpo_en_demo.json").read_text()), key=lambda row: len(json.dumps(row)))[:4]
    data = workplace / "dpo_en_demo.json"
    data.write_text(json.dumps(rows))
    ran = remote_tt(
        NEWEST, "train", "--method", "dpo", "--base-url", skyrl.url, "--base-model", served, "--data", data,
        "--batch", 4, "--max-steps", 3, "--rank", 8, "--learning-rate", "1e-2", "--run-name", "preferences",
    )  # fmt: skip
    steps = steps_of(finished(ran, workplace))
    assert len(steps) == 3
    # What nothing was changed of yet is worth as much as in the starting model.
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=ROUNDED_MEAN)
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.long
@pytest.mark.parametrize("loss", ["importance_sampling", "ppo"])
def test_a_killed_run_goes_on_with_the_answers_of_its_checkpoint(
    start: Start, remote_tt: Run, skyrl: SkyRL, asked: list[object], workplace: Path, loss: str
) -> None:
    options = [
        "train", *asked, "--method", "rl", "--reward", "rewards.py:length", "--policy-loss", loss, "--max-steps", STEPS,
        "--kl-penalty", 0.01,
    ]  # fmt: skip
    whole, run = whole_and_killed(start, remote_tt, workplace, loss, options)
    for path in (whole, run):
        assert len(steps_of(path)) == STEPS
        kept = lines(path / "rollouts.jsonl")
        assert [line["step"] for line in kept] == list(range(1, STEPS + 1))
        for line in kept:
            assert line["rewards"] == pytest.approx([len(answer) / 10 for answer in line["answers"]])
    assert lines(run / "rollouts.jsonl") == lines(whole / "rollouts.jsonl")
    # What nothing was changed of yet is as likely as in the starting model.
    assert abs(steps_of(whole)[0]["kl"]) < 1e-5
    assert steps_of(whole)[0]["trained_tokens"] > 0


@pytest.mark.long
def test_two_adapters_play_each_other_there_and_go_on(
    start: Start, remote_tt: Run, skyrl: SkyRL, served: str, workplace: Path
) -> None:
    options = [
        "train", "--method", "selfplay", "--base-url", skyrl.url, "--base-model", served, "--batch", 4,
        "--eval-games", 2, "--max-tokens", 4, "--rank", 8, "--learning-rate", "1e-3", "--max-steps", STEPS,
        "--save-every", 1,
    ]  # fmt: skip
    whole, run = whole_and_killed(start, remote_tt, workplace, "played", options)
    for path in (whole, run):
        assert (path / "opponent_lora_weights" / "adapter_model.safetensors").is_file()
        assert len(steps_of(path)) == STEPS
    for name in ("loss", "trained_tokens", "win_rate"):
        assert [entry[name] for entry in steps_of(run)] == [entry[name] for entry in steps_of(whole)]
    evals = [json.loads((path / "training_log.json").read_text())["evals"] for path in (run, whole)]
    assert evals[0] == evals[1]


@pytest.mark.long
def test_what_a_teacher_says_is_learnt(remote_tt: Run, asked: list[object], served: str, workplace: Path) -> None:
    options = ["--method", "distill", "--teacher", served, "--teacher-system", SYSTEM, "--max-steps", 2]
    off = finished(remote_tt(NEWEST, "train", *asked, *options, "--max-tokens", 40, "--run-name", "off"), workplace)
    assert len(steps_of(off)) == 2
    on = finished(remote_tt(NEWEST, "train", *asked, *options, "--on-policy", "--run-name", "on"), workplace)
    for entry in steps_of(on):
        assert math.isfinite(entry["reverse_kl"])
        assert entry["trained_tokens"] > 0
    assert len(steps_of(on)) == 2


@pytest.mark.long
def test_scores_there_and_here_are_the_same(
    remote_tt: Run, skyrl: SkyRL, served: str, workplace: Path, questions: Path
) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": json.loads(line)["question"]}],
            "chosen": [{"role": "assistant", "content": "It is 5."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for line in questions.read_text().splitlines()[:4]
    ]
    data = workplace / "sides.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    there = ["--base-url", skyrl.url]
    options = ["--base-model", served, "--batch", 4, "--max-steps", 2, "--rank", 8, "--learning-rate", "1e-3"]
    ran = remote_tt(
        NEWEST, "train", "--method", "reward", *there, "--data", data, *options, "--run-name", "judge"
    )  # fmt: skip
    run = finished(ran, workplace)
    first, second = steps_of(run)
    assert second["loss"] < first["loss"]
    found = {}
    for name, where in (("there", there), ("here", ["--engine", "local"])):
        ran = remote_tt(NEWEST, "test", "--lora-weights", run, "--score", data, *where, "--output", f"{name}.json")
        assert ran.code == 0, ran.err
        scored = json.loads((workplace / f"{name}.json").read_text())["scores"]
        found[name] = [row[f"{side}_score"] for row in scored for side in ("chosen", "rejected")]
    assert found["there"] == pytest.approx(found["here"], abs=2 * ROUNDED)
