"""Evaluation while training: its numbers against plain transformers and peft, when it happens, and what it decides."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interrupting import interrupted_at
from marks import mostly_slow
from peft import PeftModel
from run_files import log_of, run_of, sums, without_times, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinkertools.loop import Loop
from tinkertools.runs.log import TrainingLog, best_of

Tt = Callable[..., Any]


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "chats.jsonl", sums(12, question="What is {} plus 1?"))


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Answers in several scripts: their bytes are not their characters."""
    answers = ["13.", "Größer als zwölf, naïve Ærø.", "答えは十三です。", "🙂 yes"]
    return write_rows(tmp_path / "held.jsonl", [row(f"And {i} plus 1?", answer) for i, answer in enumerate(answers)])


@pytest.fixture
def train(tt: Tt, tiny: str, data: Path) -> Tt:
    """`tt train` of six steps."""
    return lambda *more: tt("train", "--base-model", tiny, "--data", data, "--batch", 4, "--epochs", 2, *more)


def independent(model: Any, folder: str, file: Path) -> tuple[float, int, int]:
    """Σ NLL over the trained tokens of a file of one question and one answer a row, their number, and their bytes."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    nll, trained, size = 0.0, 0, 0
    for line in file.read_text().splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        prompt = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        reply = tokenizer.encode(f"{answer}<|im_end|>")
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + reply])).logits[0].double().log_softmax(-1)
        nll -= sum(float(logprobs[len(prompt) + k - 1, token]) for k, token in enumerate(reply))
        trained += len(reply)
        size += len(answer.encode())
    return nll, trained, size


def test_the_numbers_are_those_of_plain_transformers_and_peft(train: Tt, tiny: str, held_out: Path) -> None:
    found = train("--eval-data", held_out, "--eval-every", 4, "--learning-rate", "1e-2")
    run = run_of(found)
    evals = log_of(run)["evals"]
    assert [entry["step"] for entry in evals] == [0, 4, 6]
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    expected = [independent(base, tiny, held_out)]
    expected.append(independent(PeftModel.from_pretrained(base, run.final_weights), tiny, held_out))
    for entry, (nll, trained, size) in zip((evals[0], evals[-1]), expected, strict=True):
        assert set(entry) == {"step", "nll", "perplexity", "bits_per_byte", "trained_tokens"}
        assert entry["nll"] == pytest.approx(nll / trained, rel=1e-5)
        assert entry["perplexity"] == pytest.approx(math.exp(nll / trained), rel=1e-4)
        assert entry["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-5)
        assert entry["trained_tokens"] == trained
    best = min(evals, key=lambda entry: entry["nll"])
    assert f"best {best['nll']:.4f} after step {best['step']}" in found.err
    assert (run.plots / "eval_nll.svg").is_file()


def test_evaluation_changes_nothing_of_what_is_trained(train: Tt, held_out: Path) -> None:
    plain = run_of(train())
    watched = run_of(train("--eval-data", held_out, "--eval-every", 1, "--sample-every", 2))
    weights = "adapter_model.safetensors"
    assert (plain.final_weights / weights).read_bytes() == (watched.final_weights / weights).read_bytes()
    assert log_of(plain)["evals"] == []

    assert without_times(plain) == without_times(watched)


def test_val_fraction_holds_out_what_tt_prepare_would(train: Tt, tt: Tt, data: Path, tmp_path: Path) -> None:
    found = tt("prepare", "--dataset", data, "--output", tmp_path / "split.jsonl", "--val-fraction", "0.25")
    assert found.code == 0, found.err
    by_hand = run_of(train("--data", tmp_path / "split.jsonl", "--eval-data", tmp_path / "split.val.jsonl"))
    by_option = run_of(train("--val-fraction", "0.25"))
    other_seed = run_of(train("--val-fraction", "0.25", "--seed", 5))
    assert log_of(by_hand)["evals"] == log_of(by_option)["evals"]
    # Whatever the seed, runs are evaluated on the same: before the first step they think the same of it.
    assert log_of(by_option)["evals"][0] == log_of(other_seed)["evals"][0]
    saved = by_option.read_config()["data"]
    assert (saved["conversations"], saved["held_out_conversations"]) == (9, 3)


def test_training_stops_when_nothing_improves(train: Tt, held_out: Path) -> None:
    # A rate at which held-out data get worse from the start.
    options = ("--eval-data", held_out, "--eval-every", 1, "--early-stop", 2, "--learning-rate", "1", "--epochs", 4)
    found = train(*options)
    run = run_of(found)
    log = log_of(run)
    best = best_of(log["evals"])
    assert best is not None
    assert log["evals"][-1]["step"] == best["step"] + 2 < 12
    assert len(log["steps"]) == log["evals"][-1]["step"]
    assert json.loads((run.final_weights / "checkpoint.json").read_text())["step"] == len(log["steps"])
    assert f"stopped early   after step {len(log['steps'])} of 12: nothing had improved" in found.err


@pytest.mark.parametrize("step", mostly_slow([3, 1, 4], 1))
@pytest.mark.parametrize(
    "more", [("--eval-every", 2, "--sample-every", 2), ("--eval-every", 1, "--early-stop", 2, "--learning-rate", "1")]
)
def test_a_resumed_run_evaluates_answers_and_stops_as_an_uninterrupted_one(
    train: Tt, tt: Tt, held_out: Path, step: int, more: tuple[Any, ...]
) -> None:
    options = ("--eval-data", held_out, *more)
    whole = run_of(train(*options, "--run-name", "whole"))
    with interrupted_at(step):
        found = train(*options, "--run-name", "stopped")
    if found.code == 0:  # the interruption came when the last step was in flight
        assert len(log_of(whole)["steps"]) <= step + 1
        return
    assert found.code == 130, found.err
    stopped = run_of(tt("train", "--resume", "checkpoints/stopped"))
    assert log_of(stopped)["evals"] == log_of(whole)["evals"]
    assert [entry["step"] for entry in log_of(stopped)["steps"]] == [entry["step"] for entry in log_of(whole)["steps"]]
    weights = "adapter_model.safetensors"
    assert (stopped.final_weights / weights).read_bytes() == (whole.final_weights / weights).read_bytes()
    if whole.samples.is_file():
        assert stopped.samples.read_bytes() == whole.samples.read_bytes()
    assert {path.name for path in stopped.plots.iterdir()} == {path.name for path in whole.plots.iterdir()}
    for name in ("loss.svg", "eval_nll.svg", "learning_rate.svg"):
        assert (stopped.plots / name).read_bytes() == (whole.plots / name).read_bytes()


def test_answers_are_kept_with_their_step(train: Tt, tt: Tt, held_out: Path) -> None:
    run = run_of(train("--eval-data", held_out, "--sample-every", 4))
    samples = [json.loads(line) for line in run.samples.read_text().splitlines()]
    assert [line["step"] for line in samples] == [4] * 3 + [6] * 3
    assert [line["prompt"][0]["content"] for line in samples[:3]] == [f"And {i} plus 1?" for i in range(3)]
    # The last ones are those of the final weights.
    prompts = [line["prompt"] for line in samples[3:]]
    Path("prompts.json").write_text(json.dumps(prompts))
    found = tt("test", "--lora-weights", run.path, "--test-prompts", "prompts.json", "--temperature", 0)
    assert found.code == 0, found.err
    results = json.loads(Path("lora_test_results.json").read_text())["results"]
    assert [line["response"] for line in samples[3:]] == [result["lora_response"] for result in results]
    assert not run.engine_store.exists()


def test_the_best_checkpoint_stays(train: Tt, held_out: Path) -> None:
    more = ("--eval-every", 1, "--save-every", 1, "--keep-last", 1, "--learning-rate", "1")
    run = run_of(train("--eval-data", held_out, *more))
    best = best_of(log_of(run)["evals"])
    assert best is not None
    kept = {step for step, _ in run.checkpoints()}
    assert kept == ({5} if best["step"] in (0, 6) else {best["step"], 5})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("x", "y " * 300)], "--eval-data {path}: conversation 1 has 311 tokens, more than the limit of 128"),
        ([{"messages": [{"role": "user", "content": "x"}]}], "{path}:1"),
        ([], "{path} holds no rows"),
    ],
)
def test_held_out_data_that_cannot_be_used_are_named(
    train: Tt, tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    path = write_rows(tmp_path / "bad.jsonl", rows)
    found = train("--eval-data", path)
    assert (found.code, found.out) == (1, "")
    assert words.format(path=path) in found.err
    assert "unexpected" not in found.err
    assert not Path("checkpoints").exists()


def test_held_out_data_with_no_trained_token(train: Tt, tmp_path: Path) -> None:
    told = {"role": "assistant", "content": "y", "trainable": False}
    path = write_rows(tmp_path / "none.jsonl", [{"messages": [{"role": "user", "content": "x"}, told]}])
    marked = write_rows(
        tmp_path / "marked.jsonl",
        [{"messages": [{"role": "user", "content": f"{i}"}, told | {"trainable": True}]} for i in range(4)],
    )
    found = train("--data", marked, "--train-on-what", "CUSTOMIZED", "--eval-data", path)
    assert found.code == 1
    assert f"--eval-data {path}: no trained token in the data" in found.err


def test_changed_held_out_data_are_refused_on_resume(train: Tt, tt: Tt, held_out: Path) -> None:
    with interrupted_at(2):
        assert train("--eval-data", held_out, "--run-name", "r").code == 130
    held_out.write_text(held_out.read_text().replace("13", "14"))
    found = tt("train", "--resume", "checkpoints/r")
    assert found.code == 1
    assert "the held-out data have changed since checkpoints/r was started" in found.err


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), max_size=6), st.integers(1, 4))
def test_no_better_counts_from_the_best(values: list[float | None], patience: int) -> None:
    """By hand: the first smallest finite value, and how many come after it."""
    log = TrainingLog(Path("unused"), [], [{"step": i, "nll": value} for i, value in enumerate(values)])
    config: Any = type("Config", (), {"early_stop": patience})
    stand_in: Any = type("Loop", (), {"config": config, "log": log})
    finite = [value for value in values if value is not None and math.isfinite(value)]
    expected = bool(finite) and len(values) - 1 - values.index(min(finite)) >= patience
    assert Loop._no_better(stand_in) is expected
