"""The vendor's renderers: what is trained is what would be sampled, for every renderer and every choice of messages."""

import base64
import copy
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import hypothesis
import numpy as np
import PIL.Image
import pytest
from families import TEMPLATES, Plain, needs_trl
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import mostly_slow

from tinkertools.chat.examples import IMAGE_TOKEN, Example, RenderError, trimmed, unite
from tinkertools.chat.records import Conversation
from tinkertools.chat.vendor import VendorRenderer, renderer_for, renderer_names
from tinkertools.config import TEMPLATE_DATE, TrainOnWhat

Message = dict[str, Any]

NO_THINKING = "thinking is disabled for this renderer, but the turn being produced carries reasoning"
NO_GRAMMAR = "DeepSeek V3.1 non-thinking mode has no reasoning grammar"
LEFT_OUT = "leaves this turn's reasoning out: take the renderer's thinking variant with --renderer"
NO_TOOLS = "refuses the conversation: Unsupported content type: unsupported content type: ToolDeclareJson"

JSON_CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
XML_CALL = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
DEEPSEEK_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"x": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
DEEPSEEK_31_CALL = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
DSML_CALL = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">1'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
DSML_41_CALL = (
    '\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name="f">\n<｜DSML｜ parameter name="x" string="false">1'
    "</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n</｜DSML｜ calls>"
)
KIMI_CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{"x": 1}<|tool_call_end|><|tool_calls_section_end|>'
)
GLM_CALL = "<tool_call>f<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>"
GPT_OSS_CALL = ' to=functions.f<|channel|>commentary json<|message|>{"x": 1}'
TML_CALL = '<|message_model|>f<|content_invoke_tool_json|>{"name":"f","args":{"x":1}}'


@dataclass(frozen=True)
class Form:
    """How a renderer writes an answer: `before`, its text, `end`."""

    names: tuple[str, ...]
    end: str
    before: str
    # The same where the answer has the reasoning `Why?`, or why that is refused.
    thought: str | None = None
    thought_refused: str = ""
    # What calls a function `f` with `{"x": 1}`, without the end.
    call: str = ""
    call_end: str = ""
    tools_refused: str = ""
    # Whether each turn has an example of its own, since the history is written otherwise than it was sampled.
    one_each: bool = False
    thought_one_each: bool = True
    # What the end is instead, by the role of the message that follows.
    end_before: dict[str, str] = field(default_factory=dict)


IM_END = "<|im_end|>"
DEEPSEEK_END = "<｜end▁of▁sentence｜>"
TML_END = "<|end_message|><|content_model_end_sampling|>"
FORMS = [
    Form(("qwen3",), IM_END, "<think>\n\n</think>\n\n", "<think>\nWhy?\n</think>\n\n", one_each=True,
         call="<think>\n\n</think>\n\n" + JSON_CALL),
    Form(("qwen3_disable_thinking",), IM_END, "", thought_refused=NO_THINKING, one_each=True, call=JSON_CALL),
    Form(("qwen3_instruct", "qwen3_vl_instruct"), IM_END, "", "<think>Why?</think>", call=JSON_CALL),
    Form(("qwen3_vl",), IM_END, "\n</think>\n\n", "Why?\n</think>\n\n", one_each=True,
         call="\n</think>\n\n" + JSON_CALL),
    Form(("qwen3_5",), IM_END, "\n</think>\n\n", "Why?\n</think>\n\n", one_each=True, call="\n</think>\n\n" + XML_CALL),
    Form(("qwen3_5_disable_thinking",), IM_END, "", thought_refused=NO_THINKING, one_each=True, call=XML_CALL),
    # These keep the reasoning in the history; but where there is none, its two newlines merge into one token there.
    Form(("qwen3_8_xhigh_reasoning", "qwen3_8_medium_reasoning", "qwen3_8_low_reasoning"), IM_END, "\n</think>\n\n",
         "Why?\n</think>\n\n", one_each=True, thought_one_each=False, call="\n</think>\n\n" + XML_CALL),
    Form(("qwen3_8_disable_thinking",), IM_END, "", thought_refused=NO_THINKING, call=XML_CALL),
    Form(("deepseek_v3",), DEEPSEEK_END, "", "<think>Why?</think>", tools_refused=NO_TOOLS, call=DEEPSEEK_CALL),
    Form(("deepseek_r1",), DEEPSEEK_END, "", "Why?</think>", one_each=True, tools_refused=NO_TOOLS,
         call=DEEPSEEK_CALL),
    Form(("deepseekv3", "deepseekv3_disable_thinking"), DEEPSEEK_END, "", thought_refused=NO_GRAMMAR,
         tools_refused=NO_TOOLS, call=DEEPSEEK_31_CALL),
    Form(("deepseekv3_thinking",), DEEPSEEK_END, "", "Why?</think>", one_each=True, tools_refused=NO_TOOLS,
         call=DEEPSEEK_31_CALL),
    Form(("deepseek_v4",), DEEPSEEK_END, "</think>", "Why?</think>", one_each=True, call="</think>" + DSML_CALL),
    Form(("deepseek_v41",), DEEPSEEK_END, "</think>", "Why?</think>", one_each=True, call="</think>" + DSML_41_CALL),
    Form(("deepseek_v4_chat",), DEEPSEEK_END, "", thought_refused=LEFT_OUT, call=DSML_CALL),
    Form(("deepseek_v41_chat",), DEEPSEEK_END, "", thought_refused=LEFT_OUT, call=DSML_41_CALL),
    Form(("kimi_k2",), IM_END, "<think></think>", "<think>Why?</think>", call="<think></think>" + KIMI_CALL),
    Form(("kimi_k25", "kimi_k26"), IM_END, "</think>", "Why?</think>", call="</think>" + KIMI_CALL),
    Form(("kimi_k26_preserve_thinking",), IM_END, "</think>", "Why?</think>", thought_one_each=False,
         call="</think>" + KIMI_CALL),
    Form(("kimi_k25_disable_thinking", "kimi_k26_disable_thinking"), IM_END, "", thought_refused=LEFT_OUT,
         call=KIMI_CALL),
    Form(("glm_52", "glm_53", "glm_53_flash"), "<|endoftext|>", "</think>", "Why?</think>", call="</think>" + GLM_CALL,
         end_before={"user": "<|user|>", "tool": "<|observation|>"}),
    Form(("gpt_oss_low_reasoning", "gpt_oss_medium_reasoning", "gpt_oss_high_reasoning"), "<|return|>",
         "<|channel|>final<|message|>",
         "<|channel|>analysis<|message|>Why?<|end|><|start|>assistant<|channel|>final<|message|>", one_each=True,
         call=GPT_OSS_CALL, call_end="<|call|>"),
    Form(("nemotron3", "nemotron3_low_thinking"), IM_END, "</think>\n", "Why?\n</think>\n", one_each=True,
         call=f"</think>\n{XML_CALL}\n"),
    Form(("nemotron3_preserve_thinking",), IM_END, "</think>\n", "Why?\n</think>\n", one_each=True,
         thought_one_each=False, call=f"</think>\n{XML_CALL}\n"),
    Form(("nemotron3_disable_thinking", "nemotron3_ultra_disable_thinking"), IM_END, "", thought_refused=NO_THINKING,
         call=f"{XML_CALL}\n"),
    Form(("nemotron3_ultra", "nemotron3_ultra_medium_thinking"), IM_END, "</think>", "Why?</think>", one_each=True,
         call=f"</think>{XML_CALL}\n"),
    Form(("nemotron3_ultra_preserve_thinking",), IM_END, "</think>", "Why?</think>", one_each=True,
         thought_one_each=False, call=f"</think>{XML_CALL}\n"),
    Form(("tml_v0",), TML_END, "<|message_model|><|content_text|>",
         "<|message_model|><|content_thinking|>Why?<|end_message|><|message_model|><|content_text|>",
         thought_one_each=False, call=TML_CALL),
]  # fmt: skip
FORM = {name: form for form in FORMS for name in form.names}
NAMES = list(FORM)


