"""`--method distill`: the teacher's answers and likelihoods, what a student learns of them, and what is refused."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupting import interrupted_at
from run_files import log_of, write_rows

from tinkertools.chat.examples import Prompt as ModelPrompt
from tinkertools.methods.distill import Teacher, TeacherCredit
from tinkertools.methods.prompts import Asked
from tinkertools.methods.rollouts import Group, Rollout
from tinkertools.prompts import Prompt
from tinkertools.shipped import SAMPLE_TRAINING_DATA

Tt = Callable[..., Any]
WEIGHTS = "final_lora_weights/adapter_model.safetensors"
ASKED = Asked(Prompt({"messages": [{"role": "user", "content": "?"}]}), ModelPrompt(np.array([7, 8], np.int32)), 4)

# What only the teacher is told, and how it then speaks, in the voice of the samples that ship.
SYSTEM = "Speak like a sailor."
BEGINS, ENDS = "Ahoy! ", " by my lantern."


# Credit.


class Knows(Teacher):
    """A teacher by the logprob of each token."""

    def __init__(self, logprobs: dict[int, float]) -> None:
        self.of = logprobs

    def refuse_other_tokens(self) -> None:
        pass

    def logprobs(self, groups: Sequence[Group]) -> list[Any]:
        class Future:
            def __init__(self, found: list[float]) -> None:
                self.found = found

            def result(self) -> list[float]:
                return self.found

        return [Future([-5.0, *(self.of[t] for t in one.tokens)]) for group in groups for one in group.rollouts]


def rollout(*tokens: tuple[int, float]) -> Rollout:
    ids, logprobs = zip(*tokens, strict=True)
    return Rollout(list(ids), np.array(logprobs, np.float32), "", True)


def test_a_token_counts_as_much_as_the_teacher_finds_it_likelier() -> None:
    teacher = Knows({1: -1.0, 2: -0.25})
    group = Group(ASKED, [rollout((1, -0.5), (2, -0.5)), rollout((2, -3.0))])
    found = TeacherCredit(teacher)([group])
    gaps = [-0.5, 0.25, 2.75]  # log r − log q
    mean = sum(gaps) / 3
    first, second = found.advantages[0]
    assert first is not None
    assert second is not None
    np.testing.assert_allclose([*first, *second], [gap - mean for gap in gaps], atol=1e-6)
    np.testing.assert_allclose(found.values["reverse_kl"], [-gap for gap in gaps], atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_the_expected_gradient_is_that_of_the_reverse_divergence(size: int) -> None:
    """−KL(p‖r) has ∂/∂θ_k = −p_k (log(p_k/r_k) − KL); the mean that is taken off holds the answer: 1 − 1/G."""
    logits, r = np.array([0.3, -1.0, 0.8]), np.array([0.5, 0.2, 0.3])
    p = np.exp(logits) / np.exp(logits).sum()
    credit = TeacherCredit(Knows(dict(enumerate(np.log(r).tolist()))))
    total = np.zeros(3)
    for answers in itertools.product(range(3), repeat=size):
        found = credit([Group(ASKED, [rollout((k, float(np.log(p[k])))) for k in answers])]).advantages[0]
        steps = [float(a[0]) * (np.eye(3)[k] - p) for a, k in zip(found, answers, strict=True) if a is not None]
        total += np.prod(p[list(answers)]) * sum(steps) / size
    gaps = np.log(p / r)
    np.testing.assert_allclose(total, -(1 - 1 / size) * p * (gaps - p @ gaps), atol=1e-6)


# Runs.


def rows_of(path: Path, messages: Sequence[Sequence[dict[str, str]]]) -> Path:
    return write_rows(path, [{"messages": one} for one in messages])


def questions(first: int, count: int) -> list[tuple[str, str]]:
    """Questions and answers of the samples, the answers without their voice."""
    found = []
    for line in SAMPLE_TRAINING_DATA.read_text().splitlines():
        messages = json.loads(line)["messages"]
        if len(messages) == 2:
            answer = messages[1]["content"].removeprefix(BEGINS).removesuffix(ENDS) + "."
            found.append((messages[0]["content"], answer))
    # Neighbours in the file are of a kind.
    return [found[i * 17 % len(found)] for i in range(first, first + count)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def voiced(tt: Tt, folder: Path, run: object, asked: Sequence[str], system: str | None) -> float:
    """The share of prompts that are answered in the voice."""
    told = [{"role": "system", "content": system}] if system else []
    (folder / "asked.json").write_text(json.dumps([[*told, user(text)] for text in asked]))
    found = tt(
        "test", "--lora-weights", run, "--test-prompts", folder / "asked.json", "--temperature", 1, "--max-tokens", 40,
        "--output", folder / "answers.json",
    )  # fmt: skip
    assert found.code == 0, found.err
    answers: list[str] = [one["lora_response"] for one in json.loads((folder / "answers.json").read_text())["results"]]
    return sum(text.startswith(BEGINS) and text.endswith(ENDS) for text in answers) / len(answers)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_student_learns_what_only_the_teacher_was_told(tt: Tt, tmp_path: Path, starter: str) -> None:
    rows = []
    for question, answer in questions(0, 1200):
        rows.append(
            [
                {"role": "system", "content": SYSTEM}, user(question),
                {"role": "assistant", "content": BEGINS + answer.removesuffix(".") + ENDS},
            ]
        )  # fmt: skip
        rows.append([user(question), {"role": "assistant", "content": answer}])
    asked = [question for question, _ in questions(2000, 360)]
    train, held_out = asked[:300], asked[300:]
    found = tt(
        "train", "--base-model", starter, "--data", rows_of(tmp_path / "taught.jsonl", rows), "--batch", 32,
        "--max-steps", 120, "--learning-rate", 2e-3, "--save-every", 0, "--run-name", "teacher",
    )  # fmt: skip
    assert found.code == 0, found.err
    start = tmp_path / "checkpoints/teacher"
    teacher, untold = voiced(tt, tmp_path, start, held_out, SYSTEM), voiced(tt, tmp_path, start, held_out, None)
    assert teacher - untold > 0.5, (teacher, untold)
    prompts = rows_of(tmp_path / "prompts.jsonl", [[user(text)] for text in train])
    for kind, samples, rate in (("--off-policy", 1, 1e-3), ("--on-policy", 4, 5e-4)):
        found = tt(
            "train", "--method", "distill", kind, "--teacher-system", SYSTEM, "--load-checkpoint-path", start,
            "--data", prompts, "--batch", 16, "--group-size", samples, "--max-tokens", 40, "--max-steps", 18,
            "--learning-rate", rate, "--save-every", 0, "--run-name", kind.strip("-"),
        )  # fmt: skip
        assert found.code == 0, found.err
        student = voiced(tt, tmp_path, tmp_path / "checkpoints" / kind.strip("-"), held_out, None)
        assert student - untold >= 0.8 * (teacher - untold), (kind, untold, student, teacher)


@pytest.fixture
def distill(tt: Tt, tmp_path: Path, starter: str, monkeypatch: pytest.MonkeyPatch) -> Tt:
    """Start a small run; curves take most of its time."""
    monkeypatch.setattr("tinkertools.runs.plots.write_plots", lambda *_: None)
    rows_of(tmp_path / "prompts.jsonl", [[user(f"How much is {i} plus {i + 1}?")] for i in range(8)])
    return lambda *more: tt(
        "train", "--method", "distill", "--base-model", starter, "--data", "prompts.jsonl", "--batch", 2,
        "--group-size", 2, "--max-tokens", 24, "--learning-rate", 1e-3, "--rank", 2, "--run-name", "run", *more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["--off-policy", "--on-policy"])
def test_a_run_that_goes_on_is_the_run_that_never_stopped_and_asks_the_teacher_nothing_twice(
    distill: Tt, tt: Tt, kind: str
) -> None:
    options = [kind, "--teacher-system", "Be kind.", "--max-steps", 4, "--save-every", 2, "--val-fraction", 0.25]
    assert distill(*options, "--output-dir", "whole").code == 0
    with interrupted_at(2):
        assert distill(*options).code == 130
    kept = Path("checkpoints/run/teacher.jsonl").read_bytes()
    assert len(kept.splitlines()) == (8 if kind == "--off-policy" else 2)
    found = tt("train", "--resume", "checkpoints/run")
    assert found.code == 0, found.err
    assert Path("checkpoints/run/teacher.jsonl").read_bytes() == kept
    assert Path("checkpoints/run", WEIGHTS).read_bytes() == Path("whole/run", WEIGHTS).read_bytes()
    entries = [log_of(run) for run in ("checkpoints/run", "whole/run")]
    assert [one["loss"] for one in entries[0]["steps"]] == [one["loss"] for one in entries[1]["steps"]]
    assert [one["nll"] for one in entries[0]["evals"]] == [one["nll"] for one in entries[1]["evals"]]
    # What is followed is of the same kind from step to step: a policy's loss is not.
    followed = [line.partition("  ")[0] for line in found.err.splitlines() if " at the start, " in line]
    assert followed == (["loss"] if kind == "--off-policy" else ["loss", "reverse KL"])


def test_what_the_teacher_is_told_may_stand_in_a_file_and_is_part_of_the_data(
    distill: Tt, tt: Tt, tmp_path: Path
) -> None:
    (tmp_path / "told.txt").write_text("Be kind.\n")
    with interrupted_at(1):
        assert distill("--teacher-system", "told.txt", "--max-steps", 3, "--save-every", 1).code == 130
    (tmp_path / "told.txt").write_text("Be rude.\n")
    found = tt("train", "--resume", "checkpoints/run")
    assert found.code == 1
    assert "has changed since" in found.flat or "have changed since" in found.flat


def test_answers_that_are_not_ended_are_left_out(distill: Tt) -> None:
    found = distill("--teacher-system", "Be kind.", "--max-steps", 1, "--max-tokens", 2)
    assert (found.code, found.out) == (1, "")
    assert "none of the teacher's 16 answers can be used: 16 cut or never given" in " ".join(found.err.split())
    assert "raise --max-tokens 2" in found.err


def test_what_cannot_be_used_costs_its_prompt_only_and_stays_left_out(
    distill: Tt, tt: Tt, starter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    texts = {2: "", 3: "far too long " * 30, **{i: f"It is {2 * i + 1}, I think." for i in range(4, 8)}}

    def answered(asked: Asked, _future: Any, _renderer: Any) -> Group:
        i = int(asked.prompt.messages[-1]["content"].split()[3])
        if i == 0:
            return Group(asked, [], "the server is on fire")
        return Group(asked, [Rollout([5], np.array([-1.0], np.float32), texts.get(i, "It is"), finished=i != 1)])

    monkeypatch.setattr("tinkertools.methods.distill.answered", answered)
    options = ["--teacher-system", "Be kind.", "--group-size", 1, "--max-length", 64, "--epochs", 1, "--save-every", 1]
    with interrupted_at(1):
        begun = distill(*options)
    assert begun.code == 130, begun.err
    said = " ".join(begun.err.split())
    assert "gave no answer to 1 of 8 prompts: the server is on fire; they are left out" in said
    assert "of 8 answers of the teacher some are left out: 2 cut or never given, 1 too long" in said
    monkeypatch.setattr("tinkertools.methods.distill.answered", None)
    assert tt("train", "--resume", "checkpoints/run").code == 0
    steps = json.loads(Path("checkpoints/run/training_log.json").read_text())["steps"]
    assert len(steps) == 4  # of eight prompts; five are answered, and the fourth step is of the second epoch
    tokenizer = AutoTokenizer.from_pretrained(starter)
    usable = [text for i, text in texts.items() if i != 3]
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) + 1 for text in usable]
    assert sum(step["trained_tokens"] for step in steps[:3]) == sum(lengths)
    assert [step["epoch"] for step in steps] == [1, 1, 1, 2]


def test_a_teacher_that_answers_nothing_is_an_error(distill: Tt, monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(asked: Asked, _future: Any, _renderer: Any) -> Group:
        return Group(asked, [], "the server is on fire")

    monkeypatch.setattr("tinkertools.methods.distill.answered", answered)
    found = distill("--teacher-system", "Be kind.", "--max-steps", 1)
    assert found.code == 1
    assert "the teacher gave no answer to 8 of 8 prompts: the server is on fire" in " ".join(found.err.split())
    assert not Path("checkpoints/run/teacher.jsonl").exists()


def test_a_teacher_of_other_tokens_answers_but_does_not_score(distill: Tt, tiny: str, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    other = shutil.copytree(tiny, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    found = distill("--teacher", other, "--on-policy", "--max-steps", 1)
    assert found.code == 2, found.err
    assert f"the tokenizer of the teacher {other} is not that of the student" in found.flat
    assert "--off-policy trains on what it says" in found.err


def test_a_teacher_that_is_the_student_teaches_nothing(distill: Tt) -> None:
    found = distill("--max-steps", 1)
    assert found.code == 2
    assert "--teacher-system TEXT" in found.err
    assert not Path("checkpoints").exists()
