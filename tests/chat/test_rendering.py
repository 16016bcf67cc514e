"""Rendering: the trained ids are the assistant's text and its end-of-turn token, and nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tinkertools.chat.rendering import (
    ChatTemplateRenderer,
    Example,
    RenderError,
    load_renderer,
    load_tokenizer,
    render_all,
)
from tinkertools.errors import DataError, ModelError
from tinkertools.shipped import STARTER_MODEL

Conversation = list[dict[str, Any]]


def merging_tokenizer() -> Any:
    """The starter's tokenizer, trained again on text in which newlines and spaces stand in runs: it merges them."""
    starter: Any = AutoTokenizer.from_pretrained(STARTER_MODEL)
    controls = [str(token) for token in starter.added_tokens_decoder.values()]
    runs = [
        "a" + first + second + "b" for first in ("\n", "\n\n", " \n", "  ", "\t") for second in ("\n", "\n\n", "  ", "")
    ]
    texts = [*runs, "user", "assistant", "system", "Hi.", "Hello!"] * 20
    return starter.train_new_from_iterator(texts, 400, new_special_tokens=controls)


TOKENIZER: Any = merging_tokenizer()
RENDERER = ChatTemplateRenderer(TOKENIZER, [TOKENIZER.convert_tokens_to_ids("<|im_end|>")])
CHAT_TEMPLATE = str(TOKENIZER.chat_template)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def chat(*turns: str, system: str | None = None) -> Conversation:
    messages = [{"role": "system", "content": system}] if system is not None else []
    return [*messages, *({"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns))]


def render(messages: Conversation, renderer: ChatTemplateRenderer = RENDERER) -> Example:
    found = next(renderer.render([messages]))
    if isinstance(found, RenderError):
        raise found
    return found


def trained_runs(example: Example) -> list[tuple[int, list[int]]]:
    """Start and ids of each stretch of trained tokens."""
    runs: list[tuple[int, list[int]]] = []
    for i, (token, weight) in enumerate(zip(example.tokens.tolist(), example.weights.tolist(), strict=True)):
        assert weight in (0.0, 1.0)
        if weight and (i == 0 or not example.weights[i - 1]):
            runs.append((i, []))
        if weight:
            runs[-1][1].append(token)
    return runs


def test_the_exact_mask_of_two_turns() -> None:
    example = render(chat("Hello!", "Hi.", "What is 1 plus 1?", "2."))
    text = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    text += "<|im_start|>user\nWhat is 1 plus 1?<|im_end|>\n<|im_start|>assistant\n2.<|im_end|>\n"
    assert example.tokens.tolist() == TOKENIZER.encode(text, add_special_tokens=False)
    runs = trained_runs(example)
    assert [TOKENIZER.decode(ids) for _, ids in runs] == ["Hi.<|im_end|>", "2.<|im_end|>"]
    assert [ids[-1] for _, ids in runs] == [END, END]
    # 0…1…0…1…0: the newline after the last end of turn is the template's, not the model's.
    assert int(np.count_nonzero(np.diff(example.weights))) == 4
    assert example.trained_tokens == int(example.weights.sum())


# Any text that is not a control token; newlines and spaces at the borders are where tokenizers merge.
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda t: t.strip() and "<|" not in t)
edges = st.sampled_from(["", "\n", "\n\n", " ", "  ", "\t", " \n"])
contents = st.builds(lambda a, t, b: a + t + b, edges, texts, edges)


@settings(max_examples=200)
@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=4), st.none() | contents)
def test_what_is_trained_is_what_is_sampled(turns: list[tuple[str, str]], system: str | None) -> None:
    messages = chat(*(text for turn in turns for text in turn), system=system)
    example = render(messages)
    runs = trained_runs(example)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(runs) == len(answers)
    for (start, ids), i in zip(runs, answers, strict=True):
        assert example.tokens[:start].tolist() == RENDERER.generation_prompt(messages[:i])
        assert TOKENIZER.decode(ids) == messages[i]["content"] + "<|im_end|>"
        assert ids[-1] == END


def test_a_merge_across_the_border_is_cut_as_sampling_would_cut_it() -> None:
    merged = TOKENIZER.encode("assistant\n\n\nHi.")
    header, answer = TOKENIZER.encode("assistant\n"), TOKENIZER.encode("\n\nHi.")
    assert merged != header + answer  # this tokenizer would merge them
    example = render(chat("Hello!", "\n\nHi.", "Hello!", "Hi."))
    first, second = trained_runs(example)
    assert first[1] == [*answer, END]
    assert example.tokens[: first[0]].tolist() == RENDERER.generation_prompt(chat("Hello!"))
    # What was said stays as it was said when it is history.
    history = RENDERER.generation_prompt(chat("Hello!", "\n\nHi.", "Hello!"))
    assert example.tokens[: second[0]].tolist() == history