def test_every_renderer_is_in_the_table() -> None:
    assert sorted(NAMES) == sorted(renderer_names())


@cache
def made(name: str) -> VendorRenderer:
    return VendorRenderer(name)


def renderer(name: str, what: TrainOnWhat = "ALL_ASSISTANT_MESSAGES") -> VendorRenderer:
    """A renderer of that name; its tokenizer, which takes long to load, is shared."""
    found = copy.copy(made(name))
    found.train_on_what = what
    return found


def chat(*turns: tuple[str, Any] | tuple[str, Any, Message], tools: list[Message] | None = None) -> Conversation:
    """A conversation of roles, contents and, where there are any, further fields."""
    messages = [{"role": turn[0], "content": turn[1]} | (turn[2] if len(turn) == 3 else {}) for turn in turns]
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def before(conversation: Conversation, i: int) -> Conversation:
    """What was said before a message."""
    found: Conversation = {**conversation, "messages": conversation["messages"][:i]}
    return found


def said_by_turn(renderer: VendorRenderer, conversation: Conversation) -> list[str]:
    """What is trained of each answer, as text, once it was found to obey the rule."""
    examples = renderer.examples(conversation)
    answers = [i for i, message in enumerate(conversation["messages"]) if message["role"] == "assistant"]
    said: list[str] = []
    for example in examples:
        weights = example.weights.tolist()
        assert set(weights) == {0.0, 1.0}
        assert (weights[0], weights[-1]) == (0.0, 1.0)
        tokens = example.tokens.tolist()
        for start, stop in example.runs:
            # Where one answer follows another, they may touch.
            ends = [n + 1 for n in range(start, stop) if tokens[n] in renderer.stop_tokens]
            for begin, end in pairwise([start, *ends]):
                prompt = renderer.generation_prompt(before(conversation, answers[len(said)]))
                assert tokens[:begin] == prompt.tokens.tolist()
                said.append(renderer.text(tokens[begin:end]))
            assert ends[-1:] == [stop]
    assert len(said) == len(answers)
    return said


def expected(form: Form, conversation: Conversation, before: str) -> list[str]:
    """What must be trained of each answer."""
    messages = conversation["messages"]
    followers = [message["role"] for message in messages[1:]] + [""]
    return [
        before + message["content"] + form.end_before.get(follower, form.end)
        for message, follower in zip(messages, followers, strict=True)
        if message["role"] == "assistant"
    ]


USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"
TWO = chat((USER, "Hello?"), (ASSISTANT, "Hi!"), (USER, "Who?"), (ASSISTANT, "Me."))
THREE = chat(*((m["role"], m["content"]) for m in TWO["messages"]), (USER, "Bye?"), (ASSISTANT, "Grüße,\n世界! 🙂"))
WITH_SYSTEM = chat((SYSTEM, "Be kind."), *((m["role"], m["content"]) for m in THREE["messages"]))
CALL = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]}
TOOLS: list[Message] = [
    {
        "type": "function",
        "function": {
            "name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}
        },
    }
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "conversation",
    [pytest.param(TWO, marks=pytest.mark.slow), THREE, WITH_SYSTEM],
    ids=["two", "three", "system"],
)
def test_turns(name: str, conversation: Conversation) -> None:
    form = FORM[name]
    assert said_by_turn(renderer(name), conversation) == expected(form, conversation, form.before)
    answers = sum(message["role"] == "assistant" for message in conversation["messages"])
    assert len(renderer(name).examples(conversation)) == (answers if form.one_each else 1)


@pytest.mark.parametrize("name", NAMES)
def test_reasoning(name: str) -> None:
    form = FORM[name]
    thought = {"reasoning_content": "Why?"}
    conversation = chat((USER, "Hello?"), (ASSISTANT, "Hi!", thought), (USER, "Who?"), (ASSISTANT, "Me.", thought))
    if form.thought is None:
        with pytest.raises(RenderError) as refusal:
            renderer(name).examples(conversation)
        assert form.thought_refused
        assert form.thought_refused in str(refusal.value)
        return
    said = said_by_turn(renderer(name), conversation)
    # One by one, GLM's turns end as if nothing followed.
    assert said == [form.thought + text + form.end for text in ("Hi!", "Me.")]
    assert len(renderer(name).examples(conversation)) == (2 if form.thought_one_each else 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("declared", [True, False])
def test_tools(name: str, declared: bool) -> None:
    form = FORM[name]
    conversation = chat(
        (USER, "Hello?"), (ASSISTANT, "", CALL), (TOOL, "2"), (ASSISTANT, "Two."), (USER, "Who?"), (ASSISTANT, "Me."),
        tools=TOOLS if declared else None,
    )  # fmt: skip
    if declared and form.tools_refused:
        with pytest.raises(RenderError) as refusal:
            renderer(name).examples(conversation)
        assert form.tools_refused in str(refusal.value)
        return
    call_end = form.call_end or form.end_before.get("tool", form.end)
    texts = expected(form, conversation, form.before)[1:]
    assert said_by_turn(renderer(name), conversation) == [form.call + call_end, *texts]


@pytest.mark.parametrize("name", NAMES)
def test_consecutive_answers(name: str) -> None:
    form = FORM[name]
    conversation = chat((USER, "Hello?"), (ASSISTANT, "Hi!"), (ASSISTANT, "Who?"))
    assert said_by_turn(renderer(name), conversation) == [form.before + text + form.end for text in ("Hi!", "Who?")]


# What would be two answers to a model: it stops at the first end of a turn.
@pytest.mark.parametrize(
    ("name", "calling"),
    [
        *((name, {"content": "Wait.", **CALL}) for name in NAMES if name.startswith(("deepseek_v3", "deepseek_r1"))),
        *((name, {"content": "Wait.", **CALL}) for name in NAMES if name.startswith("deepseekv3")),
        *(
            (name, {"content": "", "tool_calls": CALL["tool_calls"] * 2})
            for name in NAMES
            if name.startswith("gpt_oss")
        ),
    ],
)
def test_a_turn_with_an_end_inside_is_refused(name: str, calling: Message) -> None:
    turns: list[Any] = [(USER, "Hello?"), (ASSISTANT, calling["content"], {"tool_calls": calling["tool_calls"]})]
    results = [(TOOL, "2")] * len(calling["tool_calls"])
    for conversation in (chat(*turns), chat(*turns, *results, (ASSISTANT, "Two."))):
        with pytest.raises(RenderError, match=r"messages\[1\]: "):
            renderer(name).examples(conversation)


E_ACUTE = "e\N{COMBINING ACUTE ACCENT}"
FRAGMENTS = [
    "\n", "\n\n", " ", "\r\n", "🙂", "שלום", E_ACUTE, "Hello", ".", "```", "</think>", "<|im_end|>", "<|endoftext|>",
]  # fmt: skip
texts = (
    st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=4)
    .map("".join)
    .filter(str.strip)
)
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


@pytest.mark.parametrize("name", mostly_slow(NAMES, 12))
def test_any_texts(name: str) -> None:
    form = FORM[name]

    @settings(max_examples=10)
    @given(turns, st.none() | texts)
    def holds(said: list[tuple[str, str]], system: str | None) -> None:
        opening = [(SYSTEM, system)] if system is not None else []
        conversation = chat(*opening, *(turn for a, b in said for turn in ((USER, a), (ASSISTANT, b))))
        answers = zip(said_by_turn(renderer(name), conversation), expected(form, conversation, "\0"), strict=True)
        for found, with_mark in answers:
            text, end = with_mark[1:].removesuffix(form.end), form.end
            if not with_mark.endswith(end):
                end = form.end_before[USER]
                text = with_mark[1:].removesuffix(end)
            assert found.startswith(form.before)
            assert found.endswith(end)
            # Some strip the text, some compose its characters.
            middle = found[len(form.before) : len(found) - len(end)]
            assert unicodedata.normalize("NFC", middle).strip() == unicodedata.normalize("NFC", text).strip()

    holds()


