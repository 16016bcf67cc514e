"""Pairs: exact tokens and weights of both answers, against the tokenizers themselves and against TRL."""

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import orjson
import pytest
from families import TEMPLATES, Template, TheDay, make_tokenizer, needs_trl
from hypothesis import given
from hypothesis import strategies as st
from marks import mostly_slow
from transformers.utils import chat_template_utils

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.examples import Example
from tinkertools.chat.pairs import TRAIN_PAIRS_ON, Pair, check_pairs, fit_pairs, render_pairs
from tinkertools.chat.preferences import Preference, from_preference
from tinkertools.chat.records import read_preferences
from tinkertools.chat.rendering import Found, Renderer, load_renderer
from tinkertools.chat.sources import find_source
from tinkertools.chat.templates import ChatTemplateRenderer
from tinkertools.errors import DataError
from tinkertools.shipped import STARTER_MODEL

Tt = Callable[..., Any]

STARTER = load_renderer(str(STARTER_MODEL), "auto", TRAIN_PAIRS_ON)
MODELS = [
    str(STARTER_MODEL),
    "Qwen/Qwen3-8B",
    "openai/gpt-oss-20b",
    "zai-org/GLM-5.2",
]
ACCEPTED = [template for template in TEMPLATES if template.refused is None]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The starter model's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(STARTER_MODEL)


def preference(chosen: str = "It is 4.", rejected: str = "It is 5.", **beside: Any) -> Preference:
    prompt = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi there!"},
        {"role": "user", "content": "What is 2 plus 2?"},
    ]
    return from_preference({"prompt": prompt, "chosen": chosen, "rejected": rejected, **beside})


def answered(answer: list[dict[str, Any]], asked: str = "q") -> Preference:
    """A preference of an answer of several messages."""
    return from_preference({"prompt": asked, "chosen": answer, "rejected": "no"})


def trained(example: Example) -> list[int]:
    """The tokens that are trained."""
    return cast("list[int]", example.tokens[example.weights != 0].tolist())


def test_the_tokens_and_weights_of_both_sides(tokenizer: Any) -> None:
    (pair, second) = render_pairs(STARTER, [preference(margin=0.5), preference("No.", "Yes.")], 1)
    prompt = tokenizer.encode(
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nHi there!"
        "<|im_end|>\n<|im_start|>user\nWhat is 2 plus 2?<|im_end|>\n<|im_start|>assistant\n",
        add_special_tokens=False,
    )
    for example, said in ((pair.chosen, "It is 4."), (pair.rejected, "It is 5."), (second.chosen, "No.")):
        answer = tokenizer.encode(f"{said}<|im_end|>", add_special_tokens=False)
        assert example.tokens.tolist() == prompt + answer
        assert example.weights.tolist() == [0.0] * len(prompt) + [1.0] * len(answer)
    assert [(p.margin, p.origin) for p in (pair, second)] == [(0.5, 0), (0.0, 1)]
    assert pair.tokens == len(pair.chosen.tokens) + len(pair.rejected.tokens)
    assert pair.trained_tokens == len(trained(pair.chosen)) + len(trained(pair.rejected))


@pytest.mark.parametrize("model", MODELS)
def test_what_stands_before_an_answer_is_the_prompt_it_is_sampled_with(model: str) -> None:
    renderer = load_renderer(model, "auto", TRAIN_PAIRS_ON)
    rows = [preference(), preference("x", "y\n\nz 🙂")]
    pairs = render_pairs(renderer, rows, 1)
    for row, pair in zip(rows, pairs, strict=True):
        prompt = renderer.generation_prompt({"messages": row["prompt"]}).tokens
        for example, answer in ((pair.chosen, row["chosen"]), (pair.rejected, row["rejected"])):
            start = len(prompt)
            assert example.tokens[:start].tolist() == prompt.tolist()
            assert example.weights.tolist() == [0.0] * start + [1.0] * (len(example.tokens) - start)
            assert example.tokens[-1] in renderer.stop_tokens
            assert answer[0]["content"] in renderer.text(trained(example))
    assert check_pairs(renderer, rows, pairs, None) == 4


