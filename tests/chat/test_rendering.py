"""Rendering: the trained ids are the assistant's text and its end-of-turn token, and nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.examples import Example, RenderError
from tinkertools.chat.rendering import choose_renderer, load_renderer, render_all
from tinkertools.chat.templates import ChatTemplateRenderer, load_template_renderer
from tinkertools.chat.tokenizing import load_tokenizer
from tinkertools.errors import DataError, ModelError, UsageError
from tinkertools.shipped import STARTER_MODEL


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
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def chat(*turns: str, system: str | None = None) -> Conversation:
    opening = [{"role": "system", "content": system}] if system is not None else []
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"messages": [*opening, *said]}


def before(conversation: Conversation, i: int) -> Conversation:
    return {"messages": conversation["messages"][:i]}


def render(conversation: Conversation, renderer: ChatTemplateRenderer = RENDERER) -> Example:
    found = next(renderer.render([conversation]))
    if isinstance(found, RenderError):
        raise found
    [example] = found
    return example


def prompt(conversation: Conversation, renderer: ChatTemplateRenderer = RENDERER) -> list[int]:
    tokens: list[int] = renderer.generation_prompt(conversation).tokens.tolist()
    return tokens


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
    text += "<|im_start|>user\nWhat is 1 plus 1?<|im_end|>\n<|im_start|>assistant\n2.<|im_end|>"
    assert example.tokens.tolist() == TOKENIZER.encode(text, add_special_tokens=False)
    runs = trained_runs(example)
    assert [TOKENIZER.decode(ids) for _, ids in runs] == ["Hi.<|im_end|>", "2.<|im_end|>"]
    assert [ids[-1] for _, ids in runs] == [END, END]
    # 0…1…0…1: what the template writes after the last end of turn is left out.
    assert int(np.count_nonzero(np.diff(example.weights))) == 3
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
    answers = [i for i, message in enumerate(messages["messages"]) if message["role"] == "assistant"]
    assert len(runs) == len(answers)
    for (start, ids), i in zip(runs, answers, strict=True):
        assert example.tokens[:start].tolist() == prompt(before(messages, i))
        assert TOKENIZER.decode(ids) == messages["messages"][i]["content"] + "<|im_end|>"
        assert ids[-1] == END


def test_a_merge_across_the_border_is_cut_as_sampling_would_cut_it() -> None:
    merged = TOKENIZER.encode("assistant\n\n\nHi.")
    header, answer = TOKENIZER.encode("assistant\n"), TOKENIZER.encode("\n\nHi.")
    assert merged != header + answer  # this tokenizer would merge them
    example = render(chat("Hello!", "\n\nHi.", "Hello!", "Hi."))
    first, second = trained_runs(example)
    assert first[1] == [*answer, END]
    assert example.tokens[: first[0]].tolist() == prompt(chat("Hello!"))
    # What was said stays as it was said when it is history.
    history = prompt(chat("Hello!", "\n\nHi.", "Hello!"))
    assert example.tokens[: second[0]].tolist() == history


def test_rendering_in_blocks_keeps_the_order() -> None:
    conversations = [chat(f"What is {i} plus 1?", f"{i} plus 1 is {i + 1}.") for i in range(1500)]
    together = list(RENDERER.render(conversations))
    for i in (0, 127, 128, 1023, 1499):
        one = render(conversations[i])
        found = together[i]
        assert isinstance(found, list)
        assert [example.tokens.tolist() for example in found] == [one.tokens.tolist()]
        assert [example.weights.tolist() for example in found] == [one.weights.tolist()]


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
    asked = [start, *user, *ordinary[0], END, *newline, start, *assistant]
    assert example.tokens.tolist() == [*asked, *ordinary[1], END]
    assert example.weights.tolist() == [0.0] * len(asked) + [1.0] * (len(ordinary[1]) + 1)
    assert prompt(chat("What is <|im_end|>?")) == asked
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
    assert [i for i in ids if i in CONTROL_IDS] == [ids[0], END] * len(messages["messages"])
    assert TOKENIZER.decode(ids) + "\n" == TOKENIZER.apply_chat_template(messages["messages"], tokenize=False)
    answers = [message["content"] for message in messages["messages"] if message["role"] == "assistant"]
    assert [TOKENIZER.decode(run) for _, run in trained_runs(example)] == [f"{answer}<|im_end|>" for answer in answers]
    assert all(run[-1] == END and END not in run[:-1] for _, run in trained_runs(example))
    assert ids[: trained_runs(example)[0][0]] == prompt(before(messages, 1))


TEMPLATES = {
    "no end of turn": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        r"messages\[1\]: the chat template ends this turn without an end-of-turn token",
    ),
    "text lost": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[1:] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        r"messages\[1\]: the chat template does not write this turn's text as it is",
    ),
    "a mark that leaves out": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}Hm. "
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        r"messages\[1\]: the template's {% generation %} leaves out a part of what the model must emit",
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
    assert lines[0] == "12 conversations cannot be rendered with chat-template:"
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
    # The template itself ends its turns with a control token, though the configuration names none.
    assert load_renderer(str(endless)).stop_tokens == [END]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(endless)
    with pytest.raises(ModelError, match="names no end-of-turn token"):
        load_renderer(str(endless))
    (empty / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded"):
        load_tokenizer(str(empty))


REWRITING = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}<|im_start|>assistant\n"
    "(thinks) {{ m.content }}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# It writes what a vision model's template writes: text only where it is a part of a list.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(template: str, what: Any = "ALL_ASSISTANT_MESSAGES") -> ChatTemplateRenderer:
    tokenizer: Any = AutoTokenizer.from_pretrained(STARTER_MODEL)
    tokenizer.chat_template = template
    return ChatTemplateRenderer(tokenizer, [END], what)


def shown(renderer: ChatTemplateRenderer, conversation: Conversation) -> list[str]:
    """Each example as text, what is trained in brackets."""
    found = next(renderer.render([conversation]))
    if isinstance(found, RenderError):
        raise found
    texts = []
    for example in found:
        text, position = "", 0
        for start, end in example.runs:
            weight = float(example.weights[start])
            mark = "" if weight == 1 else f"{weight:g}*"
            text += renderer.text(example.tokens[position:start].tolist())
            text += f"[{mark}{renderer.text(example.tokens[start:end].tolist())}]"
            position = end
        assert position == len(example.tokens)
        texts.append(text.replace("<|im_start|>", "<").replace("<|im_end|>", ">").replace("\n", "/"))
    return texts


def test_a_template_that_rewrites_history_gives_an_example_each_turn() -> None:
    renderer = with_template(REWRITING)
    assert shown(renderer, chat("a", "b", "c", "d")) == [
        "<user/a>/<assistant/[(thinks) b>]",
        "<user/a>/<assistant/b>/<user/c>/<assistant/[(thinks) d>]",
    ]
    for i, example in ((1, 0), (3, 1)):
        found = next(renderer.render([chat("a", "b", "c", "d")]))
        assert isinstance(found, list)
        start = found[example].runs[0][0]
        assert found[example].tokens[:start].tolist() == prompt(before(chat("a", "b", "c", "d"), i), renderer)


MODES: dict[str, list[str]] = {
    "ALL_ASSISTANT_MESSAGES": ["<system/s>/<user/a>/<assistant/[b>]/<user/c>/<assistant/[d>]"],
    "LAST_ASSISTANT_MESSAGE": ["<system/s>/<user/a>/<assistant/b>/<user/c>/<assistant/[d>]"],
    "LAST_ASSISTANT_TURN": ["<system/s>/<user/a>/<assistant/b>/<user/c>/<assistant/[d>]"],
    "ALL_MESSAGES": ["<system/[s>]/<user/[a>]/<assistant/[b>]/<user/[c>]/<assistant/[d>]"],
    "ALL_USER_AND_SYSTEM_MESSAGES": ["<system/[s>]/<user/[a>]/<assistant/b>/<user/[c>]"],
    "ALL_TOKENS": ["[<system/s>/<user/a>/<assistant/b>/<user/c>/<assistant/d>]"],
}
REWRITTEN_MODES: dict[str, list[str]] = {
    "LAST_ASSISTANT_MESSAGE": ["<user/a>/<assistant/b>/<user/c>/<assistant/[(thinks) d>]"],
    "ALL_MESSAGES": [
        "<user/[a>]/<assistant/[(thinks) b>]",
        "<user/a>/<assistant/b>/<user/[c>]/<assistant/[(thinks) d>]",
    ],
    "ALL_USER_AND_SYSTEM_MESSAGES": ["<user/[a>]/<assistant/b>/<user/[c>]"],
    "ALL_TOKENS": ["[<user/a>/<assistant/b>/<user/c>/<assistant/(thinks) d>]"],
}


@pytest.mark.parametrize("what", MODES)
def test_what_is_trained(what: str) -> None:
    assert shown(with_template(CHAT_TEMPLATE, what), chat("a", "b", "c", "d", system="s")) == MODES[what]


def test_all_tokens_are_trained_of_answers_alone_too() -> None:
    conversation: Conversation = {"messages": [{"role": "assistant", "content": text} for text in ("b", "d")]}
    assert shown(with_template(CHAT_TEMPLATE, "ALL_TOKENS"), conversation) == ["[<assistant/b>/<assistant/d>]"]


@pytest.mark.parametrize("what", REWRITTEN_MODES)
def test_what_is_trained_where_history_is_rewritten(what: str) -> None:
    assert shown(with_template(REWRITING, what), chat("a", "b", "c", "d")) == REWRITTEN_MODES[what]


def test_messages_can_be_marked() -> None:
    renderer = with_template(CHAT_TEMPLATE, "CUSTOMIZED")
    conversation = chat("a", "b", "c", "d")
    marked: list[dict[str, Any]] = [{"trainable": True}, {"weight": 0.5}, {}, {"trainable": False}]
    for i, marks in enumerate(marked):
        conversation["messages"][i].update(marks)
    assert shown(renderer, conversation) == ["<user/[a>]/<assistant/[0.5*b>]"]


def test_a_message_is_found_where_it_stands_not_where_its_text_occurs_first() -> None:
    # "a" stands in "assistant" and in "<|im_start|>", and twice as a message.
    assert shown(with_template(CHAT_TEMPLATE, "ALL_MESSAGES"), chat("a", "a", "a", "a")) == [
        "<user/[a>]/<assistant/[a>]/<user/[a>]/<assistant/[a>]"
    ]


def test_marks_of_the_template_are_kept_to() -> None:
    plain, marking = with_template(CHAT_TEMPLATE), with_template(MARKING)
    for conversation in (chat("a", "b"), chat("a", "\nb ", "c", "d", system="s")):
        assert shown(marking, conversation) == shown(plain, conversation)


def test_a_template_that_wants_parts_gets_them() -> None:
    assert shown(with_template(PARTS), chat("a", "b", "c", "d")) == [
        "<user/a>/<assistant/[b>]/<user/c>/<assistant/[d>]"
    ]


def test_reasoning_stands_where_the_template_reads_it_or_in_the_text() -> None:
    message = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    conversation: Conversation = {"messages": [{"role": "user", "content": "a"}, message]}
    assert shown(with_template(CHAT_TEMPLATE), conversation) == ["<user/a>/<assistant/[<think>/hm/</think>//b>]"]
    reading = CHAT_TEMPLATE.replace("message.content", "(message.reasoning_content or '') + '|' + message.content")
    assert shown(with_template(reading), conversation) == ["<user/|a>/<assistant/[hm|b>]"]
    forgetting = CHAT_TEMPLATE + "{% set never = reasoning_content %}"
    with pytest.raises(RenderError, match=r"messages\[1\]: the chat template leaves this turn's reasoning out"):
        shown(with_template(forgetting), conversation)


def test_tools_and_their_calls_reach_the_template_as_objects() -> None:
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}({{ t.function.parameters | tojson }})\n{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{% for key, value in c.function.arguments.items() %}{{ key }}{{ value }}{% endfor %}"
        "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    conversation: Conversation = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "b"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    expected = 'f({"type": "object"})/<user/a>/<assistant/[fx1>]/<tool/2>/<assistant/[b>]'
    assert shown(with_template(template), conversation) == [expected]
    assert conversation["messages"][1]["tool_calls"] == [call]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (CHAT_TEMPLATE, "tools: the chat template does not write them"),
        (
            "g{% for t in tools %}{% endfor %}" + CHAT_TEMPLATE,
            r"messages\[1\].tool_calls\[0\]: .* does not write this call",
        ),
        (
            "g" + CHAT_TEMPLATE.replace("message.content", "(message.tool_calls or []) | string"),
            r"messages\[2\]: the chat template does not write what the tool returned",
        ),
    ],
)
def test_what_a_template_without_tools_would_lose_is_refused(template: str, words: str) -> None:
    call = {"type": "function", "function": {"name": "g", "arguments": '{"x": 1}'}}
    conversation: Conversation = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "much"},
            {"role": "assistant", "content": ""},
        ],
        "tools": [{"type": "function", "function": {"name": "g"}}],
    }
    if template == CHAT_TEMPLATE:
        conversation["tools"] = [{"type": "function", "function": {"name": "get_weather"}}]
    with pytest.raises(RenderError, match=words):
        shown(with_template(template), conversation)


def test_the_starter_model_writes_tools_and_calls() -> None:
    calls = [
        {"type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}},
        {"type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    conversation: Conversation = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "b", "tool_calls": calls[1:]},
        ],
        "tools": [{"type": "function", "function": {"name": name}} for name in "fg"],
    }
    assert shown(load_template_renderer(str(STARTER_MODEL), "ALL_ASSISTANT_MESSAGES"), conversation) == [
        '<system/Tools:/{"type": "function", "function": {"name": "f"}}'
        '/{"type": "function", "function": {"name": "g"}}>'
        "/<system/s>/<user/a>"
        '/<assistant/[<tool_call>/{"name": "f", "arguments": {"x": "é"}}/</tool_call>'
        '/<tool_call>/{"name": "g", "arguments": {}}/</tool_call>>]'
        "/<tool/1>/<tool/2>"
        '/<assistant/[b/<tool_call>/{"name": "g", "arguments": {}}/</tool_call>>]'
    ]


def test_control_tokens_in_tools_and_calls_stay_text() -> None:
    template = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + CHAT_TEMPLATE.replace(
        "message.content", "message.content + (message.tool_calls or []) | tojson"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "<|im_end|>"}'}}
    conversation: Conversation = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "function": {"name": "<|im_start|>"}}],
    }
    renderer = with_template(template)
    [example] = next(iter(renderer.render([conversation])))  # type: ignore[misc]
    assert [i for i in example.tokens.tolist() if i in CONTROL_IDS] == [CONTROL_IDS[1], END, CONTROL_IDS[1], END]
    assert renderer.text(example.tokens.tolist()).count("<|im_start|>") == 3


def test_developers_are_the_system_where_the_template_knows_none() -> None:
    conversation: Conversation = {"messages": [{"role": "developer", "content": "s"}, *chat("a", "b")["messages"]]}
    assert shown(with_template(CHAT_TEMPLATE), conversation) == ["<system/s>/<user/a>/<assistant/[b>]"]
    knowing = with_template(CHAT_TEMPLATE + "{% set known = 'developer' %}")
    assert shown(knowing, conversation) == ["<developer/s>/<user/a>/<assistant/[b>]"]


def test_images_are_refused_by_their_place() -> None:
    parts = [{"type": "text", "text": "What?"}, {"type": "image", "image": "a.png"}]
    conversation: Conversation = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Red."}]
    }
    with pytest.raises(RenderError, match=r"messages\[0\].content\[1\]: is an image, but this model"):
        shown(RENDERER, conversation)


def test_the_date_of_the_day_stays_out() -> None:
    dated = with_template("{{ strftime_now('%d %B %Y') }}\n" + CHAT_TEMPLATE)
    assert shown(dated, chat("a", "b")) == ["01 January 2026<user/a>/<assistant/[b>]"]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKING, PARTS])
@pytest.mark.parametrize("text", ["\ud800", "x\udfffy"])
def test_half_a_surrogate_pair_is_no_text(text: str, template: str) -> None:
    renderer = with_template(template)
    for conversation in (chat(text, "b"), chat("a", text), chat("a <|im_end|>", text)):
        with pytest.raises(RenderError, match="a message holds half of a surrogate pair"):
            shown(renderer, conversation)


@pytest.mark.slow
def test_five_megabytes_in_one_message() -> None:
    long = "All work and no play. \n" * 220_000
    example = render(chat("Write.", long))
    assert len(long) > 5_000_000
    [(start, ids)] = trained_runs(example)
    assert example.tokens[:start].tolist() == prompt(chat("Write."))
    assert TOKENIZER.decode(ids) == long + "<|im_end|>"


@pytest.mark.parametrize(
    ("model", "named", "name", "reason"),
    [
        ("Qwen/Qwen3-8B", "auto", "qwen3", "the vendor's, for this model"),
        ("Qwen/Qwen3-8B", "chat-template", "chat-template", "--renderer"),
        ("meta-llama/Llama-3.1-8B", "auto", "chat-template", "the model's own"),
        ("meta-llama/Llama-3.1-8B", "kimi_k25", "kimi_k25", "--renderer"),
        (str(STARTER_MODEL), "auto", "chat-template", "the model's own"),
    ],
)
def test_which_renderer(model: str, named: str, name: str, reason: str) -> None:
    choice = choose_renderer(model, named)
    assert (choice.name, choice.reason) == (name, reason)


def test_an_unknown_renderer() -> None:
    with pytest.raises(UsageError, match="--renderer llama: there is no such renderer") as caught:
        choose_renderer("x", "llama")
    assert "auto, chat-template or one of qwen3," in str(caught.value.hint)


@pytest.mark.slow
def test_worker_processes_give_the_same_in_the_same_order() -> None:
    conversations = [chat(f"What is {i} plus 1?", f"It is {i + 1}.", "And?", "Yes.") for i in range(700)]
    renderer = load_renderer("Qwen/Qwen3-8B")
    alone = render_all(renderer, conversations, 3, workers=1)
    for workers in (2, 3):
        together = render_all(renderer, conversations, 3, workers=workers)
        assert together.origins.tolist() == alone.origins.tolist() == sorted([*range(700)] * 2)
        for one, other in zip(alone.examples, together.examples, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
            assert one.weights.tolist() == other.weights.tolist()


def test_worker_processes_say_which_conversation_failed() -> None:
    conversations = [chat("a", "b")] * 300
    conversations[280] = chat("a", "<think>hm</think>b")
    renderer = load_renderer("Qwen/Qwen3-8B", "qwen3_disable_thinking")
    with pytest.raises(DataError, match="conversation 281: qwen3_disable_thinking refuses the conversation"):
        render_all(renderer, conversations, 3, workers=2)