simple = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
objects = st.dictionaries(texts, simple | st.lists(simple, max_size=2), max_size=2)
some_calls = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}},
    st.text("abc_", min_size=1, max_size=5),
    objects,
)


@st.composite
def some_conversations(draw: st.DrawFn) -> Conversation:
    """Conversations with reasoning, calls of tools, and consecutive answers."""
    messages: list[Any] = [(SYSTEM, draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append((USER, draw(texts)))
        for _ in range(draw(st.integers(0, 2))):
            made = draw(st.lists(some_calls, max_size=2))
            more: Message = {"reasoning_content": draw(texts)} if draw(st.booleans()) else {}
            if made:
                more["tool_calls"] = made
            text = draw(texts | st.just("") if made else texts)
            messages.append((ASSISTANT, text, more))
            messages += [(TOOL, draw(texts)) for _ in made]
        messages.append((ASSISTANT, draw(texts)))
    return chat(*messages, tools=TOOLS if draw(st.booleans()) else None)


@pytest.mark.parametrize("name", mostly_slow(NAMES, 12))
def test_any_conversation_obeys_the_rule_or_is_refused(name: str) -> None:
    form = FORM[name]
    accepted = 0

    @settings(max_examples=10)
    @given(some_conversations())
    @hypothesis.example(CALLING)
    def holds(conversation: Conversation) -> None:
        nonlocal accepted
        try:
            said = said_by_turn(renderer(name), conversation)
        except RenderError:
            return
        accepted += 1
        answers = [message for message in conversation["messages"] if message["role"] == "assistant"]
        for found, message in zip(said, answers, strict=True):
            for text in (message["content"], message.get("reasoning_content", "")):
                assert unicodedata.normalize("NFC", text).strip() in unicodedata.normalize("NFC", found)
            assert found.endswith((form.end, form.call_end or form.end, *form.end_before.values()))

    holds()
    assert accepted


@pytest.mark.parametrize("name", mostly_slow(NAMES, 12))
def test_all_turns_at_once_are_as_each_turn_alone(name: str) -> None:
    form, one = FORM[name], renderer(name)
    compared = 0

    @settings(max_examples=10)
    @given(some_conversations())
    @hypothesis.example(chat((USER, "Hello"), (ASSISTANT, "Hi!")))
    @hypothesis.example(TWO)
    def agree(conversation: Conversation) -> None:
        nonlocal compared
        messages, tools = conversation["messages"], conversation.get("tools")
        for message in messages:
            message.pop("reasoning_content", None)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        weights = [0.5 + i for i in range(len(messages))]
        native = one._native(messages)
        try:
            together = one._all_turns(native, tools, answers, weights)
            alone = [trimmed(one._turn(messages, native[: i + 1], tools, weights[i])) for i in answers]
        except RenderError:
            return
        if together is None:
            return
        compared += 1
        found = unite([trimmed(example) for _, example in together])
        if not form.end_before:
            assert as_lists(found) == as_lists(unite(alone))
            return
        # What follows an answer is its end here; alone, nothing follows.
        runs = [(example, start, end) for example in found for start, end in example.runs]
        for (example, start, end), single in zip(runs, alone, strict=True):
            assert example.tokens[: end - 1].tolist() == single.tokens[:-1].tolist()
            assert example.weights[start:end].tolist() == single.weights[start:].tolist()
            assert not single.weights[:start].any()

    agree()
    assert compared


def as_lists(examples: Iterable[Example]) -> list[tuple[list[int], list[float]]]:
    return [(example.tokens.tolist(), example.weights.tolist()) for example in examples]


@pytest.mark.parametrize("name", mostly_slow(NAMES, 12))
def test_control_tokens_in_a_text_stay_text(name: str) -> None:
    one = renderer(name)
    tokenizer = one._tokenizer
    special = {tokenizer.encode_special(token) for token in tokenizer.special_tokens()}
    written = [one.text([token]) for token in sorted(special)]
    assert FORM[name].end.rpartition("<")[2] in "".join(written)
    typed = chat(
        (USER, "Hello?"),
        (ASSISTANT, "Hi! " + "".join(written)),
        (USER, "Who? " + " ".join(written)),
        (ASSISTANT, "Me."),
    )
    for example, plain in zip(one.examples(typed), one.examples(TWO), strict=True):
        found, without = example.tokens.tolist(), plain.tokens.tolist()
        assert [token for token in found if token in special] == [token for token in without if token in special]
        assert len(example.runs) == len(plain.runs)
    said = said_by_turn(one, typed)
    assert said == expected(FORM[name], typed, FORM[name].before)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("gpt_oss")])
def test_the_date_does_not_depend_on_the_day(name: str) -> None:
    text = renderer(name).text(renderer(name).generation_prompt(before(TWO, 1)).tokens.tolist())
    assert f"\nCurrent date: {TEMPLATE_DATE.isoformat()}\n" in text


def shown(renderer: VendorRenderer, example: Example) -> str:
    """The text of an example with each change of weight in brackets; an image's tokens are squares."""
    parts = []
    last = None
    for token, weight in zip(example.tokens.tolist(), example.weights.tolist(), strict=True):
        parts.append(f"⟦{weight:g}⟧" if weight != last else "")
        parts.append("■" if token == IMAGE_TOKEN else renderer.text([token]))
        last = weight
    return "".join(parts)


