"""Real questions: GSM8K's, whose answers are rewarded where their last number is right."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tt = Callable[..., Any]

ROWS, BATCH, GROUP = 24, 2, 4
# About the median of these questions as the starter model reads them: an answer has no room after the longer ones.
LIMIT = 100
RIGHT, WRONG = 1.0, -0.1


def lengths(model: str, rows: list[dict[str, str]]) -> list[int]:
    """Tokens of each question with all that is before an answer."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    asked = [[{"role": "user", "content": row["question"]}] for row in rows]
    return [
        len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        for messages in asked
    ]


def test_gsm8k_is_learnt_from_by_the_rule_of_math(
    tt: Tt, starter: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinkertools.runs.plots.write_plots", lambda *_: None)
    source = shared_data / "gsm8k_train.jsonl"
    rows = [json.loads(line) for line in source.read_text().split("\n")[:ROWS]]
    fitting = [row for row, length in zip(rows, lengths(starter, rows), strict=True) if length < LIMIT]
    assert 0 < len(fitting) < ROWS
    asked = [
        "train", "--method", "rl", "--reward", "math", "--data", source, "--num-examples", ROWS,
        "--base-model", starter, "--batch", BATCH, "--group-size", GROUP, "--max-steps", 2, "--max-tokens", 24,
        "--kl-penalty", 0.01, "--rank", 4, "--max-length", LIMIT, "--run-name", "math",
    ]  # fmt: skip
    refused = tt(*asked)
    assert refused.code == 1
    assert "--overlength drop leaves such prompts out" in refused.err
    found = tt(*asked, "--overlength", "drop", "--behavior-if-log-dir-exists", "overwrite")
    assert found.code == 0, found.err
    assert f"{ROWS - len(fitting)} prompts are too long to be answered, and left out" in found.err
    assert f"prompts: {len(fitting)} of {ROWS}" in found.err

    run = Path(found.out.strip())
    steps = json.loads((run / "training_log.json").read_text())["steps"]
    assert [entry["step"] for entry in steps] == [1, 2]
    for entry in steps:
        # So many of the answers were right, and the others wrong.
        right = (entry["reward"] - WRONG) / (RIGHT - WRONG) * BATCH * GROUP
        assert right == pytest.approx(round(right), abs=1e-6)
        assert 0 <= round(right) <= BATCH * GROUP
        assert (entry["unanswered"], entry["unrewarded"]) == (0, 0)
        assert all(math.isfinite(entry[name]) for name in ("loss", "kl", "entropy"))
    questions = {row["question"] for row in fitting}
    kept = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 2]
    for line in kept:
        assert line["prompt"][-1]["content"] in questions
        assert set(line["rewards"]) <= {RIGHT, WRONG}
        assert len(line["answers"]) == GROUP

    Path("prompts.json").write_text(json.dumps([fitting[0]["question"]]))
    tested = tt("test", "--lora-weights", run, "--test-prompts", "prompts.json", "--max-tokens", 4)
    assert tested.code == 0, tested.err
    assert json.loads(Path("lora_test_results.json").read_text())["results"][0]["lora_response"]
