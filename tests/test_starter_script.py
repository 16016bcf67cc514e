"""The script that made what ships makes it again."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tinkertools import shipped


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_starter", shipped.DATA / "make_starter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_samples_are_the_scripts(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SAMPLES_DIR", tmp_path)
    script.write_samples()
    shipped_files = sorted(shipped.SAMPLE_PROMPTS.parent.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in shipped_files]
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in shipped_files)


def test_the_tokenizer_is_the_scripts(script: ModuleType) -> None:
    made = json.loads(script.train_tokenizer().backend_tokenizer.to_str())
    kept = json.loads((shipped.STARTER_MODEL / "tokenizer.json").read_text())
    assert made["model"] == kept["model"]
    assert made["added_tokens"] == kept["added_tokens"]


@pytest.mark.slow
def test_the_scripts_training_repeats_to_the_bit_and_learns(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(shipped.STARTER_MODEL)
    # Few conversations a step say the same, and take seconds.
    monkeypatch.setattr(script, "BATCH", 2)
    once, twice = (script.train_model(tokenizer, 3).state_dict() for _ in range(2))
    assert all(torch.equal(once[name], tensor) for name, tensor in twice.items())
    fresh = script.make_model(len(tokenizer)).to(torch.bfloat16).state_dict()
    assert not all(torch.equal(fresh[name], tensor) for name, tensor in once.items())


def test_what_is_emitted_is_the_answer_and_its_end(script: ModuleType) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(shipped.STARTER_MODEL)
    messages = script.chat([("Hello!", "Hi."), ("Add 1 and 2.", "1 plus 2 is 3.")], "Answer briefly.")
    ids, emitted = script.encode(tokenizer, messages)
    assert ids == tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    kept = [token for token, one in zip(ids, emitted, strict=True) if one]
    assert tokenizer.decode(kept) == "Hi.<|im_end|>1 plus 2 is 3.<|im_end|>"
