"""Real conversations through every command: prepared, trained on, tested and compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_files import write_rows

Tt = Callable[..., Any]


def lines(path: Path) -> list[Any]:
    # Not `splitlines`: real text holds line separators of other kinds.
    return [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]


@pytest.mark.slow
def test_gsm8k_and_sharegpt_from_file_to_comparison(tt: Tt, shared_data: Path) -> None:
    prepared = tt("prepare", "--dataset", shared_data / "gsm8k_train.jsonl", "--output", "gsm8k.jsonl")
    assert prepared.code == 0, prepared.err
    assert "rows in: 7,473 = 7,473 kept + 0 refused" in prepared.err
    first = lines(shared_data / "gsm8k_train.jsonl")[0]
    assert lines(Path("gsm8k.jsonl"))[0] == {
        "messages": [{"role": "user", "content": first["question"]}, {"role": "assistant", "content": first["answer"]}]
    }
    held_out = tt(
        "prepare", "--dataset", shared_data / "gsm8k_test.jsonl", "--output", "test.jsonl", "--max-examples", 40
    )
    assert "rows in: 40 = 40 kept + 0 refused" in held_out.err
    chats = tt("prepare", "--dataset", shared_data / "sharegpt_dummy_conversation.json", "--output", "chats.jsonl")
    assert "rows in: 500 = 500 kept + 0 refused" in chats.err
    assert "ShareGPT" in chats.err
    Path("all").mkdir()
    mixed = lines(Path("gsm8k.jsonl"))[:400] + lines(Path("chats.jsonl"))
    write_rows(Path("all/mixed.jsonl"), mixed)

    trained = tt("train", "--data", "all", "--batch", 8, "--max-steps", 36, "--overlength", "drop", "--save-every", 18)
    assert trained.code == 0, trained.err
    run = Path(trained.out.strip())
    log = json.loads((run / "training_log.json").read_text())["steps"]
    assert [entry["step"] for entry in log] == list(range(1, 37))
    assert sum(e["loss"] for e in log[-6:]) < 0.8 * sum(e["loss"] for e in log[:6])
    assert (run / "checkpoint_step_18").is_dir()

    tested = tt("test", "--data", "test.jsonl", "--max-tokens", 20)
    assert tested.code == 0, tested.err
    score = json.loads(Path("lora_test_results.json").read_text())["scores"]["lora"]
    compared = tt("compare", "--compare-base", "--data", "test.jsonl", "--max-tokens", 20)
    assert compared.code == 0, compared.err
    scores = json.loads(Path("comparison_results.json").read_text())["scores"]
    assert scores["lora"]["nll"] == score["nll"]
    assert scores["lora"]["nll"] < 0.8 * scores["base"]["nll"]
    assert scores["lora"]["trained_tokens"] == scores["base"]["trained_tokens"] > 1000


@pytest.mark.slow
def test_tool_calls_and_documents_from_file_to_adapter(tt: Tt, shared_data: Path) -> None:
    calls = tt("prepare", "--dataset", shared_data / "glaive_toolcall_en_demo.json", "--output", "all/calls.jsonl")
    assert "rows in: 300 = 300 kept + 0 refused" in calls.err
    sections = tt("prepare", "--dataset", shared_data / "*.md", "--output", "all/sections.jsonl")
    assert "rows in: 1 = 1 kept + 0 refused" in sections.err
    (section,) = lines(Path("all/sections.jsonl"))
    text = (shared_data / "README.md").read_text()
    heading, _, body = text.partition("\n")
    assert section["messages"] == [
        {"role": "user", "content": f"Explain: {heading.removeprefix('# ')}"},
        {"role": "assistant", "content": body.strip()},
    ]
    trained = tt("train", "--data", "all", "--batch", 4, "--max-steps", 2, "--overlength", "drop")
    assert trained.code == 0, trained.err
    assert (Path(trained.out.strip()) / "final_lora_weights").is_dir()
