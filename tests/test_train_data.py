"""What `tt train` makes of its data before it trains: shown, counted, kept, checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tinkertools.shipped import STARTER_MODEL

DRY = ("train", "--dry-run")


Tt = Callable[..., Any]

TURNS = [
    [("user", "Hello!"), ("assistant", "Hi."), ("user", "What is 1 plus 1?"), ("assistant", "2.")],
    [("user", "Hello!"), ("assistant", "Hi.")],
    [("user", "What is 2 plus 1?"), ("assistant", "2 plus 1 is 3.")],
]


def size(*texts: str) -> int:
    """Tokens of texts, by the tokenizer alone."""
    tokenizer = AutoTokenizer.from_pretrained(STARTER_MODEL)
    return sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)


def written(row: list[tuple[str, str]]) -> str:
    return "\n".join(f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in row)


ENDED = [f"{content}<|im_end|>" for row in TURNS for role, content in row if role == "assistant"]
SIZES = [size(written(row)) for row in TURNS]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) for row in TURNS]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_dry_run_shows_what_would_be_trained(tt: Tt, tiny: str, data: Path, tmp_path: Path) -> None:
    found = tt(*DRY, "--base-model", tiny, "--data", data, "--batch", 2)
    limit = json.loads((Path(tiny) / "config.json").read_text())["max_position_embeddings"]
    assert found.code == 0
    assert found.out.splitlines() == [
        f"── example 1: {SIZES[0]} tokens, {size(*ENDED[:2])} trained ──",
        "<|im_start|>user↵",
        "Hello!<|im_end|>↵",
        "<|im_start|>assistant↵",
        "⟦Hi.<|im_end|>⟧↵",
        "<|im_start|>user↵",
        "What is 1 plus 1?<|im_end|>↵",
        "<|im_start|>assistant↵",
        "⟦2.<|im_end|>⟧",
        f"── example 2: {SIZES[1]} tokens, {size(ENDED[2])} trained ──",
        "<|im_start|>user↵",
        "Hello!<|im_end|>↵",
        "<|im_start|>assistant↵",
        "⟦Hi.<|im_end|>⟧",
    ]
    for words in (
        "renderer: chat-template (the model's own), trained on ALL_ASSISTANT_MESSAGES",
        f"examples: 3 of 3 conversations, with {sum(SIZES)} tokens, {size(*ENDED)} of them trained "
        f"({size(*ENDED) / sum(SIZES):.1%})",
        f"tokens an example: {SIZES[2]} (50 %), {SIZES[0]} (90 %), {SIZES[0]} (99 %), at most {SIZES[0]}; "
        f"limit {limit:,}",
        f"saved: {SIZES[1]} tokens, since turns that share their history are trained in one example",
        "self-check: 3 conversations are trained exactly as they are sampled",
        "steps: 2 of 2 conversations, 2 an epoch",
        "this was a dry run",
    ):
        assert words in found.err
    assert not (tmp_path / "checkpoints").exists()


def test_colours_instead_of_brackets_where_there_are_colours(
    tt: Tt, tiny: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    found = tt(*DRY, "--base-model", tiny, "--data", data, "--batch", 2)
    assert "\x1b[1;32mHi.<|im_end|>\x1b[0m" in found.out
    assert "⟦" not in found.out


def test_unchanged_data_are_not_tokenised_again(tt: Tt, tiny: str, data: Path) -> None:
    arguments = (*DRY, "--base-model", tiny, "--data", data, "--batch", 2)
    first, second = tt(*arguments), tt(*arguments)
    assert "tokens: not in the cache; rendered and kept for the next run" in first.err
    assert "tokens: from the cache" in second.err
    assert "render: 3/3 conversations" in first.err
    assert "render:" not in second.err
    assert second.out == first.out
    off = tt(*arguments, "--no-cache")
    assert "tokens: rendered; the cache is off" in off.err
    assert off.out == first.out
    other = tt(*arguments, "--train-on-what", "last_assistant_turn")
    assert "tokens: not in the cache" in other.err
    data.write_text(data.read_text().replace("3.", "4."))
    assert "tokens: not in the cache" in tt(*arguments).err


@pytest.mark.parametrize(
    ("what", "trained"),
    [
        ("all_assistant_messages", size(*ENDED)),
        ("LAST_ASSISTANT_MESSAGE", size(*ENDED[1:])),
        # The first token has nothing before it to be predicted from.
        ("ALL_TEXT", sum(SIZES) - 3),
        ("all_messages", size(*(f"{content}<|im_end|>" for row in TURNS for _, content in row))),
    ],
)
def test_train_on_what(tt: Tt, tiny: str, data: Path, what: str, trained: int) -> None:
    found = tt(*DRY, "--base-model", tiny, "--data", data, "--batch", 2, "--train-on-what", what)
    assert found.code == 0
    assert f" tokens, {trained} of them trained" in found.err


def test_what_does_not_fit_is_counted(tt: Tt, tiny: str, data: Path) -> None:
    limit = SIZES[1] + 1
    arguments = (*DRY, "--base-model", tiny, "--data", data, "--batch", 1, "--max-length", limit)
    counts = f"1 cut, {SIZES[0] - SIZES[1]} tokens in all; 1 dropped, since no whole turn fits"
    strict = tt(*arguments)
    assert counts in strict.err
    assert "training would stop: 2 examples are too long, and --overlength is error" in strict.err
    cut = tt(*arguments, "--overlength", "truncate")
    assert counts in cut.err
    assert "training would stop" not in cut.err
    dropped = tt(*arguments, "--overlength", "drop")
    assert "2 dropped as too long" in dropped.err
    assert "examples: 1 of 3 conversations" in dropped.err
    real = tt("train", *arguments[2:])
    assert (real.code, f"conversation 1 has {SIZES[0]} tokens, more than the limit of {limit}" in real.err) == (1, True)


def test_a_renderer_for_another_model_is_stopped_by_the_self_check(tt: Tt, tiny: str, data: Path) -> None:
    found = tt("train", "--base-model", tiny, "--data", data, "--batch", 2, "--renderer", "qwen3")
    assert found.code == 1
    assert "qwen3 is not for this model" in found.err
    assert not Path("checkpoints").exists()


def test_the_renderer_is_kept_with_the_run_and_used_to_ask(tt: Tt, tiny: str, data: Path) -> None:
    trained = tt(
        "train", "--base-model", tiny, "--data", data, "--batch", 3, "--run-name", "r", "--renderer", "chat-template",
        "--train-on-what", "last_assistant_message", "--max-steps", 1,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    saved = json.loads((Path("checkpoints/r") / "config.json").read_text())
    assert (saved["renderer"], saved["config"]["renderer"]) == ("chat-template", "chat-template")
    assert saved["config"]["train_on_what"] == "LAST_ASSISTANT_MESSAGE"
    assert saved["versions"]["tml-renderers"]
    config = Path("checkpoints/r/config.json")
    config.write_text(json.dumps({**saved, "renderer": "no-such-renderer"}))
    asked = tt("test", "--lora-weights", "checkpoints/r", "--max-tokens", 1)
    assert (asked.code, "--renderer no-such-renderer: there is no such renderer" in asked.err) == (2, True)
    named = tt("test", "--lora-weights", "checkpoints/r", "--max-tokens", 1, "--renderer", "chat-template")
    assert named.code == 0, named.err


def test_a_dry_run_needs_no_server(tt: Tt, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    found = tt(*DRY, "--base-model", "Qwen/Qwen3-8B", "--data", data, "--batch", 2, "--learning-rate", 1e-4)
    assert found.code == 0, found.err
    assert "renderer: qwen3 (the vendor's, for this model)" in found.err
    assert "split: 1 conversations into 2 examples, since the renderer rewrites earlier turns" in found.err
    assert "limit not known" in found.err
    assert "⟦<think>↵\n↵\n</think>↵\n↵\nHi.<|im_end|>⟧" in found.out
    assert "tml-secret" not in found.out + found.err
