"""Conversations of one shape are written as the template would write each of them, or not at all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.templates import ChatTemplateRenderer
from tinkertools.chat.templates.shapes import ContentMatters, StandIn, stand_ins
from tinkertools.shipped import STARTER_MODEL

HEAD = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def loop(body: str) -> str:
    return "{% for m in messages %}<|im_start|>{{ m.role }}\n" + body + "<|im_end|>\n{% endfor %}" + HEAD


COPYING = {
    "output": loop("{{ m.content }}"),
    "concatenation": loop("{{ '' + m['content'] + '' }}"),
    "a variable": loop("{% set text = m.content %}{{ text }}"),
    "stripped": loop("{{ m.content | trim }}"),
    "stripped by a method": loop("{{ m['content'].strip() }}"),
    "type and presence": loop("{% if m.content is string and m.content %}{{ m.content }}{% endif %}"),
    "the system first": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}<|im_start|>{{ m.role }}\n{% if loop.first %}{{ system }}\n{% endif %}{{ m.content }}"
        "<|im_end|>\n{% endfor %}" + HEAD
    ),
}
LOOKING = {
    "comparison": loop("{% if m.content == 'x' %}y{% endif %}{{ m.content }}"),
    "containment": loop("{% if '</think>' in m.content %}y{% endif %}{{ m.content }}"),
    "length": loop("{% if m.content | length > 3 %}y{% endif %}{{ m.content }}"),
    "a method": loop("{% if m.content.startswith('x') %}y{% endif %}{{ m.content }}"),
    "a slice": loop("{{ m.content[:2] }}{{ m.content }}"),
    "iteration": loop("{% for c in m.content %}{{ c }}{% endfor %}"),
    "a test that swallows errors": loop("{% if m.content is sequence %}y{% endif %}{{ m.content }}"),
    "a change": loop("{{ m.content | upper }}"),
    "an escape": loop("{{ m.content | e }}"),
    "a blind join": loop("{% set t = 'a' ~ m.content %}{% if 'x' in t %}y{% endif %}{{ t }}"),
    "a blind format": loop("{% set t = '%s' | format(m.content) %}{% if 'x' in t %}y{% endif %}{{ t }}"),
    "JSON": loop("{{ m.content | tojson }}"),
    "a joined text stripped": loop("{{ ('\n' + m.content) | trim }}"),
    "what was joined looked at": loop("{% set t = 'a' + m.content %}{% if 'x' in t %}y{% endif %}{{ t }}"),
}


def renderer(template: str) -> ChatTemplateRenderer:
    tokenizer: Any = AutoTokenizer.from_pretrained(STARTER_MODEL)
    tokenizer.chat_template = template
    return ChatTemplateRenderer(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])


COPYING_RENDERERS = {name: renderer(template) for name, template in COPYING.items()}


@pytest.mark.parametrize("name", COPYING)
def test_copying_templates_have_shapes(name: str) -> None:
    shapes = COPYING_RENDERERS[name].writer._learn_shapes(["user", "assistant"], [0.0, 1.0])
    assert shapes is not None
    assert shapes[0][0].stripped == name.startswith("stripped")


@pytest.mark.parametrize("name", LOOKING)
def test_templates_that_look_have_none(name: str) -> None:
    assert renderer(LOOKING[name]).writer._learn_shapes(["user", "assistant"], [0.0, 1.0]) is None


contents = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda t: "<|" not in t)


@pytest.mark.parametrize("name", COPYING)
@given(turns=st.lists(st.tuples(contents, contents), min_size=1, max_size=4), system=st.none() | contents)
def test_a_shape_writes_what_the_template_writes(
    name: str, turns: list[tuple[str, str]], system: str | None
) -> None:  # fmt: skip
    said = [
        {"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(t for pair in turns for t in pair)
    ]
    opening = [] if system is None else [{"role": "system", "content": system}]
    conversation: Conversation = {"messages": [*opening, *said]}
    weights = [float(message["role"] == "assistant") for message in conversation["messages"]]
    writer = COPYING_RENDERERS[name].writer
    by_shape = writer._write_by_shape(conversation, weights)
    if by_shape is not None:
        assert by_shape == writer._write_anew(*writer._prepare(conversation), weights)
    else:
        assert any(text != text.strip() for text in (m["content"] for m in conversation["messages"])) or any(
            m["content"].isspace() for m in conversation["messages"]
        )


def test_what_a_stand_in_lets_pass() -> None:
    (first, second), note = stand_ins(2)
    joined = "a" + first + second + "b"
    assert type(joined) is StandIn and type(str(first)) is StandIn and bool(first)
    assert (note.looked, note.stripped) == (False, False)
    assert first.strip() is first
    assert (note.looked, note.stripped) == (False, True)
    for look in (
        joined.strip, lambda: first.strip("x"), lambda: "x" in first, lambda: first == "x", lambda: len(first),
        lambda: first[0], lambda: first.split("x"), lambda: hash(first), lambda: f"{first:>3}", lambda: first * 2,
        lambda: first % (), lambda: list(first), lambda: first < "x", first.encode, lambda: repr(first),
    ):  # fmt: skip
        note.looked = False
        with pytest.raises(ContentMatters):
            look()
        assert note.looked
