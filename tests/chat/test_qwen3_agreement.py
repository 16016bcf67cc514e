"""Qwen3 on both paths: its own chat template with its own tokenizer, and the vendor's renderer, which knows neither."""

import importlib.util
import json
import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from families import needs_trl, template_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkertools.chat.examples import Example, RenderError
from tinkertools.chat.records import Conversation, read_all
from tinkertools.chat.sources import find_source
from tinkertools.chat.templates import ChatTemplateRenderer
from tinkertools.chat.vendor import VendorRenderer

pytestmark = needs_trl

# TRL's template and the vendor's renderer for the same models.
PAIRS = {"qwen3": "qwen3", "qwen3_instruct_2507": "qwen3_instruct"}
THINKS = "qwen3"
INSTRUCT = "qwen3_instruct_2507"

Message = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Both renderers of a model."""

    template: ChatTemplateRenderer
    vendor: VendorRenderer

    def render(self, conversation: Conversation) -> tuple[list[Example] | RenderError, list[Example] | RenderError]:
        return next(iter(self.template.render([conversation]))), next(iter(self.vendor.render([conversation])))


@pytest.fixture(scope="module")
def pairs(shared_data: Path) -> dict[str, Pair]:
    place = shared_data.parent / "bench" / "make_bench_model.py"
    spec = importlib.util.spec_from_file_location("make_bench_model", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.qwen3_tokenizer()
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    folder = template_folder()
    assert folder is not None
    found = {}
    for template, vendor in PAIRS.items():
        tokenizer.chat_template = (folder / f"{template}.jinja").read_text()
        found[template] = Pair(ChatTemplateRenderer(tokenizer, stops), VendorRenderer(vendor))
    return found


def plainly(examples: list[Example] | RenderError) -> list[tuple[list[int], list[float]]]:
    assert not isinstance(examples, RenderError), examples
    return [(example.tokens.tolist(), example.weights.tolist()) for example in examples]


@pytest.mark.slow
@pytest.mark.parametrize("template", PAIRS)
@pytest.mark.parametrize(
    ("file", "count"),
    [("gsm8k_test.jsonl", 300), ("sharegpt_dummy_conversation.json", 500), ("glaive_toolcall_en_demo.json", 300)],
)
def test_real_conversations(pairs: dict[str, Pair], shared_data: Path, template: str, file: str, count: int) -> None:
    conversations = read_all(find_source(str(shared_data / file)), errors_shown=1)[0][:count]
    assert len(conversations) == count
    pair = pairs[template]
    both = zip(pair.template.render(conversations), pair.vendor.render(conversations), strict=True)
    for conversation, (ours, theirs) in zip(conversations, both, strict=True):
        assert plainly(ours) == plainly(theirs), conversation


def chat(*turns: tuple[str, str] | tuple[str, str, Message], tools: list[Message] | None = None) -> Conversation:
    """A conversation of roles, texts and, where there are any, further fields."""
    messages = [{"role": turn[0], "content": turn[1]} | (turn[2] if len(turn) == 3 else {}) for turn in turns]
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def calls(name: str = "f", arguments: str = '{"x": 1}') -> Message:
    return {"tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]}


def tool(**changes: Any) -> list[Message]:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}} | changes
    return [{"type": "function", "function": {key: value for key, value in function.items() if value is not None}}]


OTHER_ORDER = {"description": "d", "name": "f", "parameters": {}}
BOTH = tuple(PAIRS)
USER, ASSISTANT, TOOL = "user", "assistant", "tool"
ASKED, SAID, RESULT = (USER, "Hello?"), (ASSISTANT, "Hi!"), (TOOL, "2")
THOUGHT = {"reasoning_content": "Why?"}
OTHER_PROMPT = (
    "messages[2]: the chat template writes the conversation before this turn differently from the prompt it would be "
    "sampled with"
)


@dataclass(frozen=True)
class Difference:
    """What the two paths do differently, on purpose: the tokens where a conversation differs, or how each ends."""

    name: str
    conversation: Conversation
    ours: str
    theirs: str
    templates: tuple[str, ...] = BOTH


DIFFERENCES = [
    # The tokenizer has tokens that are not special, such as `<think>`. What a message writes of them becomes such a
    # token on the template's path, as it does in every server of the model; with the vendor it is text.
    Difference("<think> in a question", chat((USER, "a <think> b"), SAID), " |<think>", " <|think|>"),
    Difference("<think> without an end", chat(ASKED, (ASSISTANT, "<think>Why?")), "<think>", "<th|ink|>"),
    # The template looks for results of tools in the user's words, and believes that the last turn goes on.
    Difference(
        "a question like a tool's result", chat((USER, "<tool_response>\n2\n</tool_response>"), SAID),
        "<tool_response>|\n|2|\n|</tool_response>|<|im_end|>|\n|<|im_start|>|assistant|\n",
        "<|tool|_response|>\n|2|\n|</|tool|_response|>|<|im_end|>|\n|<|im_start|>|assistant|\n"
        "|<think>|\n\n|</think>|\n\n",
        (THINKS,),
    ),
    # The template's path cuts the whole of the text into tokens, as servers do; the vendor each part by itself.
    Difference("a newline before a question", chat((USER, "\nHello?"), SAID), "\n\n", "\n|\n"),
    Difference("a newline before instructions", chat(("system", "\nBe kind."), ASKED, SAID), "\n\n", "\n|\n"),
    Difference(
        "a newline before an earlier answer", chat(ASKED, (ASSISTANT, "\nHi!"), ASKED, SAID), "\n\n", "\n|\n", (THINKS,)
    ),
    Difference(
        "a point before a call", chat(ASKED, (ASSISTANT, "Wait.", calls()), RESULT, SAID), ".\n", ".|\n", (THINKS,)
    ),
    Difference(
        "a space before a call", chat(ASKED, (ASSISTANT, "Wait ", calls()), RESULT, SAID), " \n", " |\n", (THINKS,)
    ),
    # The vendor's history, again, has them in one.
    Difference(
        "a point before a call, in one example or two", chat(ASKED, (ASSISTANT, "Wait.", calls()), RESULT, SAID),
        "1 example", "2 examples", (INSTRUCT,),
    ),
    # The vendor joins what has the same author.
    Difference("two questions", chat(ASKED, ASKED, SAID), "<|im_end|>|\n|<|im_start|>|user|\n", ""),
    Difference(
        "a developer's instructions", chat(("system", "Be kind."), ("developer", "Be brief."), ASKED, SAID),
        ".|<|im_end|>|\n|<|im_start|>|system|\n|Be", ".Be",
    ),
    # Without a question between them, Qwen3's template takes the first answer's reasoning, though empty, away.
    Difference("two answers", chat(ASKED, SAID, SAID), OTHER_PROMPT, "1 example", (THINKS,)),
    # The template keeps the reasoning that led to a call until the next question; the vendor does not.
    Difference(
        "reasoning before a call", chat(ASKED, (ASSISTANT, "", THOUGHT | calls()), RESULT, SAID), "1 example",
        "2 examples", (THINKS,),
    ),
    # Of reasoning, the models without it have no tokens; the vendor leaves it out of the history.
    Difference(
        "reasoning of a model without", chat(ASKED, (ASSISTANT, "Hi!", THOUGHT)), "<think>|\n|Why|?\n|</think>|\n\n",
        "<th|ink|>|Why|?</|think|>", (INSTRUCT,),
    ),
    Difference(
        "reasoning of a model without, before", chat(ASKED, (ASSISTANT, "Hi!", THOUGHT), ASKED, SAID), "1 example",
        "2 examples", (INSTRUCT,),
    ),
    # Before it, the template takes all for reasoning that it leaves out, and the text would be lost.
    Difference(
        "</think> without a beginning", chat(ASKED, (ASSISTANT, "Why?</think>Hi!")),
        "messages[1]: the chat template does not write this turn's text as it is", "1 example", (THINKS,),
    ),
    # Names and declarations: the template writes what it is given, the vendor what it understood of it.
    Difference(
        "quotes in a name", chat(ASKED, (ASSISTANT, "", calls('"f"')), RESULT, SAID), ' ""|f|"",', ' "\\"|f|\\"",'
    ),
    Difference(
        "no description", chat(ASKED, SAID, tools=tool(description=None)), "", 'description|":| "",| "'
    ),
    Difference(
        "no parameters", chat(ASKED, SAID, tools=tool(parameters=None)), '"}}\n', '",| "|parameters|":| {|}}|}\n'
    ),
    Difference(
        "other fields", chat(ASKED, SAID, tools=tool(strict=True)), '"},| "|strict|":| true|}}\n', '"}}|}\n'
    ),
    Difference(
        "another order",
        chat(ASKED, SAID, tools=[{"type": "function", "function": OTHER_ORDER}]),
        'description|":| "|d|",| "|name|":| "|f', 'name|":| "|f|",| "|description|":| "|d',
    ),
]  # fmt: skip


def difference(pair: Pair, conversation: Conversation) -> tuple[str, str]:
    """What `Difference.ours` and `Difference.theirs` are for a conversation."""
    ours, theirs = pair.render(conversation)
    if isinstance(ours, RenderError) or isinstance(theirs, RenderError) or len(ours) != len(theirs):
        return outcome(ours), outcome(theirs)
    for one, other in zip(ours, theirs, strict=True):
        a, b = one.tokens.tolist(), other.tokens.tolist()
        if a != b:
            before = common(a, b)
            after = common(a[before:][::-1], b[before:][::-1])
            first, second = (
                "|".join(pair.template.text([token]) for token in tokens[before : len(tokens) - after])
                for tokens in (a, b)
            )
            return first, second
    return outcome(ours), outcome(theirs)


def outcome(found: list[Example] | RenderError) -> str:
    if isinstance(found, RenderError):
        return str(found)
    return "1 example" if len(found) == 1 else f"{len(found)} examples"


def common(a: list[int], b: list[int]) -> int:
    """With how many equal tokens both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("known", DIFFERENCES, ids=lambda known: known.name)
