"""`--method rl`: credit by groups against closed forms, and runs with rewards that are not what they should be."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import interrupted_at
from run_files import log_of, write_rows
from safetensors.numpy import load_file

from tinkertools.chat.examples import Prompt as ModelPrompt
from tinkertools.methods.prompts import Asked
from tinkertools.methods.rl import GroupRewards
from tinkertools.methods.rollouts import Group, Rollout
from tinkertools.prompts import Prompt
from tinkertools.rewards import Rewarded, Sample
from tinkertools.rewards.samples import Closing

Tt = Callable[..., Any]
WEIGHTS = "final_lora_weights/adapter_model.safetensors"
RUN = "checkpoints/run"
ASKED = Asked(Prompt({"messages": [{"role": "user", "content": "?"}]}), ModelPrompt(np.array([7, 8], np.int32)), 4)


class Table(Closing):
    """What each answer is worth, by its text."""

    name = "table"

    def __init__(self, values: Mapping[str, float | None]) -> None:
        self.values = values

    def __call__(self, samples: Sequence[Sample]) -> list[Rewarded]:
        return [
            Rewarded(self.values[one.answer], None if self.values[one.answer] is not None else f"no {one.answer}")
            for one in samples
        ]


class Reference:
    """The starting model: the logprob of each token, by its id."""

    def __init__(self, logprobs: dict[int, float]) -> None:
        self.logprobs = logprobs

    def compute_logprobs(self, prompt: Any) -> Any:
        found = [None, *(self.logprobs.get(token, -9.0) for token in prompt.to_ints()[1:])]

        class Future:
            def result(self) -> list[float | None]:
                return found

        return Future()


def rollout(text: str, *tokens: tuple[int, float]) -> Rollout:
    ids, logprobs = zip(*tokens, strict=True)
    return Rollout(list(ids), np.array(logprobs, np.float32), text, True)


def credit(rewards: Mapping[str, float | None], group: Sequence[Rollout], **options: Any) -> Any:
    return GroupRewards(Table(rewards), **options)([Group(ASKED, list(group))])


# The expectation of what is stepped with, over every group that could be sampled.


def expected_gradient(logits: np.ndarray[Any, Any], rewards: Sequence[float], size: int, **options: Any) -> Any:
    """E[mean over the group of advantage · ∇ log p], all groups of `size` one-token answers weighed by their chance."""
    p = np.exp(logits) / np.exp(logits).sum()
    values = {str(k): reward for k, reward in enumerate(rewards)}
    total = np.zeros(len(p))
    for group in itertools.product(range(len(p)), repeat=size):
        answers = [rollout(str(k), (k, math.log(p[k]))) for k in group]
        found = credit(values, answers, **options).advantages[0]
        steps = [float(a[0]) * (np.eye(len(p))[k] - p) for a, k in zip(found, group, strict=True) if a is not None]
        gradient = sum(steps) / size
        total += np.prod(p[list(group)]) * gradient
    return p, total


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_expected_gradient_is_that_of_the_mean_reward(size: int) -> None:
    """∂E[r]/∂θ_k = p_k (r_k − E[r]); an answer is part of the mean that it is held against, hence 1 − 1/G."""
    rewards = [1.0, -0.5, 0.25, 0.0]
    p, found = expected_gradient(np.array([0.3, -1.0, 0.8, 0.0]), rewards, size)
    closed = p * (np.array(rewards) - p @ rewards)
    np.testing.assert_allclose(found, (1 - 1 / size) * closed, atol=1e-6)


def test_the_expected_gradient_of_the_penalty_is_that_of_the_divergence() -> None:
    """KL(p‖r) = Σ p log(p/r), whose gradient is ∂/∂θ_k = p_k (log(p_k/r_k) − KL)."""
    logits, rewards, beta = np.array([0.3, -1.0, 0.8]), [1.0, 0.0, 0.5], 0.7
    q = np.array([0.5, 0.2, 0.3])
    reference: Any = Reference(dict(enumerate(np.log(q).tolist())))
    p, found = expected_gradient(logits, rewards, 3, reference=reference, kl_penalty=beta)
    gaps = np.log(p / q)
    closed = p * (np.array(rewards) - p @ rewards) - beta * p * (gaps - p @ gaps)
    np.testing.assert_allclose(found, (1 - 1 / 3) * closed, atol=1e-6)


# Credit of one group, in numbers.


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8))
@settings(deadline=None)
def test_advantages_are_rewards_less_their_mean_on_every_token(values: list[float]) -> None:
    rewards = {str(i): value for i, value in enumerate(values)}
    answers = [rollout(str(i), *([(3, -0.5)] * (i + 1))) for i in range(len(values))]
    found = credit(rewards, answers)
    if len(set(values)) == 1:
        assert found.advantages == [[None] * len(values)]
    for i, advantages in enumerate(found.advantages[0] if len(set(values)) > 1 else ()):
        np.testing.assert_allclose(advantages, [values[i] - np.mean(values)] * (i + 1), atol=1e-5)
    assert found.rewards == [values]
    assert found.values["reward"] == values
    assert found.counts["zero_advantage_groups"] == int(len(set(values)) == 1)


def test_a_reward_that_is_missing_costs_that_answer_only() -> None:
    found = credit({"a": 1.0, "b": None, "c": 0.0}, [rollout(text, (3, -1.0)) for text in "abc"])
    first, second, third = found.advantages[0]
    assert (first.tolist(), second, third.tolist()) == ([0.5], None, [-0.5])
    assert found.problems == ["no b"]
    assert found.counts == {"unrewarded": 1, "zero_advantage_groups": 0}


@pytest.mark.parametrize("value", [-0.1, 1 / 3, 1.0])
@pytest.mark.parametrize("size", [3, 6, 7])
def test_what_rounding_leaves_of_equal_rewards_is_nothing(value: float, size: int) -> None:
    reference: Any = Reference({3: -1.0})
    answers = [rollout("a", (3, -1.0 - i * 1e-6)) for i in range(size)]
    found = credit({"a": value}, answers, reference=reference, kl_penalty=0.1)
    assert found.advantages == [[None] * size]
    assert found.counts["zero_advantage_groups"] == 1


def test_the_penalty_is_each_token_s_own_less_the_mean_of_the_group() -> None:
    reference: Any = Reference({1: -1.0, 2: -2.0})
    answers = [rollout("a", (1, -0.5), (2, -0.5)), rollout("b", (2, -3.0))]
    found = credit({"a": 1.5, "b": 0.5}, answers, reference=reference, kl_penalty=0.1)
    gaps = [0.5, 1.5, -1.0]  # log q − log r
    mean = sum(gaps) / 3
    expected = [0.5 - 0.1 * (gaps[0] - mean), 0.5 - 0.1 * (gaps[1] - mean)]
    np.testing.assert_allclose(found.advantages[0][0], expected, atol=1e-6)
    np.testing.assert_allclose(found.advantages[0][1], [-0.5 - 0.1 * (gaps[2] - mean)], atol=1e-6)
    np.testing.assert_allclose(found.values["kl"], gaps, atol=1e-6)


# Runs, with a reward of the user's.

REWARDS = """
import math, time

