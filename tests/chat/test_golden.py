"""Masks and rules that other projects hold their own code to, found again here."""

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tinkertools.chat.conversations import RowError, validate
from tinkertools.chat.examples import Example, RenderError
from tinkertools.chat.templates import ChatTemplateRenderer

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}In: {{ message.content }} Out:"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
EOS = 1


def byte_tokenizer() -> Any:
    """Every byte is a token, whose number is its value; 1 is the end of a turn."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    alphabet = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    alphabet[EOS] = "<eos>"
    tokenizer = Tokenizer(models.BPE(vocab={token: byte for byte, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=TEMPLATE)


def render(*texts: str) -> Example:
    renderer = ChatTemplateRenderer(byte_tokenizer(), [EOS])
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    (found,) = renderer.render([{"messages": messages}])
    assert not isinstance(found, RenderError)
    (example,) = found
    return example


def test_the_mask_of_a_prompt_and_its_answer() -> None:
    example = render("Foo", "Bar")
    assert example.tokens.tolist() == [*b"In: Foo Out:", 66, 97, 114, 1]
    assert example.weights.tolist() == [0.0] * 12 + [1.0] * 4
    assert example.trained_tokens == 4


def test_the_mask_of_an_example_cut_before_its_answer() -> None:
    cut = render("Foo", "Bar").head(5)
    assert cut.tokens.tolist() == [*b"In: F"]
    assert cut.weights.tolist() == [0.0] * 5
    assert cut.trained_tokens == 0
    assert cut.runs == []


def test_the_mask_of_two_turns_changes_three_times() -> None:
    example = render("Foo", "Bar", "Föö", "Bär")
    prompt, answer = "In: Föö Out:".encode(), "Bär".encode()
    assert example.tokens.tolist() == [*b"In: Foo Out:", 66, 97, 114, 1, *prompt, *answer, 1]
    assert example.weights.tolist() == [0.0] * 12 + [1.0] * 4 + [0.0] * len(prompt) + [1.0] * (len(answer) + 1)
    mask = example.weights.tolist()
    changes = [i for i in range(1, len(mask)) if mask[i] != mask[i - 1]]
    assert (mask[0], mask[-1], len(changes)) == (0.0, 1.0, 3)
    assert example.runs == [(changes[0], changes[1]), (changes[2], len(mask))]


def message(role: str, content: str = "Foo", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


CALL: dict[str, Any] = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        ([], "messages", "is empty"),
        ([message("user")], "messages", "no assistant message, so nothing to train on"),
        ([message("assistant")], "messages[0].role", "the assistant speaks first; a user message must come before"),
        (
            [message("assistant"), message("user"), message("assistant")],
            "messages[0].role",
            "the assistant speaks first; a user message must come before",
        ),
        (
            [message("system"), message("assistant"), message("user"), message("assistant")],
            "messages[1].role",
            "the assistant speaks first; a user message must come before",
        ),
        (
            [message("user"), message("system"), message("assistant")],
            "messages[1].role",
            "a system message must come first",
        ),
        (
            [message("system"), message("system"), message("user"), message("assistant")],
            "messages[1].role",
            "a system message must come first",
        ),
        (
            [message("user"), message("tool"), message("assistant")],
            "messages[1].role",
            "a tool message answers an assistant message with tool_calls, and none stands before this one",
        ),
        (
            [message("user"), message("assistant"), message("tool"), message("assistant")],
            "messages[2].role",
            "a tool message answers an assistant message with tool_calls, and none stands before this one",
        ),
    ],
)
def test_conversations_that_are_refused(messages: list[dict[str, Any]], field: str, reason: str) -> None:
    with pytest.raises(RowError) as refusal:
        validate(messages)
    assert (refusal.value.field_name, refusal.value.reason) == (field, reason)


@pytest.mark.parametrize(
    "messages",
    [
        [message("user"), message("assistant")],
        [message("system"), message("user"), message("assistant")],
        [message("user"), message("assistant"), message("user"), message("assistant")],
        [message("user"), message("assistant", **CALL), message("tool"), message("tool"), message("assistant")],
    ],
)
def test_conversations_that_are_taken_as_they_are(messages: list[dict[str, Any]]) -> None:
    assert validate(messages) is messages