def test_what_differs_by_design(pairs: dict[str, Pair], known: Difference) -> None:
    for template in known.templates:
        assert difference(pairs[template], known.conversation) == (known.ours, known.theirs)
        assert differs_by_design(known.conversation, template)


E_ACUTE = "e\N{COMBINING ACUTE ACCENT}"  # the tokenizer composes it into one character


@pytest.mark.parametrize("template", BOTH)
@pytest.mark.parametrize(
    "conversation",
    [
        chat((USER, E_ACUTE), (ASSISTANT, E_ACUTE)),
        chat((USER, f"{E_ACUTE} <|im_end|>"), SAID),
        chat(ASKED, (ASSISTANT, f"\n{E_ACUTE}")),
        chat(ASKED, (ASSISTANT, "", calls(arguments='{"number": 123456789012345678901}')), RESULT, SAID),
        chat(ASKED, (ASSISTANT, "", calls(arguments='{"x":1.0,"y":1e20,"z":"<&\'\\u00e9"}')), RESULT, SAID),
        chat(("system", " Be kind.\n"), ASKED, (ASSISTANT, "\n\nHi!\n"), tools=tool(description="é <b>")),
    ],
    ids=["not composed", "not composed, with a control token", "not composed, after a newline", "a large number",
         "other ways to write JSON", "spaces and newlines"],
)  # fmt: skip
def test_what_agrees(pairs: dict[str, Pair], template: str, conversation: Conversation) -> None:
    ours, theirs = pairs[template].render(conversation)
    assert plainly(ours) == plainly(theirs)