@needs_trl
@pytest.mark.parametrize("template", mostly_slow(ACCEPTED, 20), ids=lambda template: template.name)
def test_the_same_as_trl_with_the_template_of_each_family(template: Template) -> None:
    """TRL takes the longest common start for the prompt, and keeps what a template writes after the end of a turn."""
    tokenizer = make_tokenizer(template)
    stops = tokenizer.convert_tokens_to_ids(list(template.tokens.stops))
    renderer = ChatTemplateRenderer(tokenizer, stops, TRAIN_PAIRS_ON)
    row = from_preference({"prompt": "What is 2 plus 2?", "chosen": "It is 4.", "rejected": "Five"})
    (pair,) = render_pairs(renderer, [row], 1)
    asked = cast("Preference", {
        side: [{**m, "content": [{"type": "text", "text": m["content"]}]} if template.parts else m for m in row[side]]
        for side in ("prompt", "chosen", "rejected")
    })  # fmt: skip
    with mock.patch.object(chat_template_utils, "datetime", TheDay):
        (prompt, *answers) = tokenised_by_trl(make_tokenizer(template), [asked])[0]
    for example, answer in zip((pair.chosen, pair.rejected), answers, strict=True):
        start, end = example.runs[0]
        whole = prompt + answer
        assert example.runs == [(start, len(example.tokens))]
        if template.straddles or template.tokens.swallow:
            # TRL has one token across the end of the prompt, or lets the tokenizer write a space there.
            assert (
                tokenizer.decode(whole).replace(" ", "").startswith(tokenizer.decode(example.tokens).replace(" ", ""))
            )
        else:
            assert example.tokens.tolist() == whole[:end]
            assert start == len(prompt)
            assert not set(whole[end:]) & set(renderer.stop_tokens)


def tokenised_by_trl(tokenizer: Any, rows: list[Preference]) -> list[tuple[list[int], list[int], list[int]]]:
    """The prompt's, the chosen and the rejected answer's tokens as DPOTrainer makes them."""
    import datasets
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    arguments: Any = SimpleNamespace(dataset_num_proc=None, max_length=None)
    stripped = [{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in rows]
    made = DPOTrainer._prepare_dataset(trainer, datasets.Dataset.from_list(stripped), tokenizer, arguments, "rows")
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in made]


@needs_trl
def test_real_rows_as_trl_tokenises_them(tokenizer: Any, shared_data: Path) -> None:
    rows = read_preferences(find_source(str(shared_data / "dpo_en_demo.json")), 1)[0]
    pairs = render_pairs(STARTER, rows, 1)
    assert [pair.origin for pair in pairs] == list(range(300))
    newline = tokenizer.encode("\n", add_special_tokens=False)
    for pair, (prompt, *answers) in zip(pairs[::6], tokenised_by_trl(tokenizer, rows[::6]), strict=True):
        for example, answer in zip((pair.chosen, pair.rejected), answers, strict=True):
            # The template ends a turn with a newline, which no model says.
            assert answer[-len(newline) :] == newline
            said = answer[: -len(newline)]
            assert example.tokens.tolist() == prompt + said
            assert example.weights.tolist() == [0.0] * len(prompt) + [1.0] * len(said)
    assert check_pairs(STARTER, rows, pairs, None) == 16


@needs_trl
def test_the_implicit_prompt_is_the_one_that_trl_extracts(shared_data: Path) -> None:
    from trl.data_utils import extract_prompt

    for row in read_preferences(find_source(str(shared_data / "dpo_en_demo.json")), 1)[0]:
        whole: dict[str, Any] = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        assert from_preference(whole) == extract_prompt(whole) == row


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}


