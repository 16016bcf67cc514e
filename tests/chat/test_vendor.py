"""The vendor's renderers: what is trained is what would be sampled, for every renderer and every choice of messages."""

import copy
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinkertools.chat.examples import Example, RenderError, trimmed, unite
from tinkertools.chat.records import Conversation
from tinkertools.chat.vendor import VendorRenderer, renderer_names
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
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">1</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
DSML_41_CALL = (
    '\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name="f">\n<｜DSML｜ parameter name="x" string="false">1</｜DSML｜ parameter>\n'
    "</｜DSML｜ invoke>\n</｜DSML｜ calls>"
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
        for start, stop in example.runs:
            # Where one answer follows another, they may touch.
            while start < stop:
                tokens = example.tokens.tolist()
                assert (
                    tokens[:start]
                    == renderer.generation_prompt(before(conversation, answers[len(said)])).tokens.tolist()
                )
                end = next(n for n in range(start, stop) if tokens[n] in renderer.stop_tokens) + 1
                said.append(renderer.text(tokens[start:end]))
                start = end
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
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}
        },
    }
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("conversation", [TWO, THREE, WITH_SYSTEM], ids=["two", "three", "system"])
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
    turns = [(USER, "Hello?"), (ASSISTANT, calling["content"], {"tool_calls": calling["tool_calls"]})]
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


@pytest.mark.parametrize("name", NAMES)
def test_any_texts(name: str) -> None:
    form = FORM[name]

    @settings(max_examples=25)
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
names = st.text("abc_", min_size=1, max_size=5)


@st.composite
def some_conversations(draw: st.DrawFn) -> Conversation:
    """Conversations with reasoning, calls of tools, and consecutive answers."""
    messages: list[Any] = [(SYSTEM, draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append((USER, draw(texts)))
        for _ in range(draw(st.integers(0, 2))):
            functions = [
                {"name": draw(names), "arguments": json.dumps(draw(objects))} for _ in range(draw(st.integers(0, 2)))
            ]
            more: Message = {"reasoning_content": draw(texts)} if draw(st.booleans()) else {}
            if functions:
                more["tool_calls"] = [{"type": "function", "function": function} for function in functions]
            messages.append((ASSISTANT, "" if functions and draw(st.booleans()) else draw(texts), more))
            messages += [(TOOL, draw(texts)) for _ in functions]
        messages.append((ASSISTANT, draw(texts)))
    return chat(*messages, tools=TOOLS if draw(st.booleans()) else None)


@pytest.mark.parametrize("name", NAMES)
def test_any_conversation_obeys_the_rule_or_is_refused(name: str) -> None:
    form = FORM[name]

    @settings(max_examples=20)
    @given(some_conversations())
    def holds(conversation: Conversation) -> None:
        try:
            said = said_by_turn(renderer(name), conversation)
        except RenderError:
            return
        answers = [message for message in conversation["messages"] if message["role"] == "assistant"]
        for found, message in zip(said, answers, strict=True):
            found = unicodedata.normalize("NFC", found)
            for text in (message["content"], message.get("reasoning_content", "")):
                assert unicodedata.normalize("NFC", text).strip() in found
            assert found.endswith((form.end, form.call_end or form.end, *form.end_before.values()))

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_all_turns_at_once_are_as_each_turn_alone(name: str) -> None:
    form, one = FORM[name], renderer(name)

    @settings(max_examples=20)
    @given(some_conversations())
    def agree(conversation: Conversation) -> None:
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
            assume(False)
        assume(together is not None)
        assert together is not None
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


def as_lists(examples: Iterable[Example]) -> list[tuple[list[int], list[float]]]:
    return [(example.tokens.tolist(), example.weights.tolist()) for example in examples]


@pytest.mark.parametrize("name", NAMES)
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