@pytest.mark.parametrize(
    "answer",
    [
        (ASSISTANT, "Hi!", THOUGHT),
        (ASSISTANT, E_ACUTE, {"reasoning_content": E_ACUTE}),
        (ASSISTANT, "Hi!", {"reasoning_content": "\n"}),
        (ASSISTANT, "<think>\nWhy?\n</think>\n\nHi!"),
        (ASSISTANT, "<think>\n\n</think>\n\nHi!"),
    ],
    ids=["a field", "a field, not composed", "a blank field", "in the text", "empty in the text"],
)
def test_reasoning_agrees(pairs: dict[str, Pair], answer: tuple[str, str, Message]) -> None:
    for conversation in (chat(ASKED, answer), chat(ASKED, answer, ASKED, SAID)):
        ours, theirs = pairs[THINKS].render(conversation)
        assert plainly(ours) == plainly(theirs)


# What is not special in the tokenizer, as a text writes it.
WORDS = re.compile(r"</?(think|tool_call|tool_response)>|<\|(fim_(prefix|middle|suffix|pad)|repo_name|file_sep)\|>")


def differs_by_design(conversation: Conversation, template: str) -> bool:
    """Whether one of DIFFERENCES may show in a conversation."""
    messages = conversation["messages"]
    roles = [message["role"] for message in messages]
    if WORDS.search(json.dumps(conversation, ensure_ascii=False)):
        return True
    if any(a == b != TOOL for a, b in pairwise(roles)) or "developer" in roles[1:]:
        return True
    reasons = any("reasoning_content" in message for message in messages)
    called = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
    if reasons and (template == INSTRUCT or called):
        return True
    if any(json.dumps(name) != f'"{name}"' for name in called):
        return True
    for declared in conversation.get("tools", ()):
        if list(declared) != ["type", "function"] or list(declared["function"]) != [
            "name",
            "description",
            "parameters",
        ]:
            return True
    return any(_borders_merge(messages, i, template) for i in range(len(messages)))