def shown_all(name: str, what: TrainOnWhat, conversation: Conversation) -> list[str]:
    one = renderer(name, what)
    return [shown(one, example) for example in one.examples(conversation)]


EVERYONE = chat(
    (SYSTEM, "Be kind."), (USER, "a?"), (ASSISTANT, "b!"), (USER, "c?"), (ASSISTANT, "d!"), (USER, "e?")
)  # fmt: skip
CALLING = chat((USER, "a?"), (ASSISTANT, "b!"), (USER, "c?"), (ASSISTANT, "", CALL), (TOOL, "2"), (ASSISTANT, "d!"))
MARKED = chat(
    (SYSTEM, "Be kind."), (USER, "a?", {"trainable": True}), (ASSISTANT, "b!", {"weight": 0.5}), (USER, "c?"),
    (ASSISTANT, "d!", {"loss_weight": 0}), (USER, "e?", {"weight": 0}), (ASSISTANT, "f!", {"trainable": True}),
    (USER, "g?"), (ASSISTANT, "h!", {"trainable": False, "weight": 1}),
)  # fmt: skip

# ChatML's words, and DeepSeek's.
S, U, A, E = "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
DB, DU, DA, DE = "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜></think>", "<｜end▁of▁sentence｜>"
EMPTY = "<think>\n\n</think>\n\n"
MASKS: list[tuple[str, TrainOnWhat, Conversation, list[str]]] = [
    ("qwen3", "LAST_ASSISTANT_MESSAGE", EVERYONE, [
        f"⟦0⟧{S}Be kind.{E}\n{U}a?{E}\n{A}b!{E}\n{U}c?{E}\n{A}⟦1⟧{EMPTY}d!{E}",
    ]),
    ("deepseekv3", "LAST_ASSISTANT_MESSAGE", EVERYONE, [f"⟦0⟧{DB}Be kind.{DU}a?{DA}b!{DE}{DU}c?{DA}⟦1⟧d!{DE}"]),
    # After the last question there is no answer.
    ("qwen3", "LAST_ASSISTANT_TURN", EVERYONE, []),
    ("qwen3_instruct", "LAST_ASSISTANT_TURN", CALLING, [
        f"⟦0⟧{U}a?{E}\n{A}b!{E}\n{U}c?{E}\n{A}⟦1⟧{JSON_CALL}{E}⟦0⟧\n{U}<tool_response>\n2\n</tool_response>{E}\n"
        f"{A}⟦1⟧d!{E}",
    ]),
    ("glm_53", "LAST_ASSISTANT_TURN", CALLING, [
        "⟦0⟧[gMASK]<sop><|system|>Reasoning Effort: Max<|user|>a?<|assistant|><think></think>b!<|user|>c?<|assistant|>"
        f"<think>⟦1⟧</think>{GLM_CALL}<|observation|>⟦0⟧<tool_response>2</tool_response><|assistant|>"
        "<think>⟦1⟧</think>d!<|endoftext|>",
    ]),
    ("qwen3_instruct", "ALL_MESSAGES", EVERYONE, [
        f"⟦0⟧{S}⟦1⟧Be kind.{E}⟦0⟧\n{U}⟦1⟧a?{E}⟦0⟧\n{A}⟦1⟧b!{E}⟦0⟧\n{U}⟦1⟧c?{E}⟦0⟧\n{A}⟦1⟧d!{E}⟦0⟧\n{U}⟦1⟧e?{E}",
    ]),
    # Where the history is written otherwise than it was sampled, each message is trained once.
    ("qwen3", "ALL_MESSAGES", EVERYONE, [
        f"⟦0⟧{S}⟦1⟧Be kind.{E}⟦0⟧\n{U}⟦1⟧a?{E}⟦0⟧\n{A}⟦1⟧{EMPTY}b!{E}",
        f"⟦0⟧{S}Be kind.{E}\n{U}a?{E}\n{A}b!{E}\n{U}⟦1⟧c?{E}⟦0⟧\n{A}⟦1⟧{EMPTY}d!{E}",
        f"⟦0⟧{S}Be kind.{E}\n{U}a?{E}\n{A}b!{E}\n{U}c?{E}\n{A}d!{E}\n{U}⟦1⟧e?{E}",
    ]),
    ("qwen3_instruct", "ALL_MESSAGES", CALLING, [
        f"⟦0⟧{U}⟦1⟧a?{E}⟦0⟧\n{A}⟦1⟧b!{E}⟦0⟧\n{U}⟦1⟧c?{E}⟦0⟧\n{A}⟦1⟧{JSON_CALL}{E}⟦0⟧\n"
        f"{U}<tool_response>\n⟦1⟧2⟦0⟧\n</tool_response>{E}\n{A}⟦1⟧d!{E}",
    ]),
    # DeepSeek ends no message but the model's.
    ("deepseekv3", "ALL_MESSAGES", EVERYONE, [
        f"⟦0⟧{DB}⟦1⟧Be kind.⟦0⟧{DU}⟦1⟧a?⟦0⟧{DA}⟦1⟧b!{DE}⟦0⟧{DU}⟦1⟧c?⟦0⟧{DA}⟦1⟧d!{DE}⟦0⟧{DU}⟦1⟧e?",
    ]),
    ("kimi_k25", "ALL_USER_AND_SYSTEM_MESSAGES", EVERYONE, [
        f"⟦0⟧<|im_system|>system<|im_middle|>⟦1⟧Be kind.{E}⟦0⟧<|im_user|>user<|im_middle|>⟦1⟧a?{E}⟦0⟧<|im_assistant|>"
        f"assistant<|im_middle|><think></think>b!{E}<|im_user|>user<|im_middle|>⟦1⟧c?{E}⟦0⟧<|im_assistant|>"
        f"assistant<|im_middle|><think></think>d!{E}<|im_user|>user<|im_middle|>⟦1⟧e?{E}",
    ]),
    ("tml_v0", "ALL_USER_AND_SYSTEM_MESSAGES", chat((SYSTEM, "Be kind."), (USER, "a?"), (ASSISTANT, "b!")), [
        "⟦0⟧<|message_system|><|content_text|>⟦1⟧Be kind.⟦0⟧<|end_message|><|message_user|><|content_text|>⟦1⟧a?",
    ]),
    # GLM stops at the header of a user, which is no part of the system's message before it.
    ("glm_53", "ALL_USER_AND_SYSTEM_MESSAGES", chat((SYSTEM, "Be kind."), (USER, "a?"), (ASSISTANT, "b!")), [
        "⟦0⟧[gMASK]<sop><|system|>Reasoning Effort: Max<|system|>⟦1⟧Be kind.⟦0⟧<|user|>⟦1⟧a?",
    ]),
    ("deepseekv3", "ALL_TOKENS", EVERYONE, [f"⟦1⟧{DB}Be kind.{DU}a?{DA}b!{DE}{DU}c?{DA}d!{DE}{DU}e?"]),
    ("qwen3_5", "ALL_TOKENS", TWO, [f"⟦1⟧{U}Hello?{E}\n{A}Hi!{E}\n{U}Who?{E}\n{A}{EMPTY}Me.{E}"]),
    ("qwen3_instruct", "CUSTOMIZED", MARKED, [
        f"⟦0⟧{S}Be kind.{E}\n{U}⟦1⟧a?{E}⟦0⟧\n{A}⟦0.5⟧b!{E}⟦0⟧\n{U}c?{E}\n{A}d!{E}\n{U}e?{E}\n{A}⟦1⟧f!{E}",
    ]),
    ("nemotron3", "CUSTOMIZED", MARKED, [
        f"⟦0⟧{S}Be kind.{E}\n{U}⟦1⟧a?{E}⟦0⟧\n{A}<think>\n⟦0.5⟧</think>\nb!{E}",
        f"⟦0⟧{S}Be kind.{E}\n{U}a?{E}\n{A}<think></think>b!{E}\n{U}c?{E}\n{A}<think></think>d!{E}\n{U}e?{E}\n"
        f"{A}<think>\n⟦1⟧</think>\nf!{E}",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "what", "conversation", "masks"), MASKS)
def test_which_messages_are_trained(name: str, what: TrainOnWhat, conversation: Conversation, masks: list[str]) -> None:
    assert shown_all(name, what, conversation) == masks


def trained_texts(name: str, what: TrainOnWhat, conversation: Conversation) -> list[str]:
    """What is trained, without ends of turns and the spaces and newlines that tokens carry with them."""
    one = renderer(name, what)
    found = []
    for example in one.examples(conversation):
        for start, end in example.runs:
            tokens = example.tokens[start:end].tolist()
            ends = [i for i, token in enumerate(tokens) if token in one.stop_tokens]
            for a, b in zip([0, *(i + 1 for i in ends)], [*ends, len(tokens)], strict=True):
                found.append(one.text(tokens[a:b]).strip())
    return [text for text in found if text]


@pytest.mark.parametrize("name", NAMES)
def test_no_message_is_trained_that_was_not_chosen(name: str) -> None:
    form = FORM[name]
    # Of the end, what stands before the token that stops sampling.
    inner = form.end.removesuffix("<" + form.end.rpartition("<")[2])
    b, d = ((form.before + text + inner).strip() for text in ("b!", "d!"))
    assert trained_texts(name, "ALL_ASSISTANT_MESSAGES", EVERYONE) == [b, d]
    assert trained_texts(name, "LAST_ASSISTANT_MESSAGE", EVERYONE) == [d]
    assert trained_texts(name, "LAST_ASSISTANT_TURN", EVERYONE) == []
    assert trained_texts(name, "ALL_USER_AND_SYSTEM_MESSAGES", EVERYONE) == ["Be kind.", "a?", "c?", "e?"]
    assert trained_texts(name, "ALL_MESSAGES", EVERYONE) == ["Be kind.", "a?", b, "c?", d, "e?"]
    (everything,) = renderer(name, "ALL_TOKENS").examples(EVERYONE)
    assert set(everything.weights.tolist()) == {1.0}
    assert renderer(name).text(everything.tokens.tolist()).strip().removesuffix(IM_END).endswith("e?")
    assert trained_texts(name, "CUSTOMIZED", MARKED) == ["a?", b, (form.before + "f!" + inner).strip()]


@pytest.mark.parametrize("what", get_args(TrainOnWhat))
def test_marks_are_obeyed_or_refused(what: TrainOnWhat) -> None:
    marked = chat((USER, "a?"), (ASSISTANT, "b!", {"weight": 2.0}))
    if what == "CUSTOMIZED":
        assert shown_all("qwen3_instruct", what, marked)[0].endswith("⟦2⟧b!<|im_end|>")
        with pytest.raises(RenderError, match=r"^messages\[1\]: has no 'trainable', 'weight' or 'loss_weight'"):
            renderer("qwen3_instruct", what).examples(TWO)
    else:
        with pytest.raises(RenderError, match=rf"^messages\[1\]: has 'weight', which {what} would ignore"):
            renderer("qwen3_instruct", what).examples(marked)


SIGHTED = [
    name for name in NAMES if name.startswith(("qwen3_vl", "qwen3_5", "qwen3_8", "kimi_k25", "kimi_k26", "tml_v0"))
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and with what only looks like them."""
    folder = tmp_path_factory.mktemp("pictures")
    picture = PIL.Image.new("RGB", (64, 48), "red")
    picture.save(folder / "wall.png")
    picture.save(folder / "wall.jpg")
    picture.resize((640, 480)).save(folder / "large.png")
    (folder / "wall.txt").write_text("a wall")
    (folder / "broken.png").write_bytes((folder / "wall.png").read_bytes()[:20])
    (folder / "broken.jpg").write_bytes((folder / "wall.jpg").read_bytes()[:20])
    return folder


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def with_image(part: Message) -> Conversation:
    content = [{"type": "text", "text": "What is"}, part, {"type": "text", "text": "?"}]
    return chat((USER, content), (ASSISTANT, "A wall."))


def image_spans(name: str, conversation: Conversation) -> list[int]:
    """How many tokens the vendor's own spans say that each image takes."""
    one = renderer(name)
    spans, _ = one._renderer.render_for_completion(one._native(conversation["messages"]))
    return [wrapped.span.num_tokens for wrapped in spans if hasattr(wrapped.span, "num_tokens")]


# By model and image. Qwen3's own image processor counts squares of 32 pixels, after it has made a small image larger
# (to 320 × 224 pixels here); Kimi's counts squares of 28 pixels.
COUNTS = {"qwen3": {"wall": 70, "large": 300}, "kimi_": {"wall": 6, "large": 414}, "tml_v": {"wall": 4, "large": 204}}


@pytest.mark.parametrize("name", SIGHTED)
def test_images(name: str, pictures: Path) -> None:
    form = FORM[name]
    for file, kind in (("wall.png", "png"), ("wall.jpg", "jpeg"), ("large.png", "png")):
        path = pictures / file
        forms: list[Message] = [
            {"type": "image", "image": str(path)},
            {"type": "image", "image": f"file://{path}"},
            {"type": "image", "image": data_url(path)},
            {"type": "image_url", "image_url": str(path)},
            {"type": "image_url", "image_url": {"url": f"file://{path}"}},
            {"type": "image_url", "image_url": {"url": data_url(path), "detail": "low"}},
        ]
        for part in forms:
            conversation = with_image(part)
            (example,) = renderer(name).examples(conversation)
            (image,) = example.images
            assert [image.length] == image_spans(name, before(conversation, 1)) == [COUNTS[name[:5]][path.stem]]
            assert (image.format, image.data) == (kind, path.read_bytes())
            places = np.flatnonzero(example.tokens == IMAGE_TOKEN).tolist()
            assert places == list(range(image.start, image.start + image.length))
            assert not example.weights[places].any()
            ((start, end),) = example.runs
            prompt = renderer(name).generation_prompt(before(conversation, 1))
            assert example.tokens[:start].tolist() == prompt.tokens.tolist()
            assert example.images == prompt.images
            assert renderer(name).text(example.tokens[start:end].tolist()) == form.before + "A wall." + form.end


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://example.org/wall.png", "the image is on the web (https://example.org/wall.png): download it"),
        ("{}/missing.png", "the image cannot be read: [Errno 2] No such file or directory"),
        ("{}", "the image cannot be read: [Errno 21] Is a directory"),
        ("{}/wall.txt", "the image is neither PNG nor JPEG"),
        ("data:image/png;base64,YSB3YWxs", "the image is neither PNG nor JPEG"),
        ("data:image/png;base64,!", "the image cannot be read: "),
        ("{}/broken.png", "the image cannot be read: "),
        ("{}/broken.jpg", "the image cannot be read: "),
    ],
)
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "kimi_k25", "tml_v0"])
def test_what_is_no_image_is_refused_by_its_place(name: str, location: str, reason: str, pictures: Path) -> None:
    part = {"type": "image", "image": location.format(pictures)}
    with pytest.raises(RenderError) as refusal:
        renderer(name).examples(with_image(part))
    assert str(refusal.value).startswith(f"messages[0].content[1]: {reason}")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SIGHTED])