def vowels(sample):
    return sum(c in "aeiou" for c in sample.answer) / 10

def same(sample):
    return 1.0

def broken(sample):
    kind = len(sample.answer) % 4
    if kind == 0:
        return math.nan
    if kind == 1:
        raise ValueError("no such thing")
    return vowels(sample)

def nothing(sample):
    raise RuntimeError("the table is empty")

def slow(sample):
    if len(sample.answer) % 5 == 0:
        time.sleep(3600)
    return vowels(sample)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with rewards and prompts."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"question": f"{i} plus 1?", "answer": f"#### {i + 1}"} for i in range(12)]
    write_rows(tmp_path / "prompts.jsonl", rows)
    return tmp_path


@pytest.fixture
def train(tt: Tt, place: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> Tt:
    """Start a run; curves take most of its time."""
    monkeypatch.setattr("tinkertools.runs.plots.write_plots", lambda *_: None)
    return lambda reward, *more: tt(
        "train", "--method", "rl", "--reward", reward, "--base-model", tiny, "--data", "prompts.jsonl", "--batch", 3,
        "--group-size", 4, "--max-tokens", 8, "--learning-rate", 1e-2, "--rank", 2, "--run-name", "run", *more,
    )  # fmt: skip


def test_steps_are_logged_with_what_they_were_worth(train: Tt) -> None:
    found = train("rewards.py:vowels", "--max-steps", 2, "--val-fraction", 0.25, "--kl-penalty", 0.1)
    assert found.code == 0, found.err
    log = log_of(RUN)
    for entry in log["steps"]:
        assert {"reward", "kl", "entropy", "answer_tokens", "finished"} <= entry.keys()
        assert entry["unanswered"] == entry["unrewarded"] == 0
        assert 0 < entry["trained_tokens"] <= entry["tokens"]
        assert 0 < entry["answer_tokens"] <= 8
    assert [entry["step"] for entry in log["evals"]] == [0, 2]
    assert all(math.isfinite(entry["reward"]) and entry["prompts"] == 3 for entry in log["evals"])
    # What nothing was changed of yet is as likely as in the starting model.
    assert abs(log["steps"][0]["kl"]) < 1e-5
    assert abs(log["steps"][1]["kl"]) > 1e-5
    kept = [json.loads(line) for line in Path("checkpoints/run/rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 2]
    for line in kept:
        vowels = [sum(c in "aeiou" for c in text) / 10 for text in line["answers"]]
        assert line["rewards"] == pytest.approx(vowels)


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(train: Tt, tt: Tt, loss: str) -> None:
    options = ["rewards.py:vowels", "--max-steps", 4, "--save-every", 2, "--policy-loss", loss, "--refresh-every", 2]
    assert train(*options, "--output-dir", "whole").code == 0
    with interrupted_at(2):
        assert train(*options).code == 130
    assert not Path("checkpoints/run/final_lora_weights").exists()
    found = tt("train", "--resume", "checkpoints/run")
    assert found.code == 0, found.err
    for name in (WEIGHTS, "rollouts.jsonl"):
        assert Path("checkpoints/run", name).read_bytes() == Path("whole/run", name).read_bytes()
    assert [entry["reward"] for entry in log_of(RUN)["steps"]] == [
        entry["reward"] for entry in log_of("whole/run")["steps"]
    ]


def test_answers_that_fail_cost_themselves_only(train: Tt) -> None:
    found = train("rewards.py:broken", "--max-steps", 2)
    assert found.code == 0, found.err
    assert "an answer is left out: " in found.err
    assert "nan" in found.err
    assert "ValueError: no such thing" in found.err
    steps = log_of(RUN)["steps"]
    assert sum(entry["unrewarded"] for entry in steps) > 0
    assert all(math.isfinite(entry["reward"]) for entry in steps)


def test_a_reward_that_takes_for_ever_costs_its_answer_only(train: Tt) -> None:
    found = train("rewards.py:slow", "--max-steps", 1, "--reward-timeout", 1)
    assert found.code == 0, found.err
    assert log_of(RUN)["steps"][0]["unrewarded"] > 0
    assert "an answer is left out: " in found.err


def test_a_reward_that_always_fails_ends_the_run(train: Tt) -> None:
    found = train("rewards.py:nothing", "--max-steps", 2)
    assert (found.code, found.out) == (1, "")
    assert "no answer of this step could be used" in found.err
    assert "the table is empty" in found.err
    assert "Traceback" not in found.err


def test_where_all_rewards_are_equal_nothing_is_trained(train: Tt) -> None:
    found = train("rewards.py:same", "--max-steps", 2)
    assert found.code == 0, found.err
    for entry in log_of(RUN)["steps"]:
        assert (entry["loss"], entry["trained_tokens"], entry["zero_advantage_groups"]) == (0.0, 0, 3)
    assert "nothing was trained: in no step was one answer worth more than the others" in found.flat
    weights = load_file(Path("checkpoints/run") / WEIGHTS)
    assert all(not values.any() for name, values in weights.items() if "lora_B" in name)


def test_prompts_that_leave_no_room_are_refused_or_counted(train: Tt, place: Path) -> None:
    rows = [{"question": "long " * 200, "answer": "1"}, *({"question": f"{i}?", "answer": "1"} for i in range(3))]
    write_rows(place / "prompts.jsonl", rows)
    found = train("rewards.py:vowels", "--max-steps", 1, "--max-length", 64)
    assert found.code == 1
    assert "prompt 1 has " in found.err
    assert "--overlength drop leaves such prompts out" in found.err
    shutil.rmtree("checkpoints", ignore_errors=True)
    found = train("rewards.py:vowels", "--max-steps", 1, "--max-length", 64, "--overlength", "drop")
    assert found.code == 0, found.err
    assert "1 prompts are too long to be answered" in found.err
    assert "prompts: 3 of 4" in found.err


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        (['"Say something."', '"And more."', '"Well?"'], 3),
        (['{"messages":[{"role":"user","content":"Hm?"}]}', '{"messages":[{"role":"user","content":"Yes?"}]}'] * 2, 4),
    ],
    ids=["texts", "messages"],
)
def test_prompts_need_no_answers(train: Tt, place: Path, rows: list[str], count: int) -> None:
    (place / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    found = train("rewards.py:vowels", "--max-steps", 1)
    assert found.code == 0, found.err
    assert f"{count} prompts (prompts without answers)" in found.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nonsense"], "nonsense"),
        (["math", "--group-size", "1"], "--group-size 1"),
        (["math", "--beta", "0.2"], "--beta is of --method dpo"),
        (["missing.py:f"], "missing.py"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(train: Tt, options: list[str], said: str) -> None:
    found = train(*options)
    assert found.code in (1, 2)
    assert said in found.err
    assert not Path("checkpoints").exists()