def _borders_merge(messages: list[Message], i: int, template: str) -> bool:
    """Whether the beginning or the end of a message may share a token with what the template writes beside it."""
    role, text = messages[i]["role"], messages[i]["content"]
    begins_with_newline = re.match(r"\s*[\r\n]", text) is not None
    if role == ASSISTANT:
        is_history = any(later["role"] == ASSISTANT for later in messages[i + 1 :])
        if begins_with_newline and is_history and template == THINKS:
            return True
        return "tool_calls" in messages[i] and text != "" and unicodedata.category(text[-1])[0] not in "LN"
    return begins_with_newline and role != TOOL


FRAGMENTS = [
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "\n", "\n\n", " ", "\r\n", "🙂", "👩\u200d👩\u200d👧", "שלום",
    E_ACUTE, "don't", "12345", ".", "assistant",
]  # fmt: skip
texts = st.lists(
    st.sampled_from(FRAGMENTS) | st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=3
).map("".join)
said = texts.filter(str.strip)
asked = texts.map(lambda text: re.sub(r"\A\s*[\r\n]\s*", "", text)).filter(str.strip)
names = st.text("abc_", min_size=1, max_size=5)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
simple = st.none() | st.booleans() | numbers | texts
values = simple | st.lists(simple, max_size=2) | st.dictionaries(texts, simple, max_size=2)
objects = st.dictionaries(texts, values, max_size=3)


@st.composite
def some_calls(draw: st.DrawFn) -> Message:
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    arguments = json.dumps(draw(objects), separators=separators, ensure_ascii=draw(st.booleans()))
    return calls(draw(names), arguments)


@st.composite
def some_conversations(draw: st.DrawFn, template: str) -> Conversation:
    """Conversations, few of which differ by design."""
    manner = draw(st.sampled_from(["plain", "calls", "reasoning"]))
    turns: list[Any] = [("system", draw(asked))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        turns.append((USER, draw(asked)))
        for _ in range(draw(st.integers(0, 2)) if manner == "calls" else 0):
            made = [draw(some_calls()) for _ in range(draw(st.integers(1, 2)))]
            words = draw(asked) + "a" if draw(st.booleans()) else ""
            turns.append((ASSISTANT, words, {"tool_calls": [call for one in made for call in one["tool_calls"]]}))
            turns += [(TOOL, draw(texts)) for _ in made]
        thinks = manner == "reasoning" and template == THINKS and draw(st.booleans())
        turns.append((ASSISTANT, draw(said), {"reasoning_content": draw(texts)} if thinks else {}))
    declared = tool(name=draw(names), description=draw(texts), parameters=draw(objects))
    return chat(*turns, tools=declared if manner == "calls" and draw(st.booleans()) else None)


@pytest.mark.slow
@pytest.mark.parametrize("template", PAIRS)
def test_any_conversation(pairs: dict[str, Pair], template: str) -> None:
    pair = pairs[template]

    @settings(max_examples=500)
    @given(some_conversations(template).filter(lambda conversation: not differs_by_design(conversation, template)))
    def agree(conversation: Conversation) -> None:
        ours, theirs = pair.render(conversation)
        assert plainly(ours) == plainly(theirs)

    agree()