def test_images_are_refused_where_the_model_cannot_see(name: str, pictures: Path) -> None:
    conversation = with_image({"type": "image", "image": str(pictures / "wall.png")})
    for ask in (renderer(name).examples, renderer(name).generation_prompt):
        with pytest.raises(RenderError, match=rf"{name} .*"):
            ask(conversation)


def test_a_file_url_may_be_encoded(pictures: Path) -> None:
    path = pictures / "a wall.png"
    path.write_bytes((pictures / "wall.png").read_bytes())
    assert "%20" in path.as_uri()
    for location in (path.as_uri(), str(path)):
        (example,) = renderer("kimi_k25").examples(with_image({"type": "image", "image": location}))
        assert [image.length for image in example.images] == [6]


def test_images_are_never_trained(pictures: Path) -> None:
    wall = {"type": "image", "image": str(pictures / "wall.png")}
    conversation = chat(
        (USER, [wall, {"type": "text", "text": "a?"}, wall]), (ASSISTANT, "b!"), (USER, [wall]), (ASSISTANT, "c!")
    )
    image = "<|media_begin|>image<|media_content|>⟦0⟧■■■■■■⟦1⟧<|media_end|>"
    user, assistant = "<|im_user|>user<|im_middle|>", "<|im_assistant|>assistant<|im_middle|>"
    assert shown_all("kimi_k25", "ALL_TOKENS", conversation) == [
        f"⟦1⟧{user}{image}a?{image}<|im_end|>{assistant}<think></think>b!<|im_end|>"
        f"{user}{image}<|im_end|>{assistant}<think></think>c!<|im_end|>"
    ]
    (example,) = renderer("kimi_k25", "ALL_TOKENS").examples(conversation)
    assert [(i.start, i.length) for i in example.images] == [(6, 6), (18, 6), (40, 6)]
    assert shown_all("kimi_k25", "ALL_MESSAGES", before(conversation, 2)) == [
        f"⟦0⟧{user}⟦1⟧{image}a?{image}<|im_end|>⟦0⟧{assistant}<think>⟦1⟧</think>b!<|im_end|>"
    ]