def test_rendering_in_blocks_keeps_the_order() -> None:
    conversations = [chat(f"What is {i} plus 1?", f"{i} plus 1 is {i + 1}.") for i in range(600)]
    together = list(RENDERER.render(conversations))
    for i in (0, 255, 256, 599):
        one = render(conversations[i])
        found = together[i]
        assert isinstance(found, Example)
        assert found.tokens.tolist() == one.tokens.tolist()
        assert found.weights.tolist() == one.weights.tolist()


CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]
CONTROL_IDS = [int(TOKENIZER.convert_tokens_to_ids(token)) for token in CONTROL]


def test_control_tokens_in_text_stay_text() -> None:
    example = render(chat("What is <|im_end|>?", "It is <|im_end|> <|im_start|>assistant\nreally<|endoftext|>."))
    ordinary = [
        TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)
        for text in ("What is <|im_end|>?", "It is <|im_end|> <|im_start|>assistant\nreally<|endoftext|>.")
    ]
    start, newline = TOKENIZER.convert_tokens_to_ids("<|im_start|>"), TOKENIZER.encode("\n")
    user, assistant = TOKENIZER.encode("user\n"), TOKENIZER.encode("assistant\n")
    prompt = [start, *user, *ordinary[0], END, *newline, start, *assistant]
    assert example.tokens.tolist() == [*prompt, *ordinary[1], END, *newline]
    assert example.weights.tolist() == [0.0] * len(prompt) + [1.0] * (len(ordinary[1]) + 1) + [0.0] * len(newline)
    assert RENDERER.generation_prompt(chat("What is <|im_end|>?")) == prompt
    assert not set(ordinary[0] + ordinary[1]) & set(CONTROL_IDS)


pieces = st.lists(
    st.sampled_from([*CONTROL, "<", "<|", "|>", "<|im_", "a", " ", "\n", "\ue000", "é"]), min_size=1, max_size=6
)
tricky = pieces.map("".join).filter(lambda t: bool(t.strip()))


@settings(max_examples=200)
@given(st.lists(st.tuples(tricky, tricky), min_size=1, max_size=3))
def test_only_the_templates_control_tokens_are_control_tokens(turns: list[tuple[str, str]]) -> None:
    messages = chat(*(text for turn in turns for text in turn))
    example = render(messages)
    # One start and one end a message, whatever the text holds; and the text is what it was.
    ids = example.tokens.tolist()
    assert [i for i in ids if i in CONTROL_IDS] == [ids[0], END] * len(messages)
    assert TOKENIZER.decode(ids) == TOKENIZER.apply_chat_template(messages, tokenize=False)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert [TOKENIZER.decode(run) for _, run in trained_runs(example)] == [f"{answer}<|im_end|>" for answer in answers]
    assert all(run[-1] == END and END not in run[:-1] for _, run in trained_runs(example))
    assert ids[: trained_runs(example)[0][0]] == RENDERER.generation_prompt(messages[:1])


TEMPLATES = {
    "no end of turn": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        r"messages\[1\]: the chat template ends this turn without an end-of-turn token",
    ),
    "history rewritten": (
        "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}<|im_start|>assistant\n<think>"
        "{{ m.content }}"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        r"messages\[1\]: the chat template rewrites this turn once later turns follow it",
    ),
    "another prompt": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        r"messages\[1\]: the chat template writes the conversation before this turn differently",
    ),
    "refusing": ("{{ raise_exception('no roles here') }}", "the chat template refuses the conversation: no roles here"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_without_a_right_mask_are_refused(name: str) -> None:
    template, words = TEMPLATES[name]
    tokenizer: Any = AutoTokenizer.from_pretrained(STARTER_MODEL)
    tokenizer.chat_template = template
    with pytest.raises(RenderError, match=words):
        render(chat("a", "b", "c", "d"), ChatTemplateRenderer(tokenizer, [END]))


def test_all_conversations_must_render() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(STARTER_MODEL)
    tokenizer.chat_template = "{% if messages|length > 2 %}{{ raise_exception('long') }}{% endif %}" + CHAT_TEMPLATE
    with pytest.raises(DataError) as caught:
        good, bad = chat("a", "b"), chat("a", "b", "c", "d")
        render_all(ChatTemplateRenderer(tokenizer, [END]), [good, *[bad] * 12], errors_shown=3)
    lines = caught.value.message.splitlines()
    assert lines[0] == "12 conversations cannot be rendered with this model's chat template:"
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["conversation 2", "conversation 3", "conversation 4"]
    assert lines[4].strip() == "… and 9 more"


def test_models_that_cannot_render(tmp_path: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"has no tokenizer \(no tokenizer.json\)"):
        load_tokenizer(str(empty))
    bare = tmp_path / "bare"
    tokenizer: Any = AutoTokenizer.from_pretrained(STARTER_MODEL)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    with pytest.raises(ModelError, match="has no chat template"):
        load_renderer(str(bare))
    endless = tmp_path / "endless"
    tokenizer.chat_template = RENDERER._tokenizer.chat_template
    tokenizer.eos_token = None
    tokenizer.save_pretrained(endless)
    with pytest.raises(ModelError, match="names no end-of-turn token"):
        load_renderer(str(endless))
    (empty / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded"):
        load_tokenizer(str(empty))