def test_what_a_tool_says_in_an_answer_is_not_trained() -> None:
    answer: list[dict[str, Any]] = [CALL, {"role": "tool", "content": "{}"}, {"role": "assistant", "content": "done"}]
    row = answered(answer)
    row["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    renderer = load_renderer("Qwen/Qwen3-4B-Instruct-2507", "auto", TRAIN_PAIRS_ON)
    (pair,) = render_pairs(renderer, [row], 1)
    first, second = pair.chosen.runs
    said = [renderer.text(pair.chosen.tokens[start:end].tolist()) for start, end in (first, second)]
    assert said == ['<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>', "done<|im_end|>"]
    between = renderer.text(pair.chosen.tokens[first[1] : second[0]].tolist())
    assert between == ("\n<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert '"name": "f"' in renderer.text(pair.rejected.tokens[: pair.rejected.runs[0][0]].tolist())
    assert check_pairs(renderer, [row], [pair], None) == 2


# One blue pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPj/HwADBwIAMCbHYQAAAABJRU5ErkJggg=="
)


def test_images_are_carried(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    asked = [
        {"role": "user", "content": [{"type": "image", "image": str(path)}, {"type": "text", "text": "What is it?"}]}
    ]
    row = from_preference({"prompt": asked, "chosen": "Blue.", "rejected": "Red."})
    renderer = load_renderer("Qwen/Qwen3-VL-30B-A3B-Instruct", "auto", TRAIN_PAIRS_ON)
    (pair,) = render_pairs(renderer, [row], 1)
    (image,) = pair.chosen.images
    assert (image.data, image.format) == (PNG, "png")
    assert pair.rejected.images == pair.chosen.images
    start = pair.chosen.runs[0][0]
    assert 0 < image.start < image.start + image.length < start
    assert check_pairs(renderer, [row], [pair], None) == 2


class Changed:
    """A renderer that writes some conversations otherwise."""

    def __init__(self, change: Callable[[str, list[Example]], list[Example]]) -> None:
        self.change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(STARTER, name)

    def render(self, conversations: Iterable[Conversation]) -> Iterator[Found]:
        conversations = list(conversations)
        for conversation, found in zip(conversations, STARTER.render(conversations), strict=True):
            assert isinstance(found, list)
            yield self.change(conversation["messages"][-1]["content"], found)


def longer_prompt(said: str, found: list[Example]) -> list[Example]:
    (example,) = found
    if said != "worse":
        return found
    return [
        replace(
            example,
            tokens=np.append(example.tokens[:1], example.tokens),
            weights=np.append(np.float32(0), example.weights),
        )
    ]


def untrained(said: str, found: list[Example]) -> list[Example]:
    return [replace(e, weights=np.zeros_like(e.weights)) for e in found] if said == "worse" else found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            longer_prompt,
            "the prompt is written in one way before the chosen answer and in another before the rejected one",
        ),
        (untrained, "the rejected answer has no token to train"),
        (lambda said, found: [] if said == "worse" else found, "the rejected answer has no token to train"),
    ],
)
def test_what_is_no_pair_is_refused_by_its_row(
    change: Callable[[str, list[Example]], list[Example]], reason: str
) -> None:
    rows = [preference(), preference(rejected="worse"), preference("a", "b"), preference("a", "worse")]
    with pytest.raises(DataError) as caught:
        render_pairs(cast("Renderer", Changed(change)), rows, 1)
    assert caught.value.message == (
        f"2 conversations cannot be rendered with chat-template:\n  row 2: {reason}\n  … and 1 more"
    )


def test_answers_in_several_examples_are_refused() -> None:
    """Qwen3 writes an answer's reasoning only while nobody has spoken after it."""
    answer = [
        {"role": "assistant", "content": "a", "reasoning_content": "because"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b", "reasoning_content": "so"},
    ]
    renderer = load_renderer("Qwen/Qwen3-8B", "auto", TRAIN_PAIRS_ON)
    with pytest.raises(DataError) as caught:
        render_pairs(renderer, [preference(), answered(answer)], 10)
    assert caught.value.message == (
        "1 conversation cannot be rendered with qwen3:\n  row 2: the chosen answer becomes 2 examples, since the "
        "renderer rewrites earlier turns; give an answer of one turn"
    )


@needs_trl
def test_answers_that_the_template_writes_as_the_same_are_refused() -> None:
    gemma = next(template for template in TEMPLATES if template.name == "gemma3")
    tokenizer = make_tokenizer(gemma)
    renderer = ChatTemplateRenderer(
        tokenizer, tokenizer.convert_tokens_to_ids(list(gemma.tokens.stops)), TRAIN_PAIRS_ON
    )
    with pytest.raises(DataError, match="row 1: both answers are written as the same tokens"):
        render_pairs(renderer, [from_preference({"prompt": "q", "chosen": "a", "rejected": "a "})], 1)


def test_what_cannot_be_rendered_is_called_by_row_and_side() -> None:
    image = {"type": "image", "image": "wall.png"}
    asked = [{"role": "user", "content": [image, {"type": "text", "text": "q"}]}]
    bad = from_preference({"prompt": asked, "chosen": "a", "rejected": "b"})
    with pytest.raises(DataError) as caught:
        render_pairs(load_renderer("Qwen/Qwen3-8B", "auto", TRAIN_PAIRS_ON), [preference(), bad], 10)
    first, *others = caught.value.message.split("\n  ")
    assert first == "2 conversations cannot be rendered with qwen3:"
    assert [other.partition(": ")[0] for other in others] == ["row 2, chosen", "row 2, rejected"]


def test_the_self_check_stops_what_is_wrong() -> None:
    rows = [preference() for _ in range(20)]
    pairs = render_pairs(STARTER, rows, 1)
    wrong = [
        replace(
            pair,
            rejected=replace(pair.rejected, weights=pair.rejected.weights * np.append(0, pair.rejected.weights[:-1])),
        )
        for pair in pairs
    ]
    with pytest.raises(DataError, match="the self-check failed on row 1, rejected: the tokens before the answer"):
        check_pairs(STARTER, rows, wrong, None)
    with pytest.raises(DataError, match="row 1, chosen has token"):
        check_pairs(STARTER, rows, pairs, 10)
    with pytest.raises(DataError, match=r"the self-check failed on row 1, chosen: .* do not give back its text"):
        check_pairs(STARTER, rows, [replace(p, chosen=p.rejected, rejected=p.chosen) for p in pairs], None)


def lengths(pairs: Iterable[Pair]) -> list[tuple[int, int]]:
    return [(len(pair.chosen.tokens), len(pair.rejected.tokens)) for pair in pairs]


def test_pairs_are_left_out_whole() -> None:
    long = " ".join(["word"] * 50)
    pairs = render_pairs(STARTER, [preference(), preference(rejected=long), preference(chosen=long)], 1)
    limit = pairs[0].length
    assert fit_pairs(pairs, None, "error").pairs == pairs
    for overlength in ("drop", "truncate"):
        fitted = fit_pairs(pairs, limit, overlength)
        assert (fitted.pairs, fitted.dropped) == (pairs[:1], 2)
        assert (fitted.tokens, fitted.trained_tokens) == (pairs[0].tokens, pairs[0].trained_tokens)
        with pytest.raises(
            DataError, match=f"no pair is left: of all 3, one side or both are longer than {limit - 1} "
        ):
            fit_pairs(pairs, limit - 1, overlength)
    with pytest.raises(DataError) as caught:
        fit_pairs(pairs, limit, "error")
    assert caught.value.message == (
        f"row 2, rejected: prompt and answer have {pairs[1].length} tokens, more than the limit of {limit}"
    )
    with pytest.raises(DataError, match=r"^row 3, chosen: "):
        fit_pairs(pairs[2:], limit, "error")


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)