RENDERERS = {
    "Qwen/Qwen3-8B": "qwen3",
    "qwen/qwen3-8b": "qwen3",
    "Qwen/Qwen3-0.6B-Base": "qwen3",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3",
    "Qwen/Qwen3-8B:checkpoint-100": "qwen3",
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3_instruct",
    "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8": "qwen3_instruct",
    "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl_instruct",
    "Qwen/Qwen3-4B-Thinking-2507": None,
    "Qwen/Qwen3-VL-8B-Thinking": None,
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": None,
    "Qwen/Qwen2.5-7B-Instruct": None,
    "Qwen/Qwen3.5-4B": "qwen3_5",
    "Qwen/Qwen3.6-27B": "qwen3_5",
    "Qwen/Qwen3.8-27B": "qwen3_8_xhigh_reasoning",
    "someone/Qwen3-8B": None,
    "Qwen3-8B": None,
    "./Qwen/Qwen3-8B": None,
    "deepseek-ai/DeepSeek-V3": "deepseek_v3",
    "deepseek-ai/DeepSeek-V3-0324": "deepseek_v3",
    "deepseek-ai/DeepSeek-V3.1": "deepseekv3",
    "deepseek-ai/DeepSeek-V3.2": None,
    "deepseek-ai/DeepSeek-R1-0528": "deepseek_r1",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": None,
    "deepseek-ai/DeepSeek-V4": "deepseek_v4",
    "deepseek-ai/DeepSeek-V4-Base": "deepseek_v4",
    "deepseek-ai/DeepSeek-V4.1": "deepseek_v41",
    "moonshotai/Kimi-K2-Thinking": "kimi_k2",
    "moonshotai/Kimi-K2-Instruct": None,
    "moonshotai/Kimi-K2.5": "kimi_k25",
    "moonshotai/Kimi-K2.6": "kimi_k26",
    "zai-org/GLM-5.2": "glm_52",
    "zai-org/GLM-5.3-FP8": "glm_53",
    "zai-org/GLM-5.3-Flash": "glm_53_flash",
    "zai-org/GLM-4.6": None,
    "openai/gpt-oss-20b": "gpt_oss_medium_reasoning",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "nemotron3",
    "nvidia/NVIDIA-Nemotron-3-Ultra-500B": "nemotron3_ultra",
    "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B": "nemotron3_ultra",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": None,
    "thinkingmachines/Inkling": "tml_v0",
    "meta-llama/Llama-3.1-8B-Instruct": None,
}


@pytest.mark.parametrize(("base_model", "name"), RENDERERS.items())
def test_the_renderer_of_a_model(base_model: str, name: str | None) -> None:
    assert renderer_for(base_model) == name
    assert name is None or name in NAMES


# TRL's copies of the models' own templates, and the renderers that stand for them.
SAME_PROMPTS = [
    ("qwen3", "qwen3"), ("qwen3_instruct_2507", "qwen3_instruct"), ("qwen3_vl", "qwen3_vl_instruct"),
    ("qwen3_5_think", "qwen3_5"), ("qwen3_5_nothink", "qwen3_5_disable_thinking"), ("qwen3_6", "qwen3_5"),
    ("qwen3_8", "qwen3_8_xhigh_reasoning"), ("gptoss", "gpt_oss_medium_reasoning"), ("nemotron_3_nano", "nemotron3"),
    ("nemotron_3_super", "nemotron3"), ("nemotron_3_ultra", "nemotron3_ultra"),
    ("nemotron_3_5_lightning", "nemotron3_ultra"),
]  # fmt: skip


@needs_trl
@pytest.mark.parametrize(("template", "name"), SAME_PROMPTS)
def test_prompts_read_as_those_of_the_models_own_templates(template: str, name: str) -> None:
    plain = Plain.of(next(known for known in TEMPLATES if known.name == template))
    for conversation in (TWO, WITH_SYSTEM):
        for i, message in enumerate(conversation["messages"]):
            if message["role"] == "assistant":
                history = before(conversation, i)
                text = renderer(name).text(renderer(name).generation_prompt(history).tokens.tolist())
                assert text == plain.prompt_text(history["messages"])