@given(st.lists(st.lists(words, min_size=3, max_size=3, unique=True), min_size=1, max_size=4), st.integers(10, 200))
def test_no_text_is_lost_or_swapped(rows: list[list[str]], limit: int) -> None:
    preferences = [from_preference({"prompt": asked, "chosen": good, "rejected": bad}) for asked, good, bad in rows]
    pairs = render_pairs(STARTER, preferences, 1)
    for pair, (asked, good, bad) in zip(pairs, rows, strict=True):
        prompt = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        assert STARTER.text(pair.chosen.tokens.tolist()) == f"{prompt}{good}<|im_end|>"
        assert STARTER.text(pair.rejected.tokens.tolist()) == f"{prompt}{bad}<|im_end|>"
        assert STARTER.text(trained(pair.chosen)) == f"{good}<|im_end|>"
        assert STARTER.text(trained(pair.rejected)) == f"{bad}<|im_end|>"
    fitting = [pair for pair in pairs if max(*lengths([pair])[0]) <= limit]
    if fitting:
        fitted = fit_pairs(pairs, limit, "drop")
        assert (fitted.pairs, fitted.dropped) == (fitting, len(pairs) - len(fitting))


def test_a_preview_shows_both_sides(tt: Tt, tmp_path: Path) -> None:
    data, output = tmp_path / "a.jsonl", tmp_path / "o.jsonl"
    long = {"prompt": "q", "chosen": " ".join(["word"] * 3000), "rejected": "x"}
    data.write_bytes(orjson.dumps({"prompt": "q", "chosen": "yes", "rejected": "no"}) + b"\n" + orjson.dumps(long))
    found = tt("prepare", "--dataset", data, "--output", output, "--preview", 1)
    assert found.code == 0
    prompt = "<|im_start|>user↵\nq<|im_end|>↵\n<|im_start|>assistant↵\n"
    (pair,) = render_pairs(STARTER, [from_preference({"prompt": "q", "chosen": "yes", "rejected": "no"})], 1)
    sizes = [f"{len(e.tokens)} tokens, {e.trained_tokens} trained" for e in (pair.chosen, pair.rejected)]
    assert found.out == (
        f"── pair 1, chosen: {sizes[0]} ──\n{prompt}⟦yes<|im_end|>⟧\n"
        f"── pair 1, rejected: {sizes[1]} ──\n{prompt}⟦no<|im_end|>⟧\n{output}\n"
    )
    assert "trained on both answers\n" in found.err
    assert f"pairs: 1 of 2, with {pair.tokens} tokens on both sides, {pair.trained_tokens} of them trained" in found.err
    assert "note: 1 dropped as too long\n" in found.err
    assert "self-check: 4 answers are trained exactly as they are sampled\n" in found.err
