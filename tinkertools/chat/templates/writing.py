"""What is written of a conversation so that it is trained as it would be sampled: texts with weights of their spans."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tinkertools.chat.conversations import Conversation, Message
from tinkertools.chat.examples import (
    RenderError,
    changed_span,
    image_parts,
    message_weights,
    texts_of,
    with_stand_in,
)
from tinkertools.chat.templates.controls import ControlTokens, WayBack
from tinkertools.chat.templates.program import ChatTemplate, refuse_surrogates
from tinkertools.chat.templates.shapes import ContentMatters, Shape, shape_of, stand_ins
from tinkertools.chat.templates.turns import Turn, sampled_turns
from tinkertools.config import TrainOnWhat

# Shapes that are remembered: conversations differ in how many turns they have, hardly in more.
_MOST_SHAPES = 4096


@dataclass(frozen=True)
class Rendered:
    """A conversation, or a part from its beginning, as text with the weights of spans of its characters.

    Tokens are cut at the borders of `turns`, as sampling cuts them; `others` are spans of what no model said. Where a
    message holds the text of a control token, `way_back` turns the characters that hide it into its own.
    """

    text: str
    turns: list[tuple[int, int, float]]
    others: list[tuple[int, int, float]] = field(default_factory=list)
    everything: bool = False
    way_back: WayBack = field(default_factory=dict)


class Writer:
    """Writes conversations with a chat template, each as one text or, where it rewrites earlier turns, as several."""

    def __init__(
        self, template: ChatTemplate, controls: ControlTokens, stop_texts: Sequence[str], train_on_what: TrainOnWhat
    ) -> None:
        self._template = template
        self._controls = controls
        self._stop_texts = stop_texts
        self._train_on_what = train_on_what
        self._shapes: dict[tuple[Any, ...], list[tuple[Shape, list[float]]] | None] = {}

    def write_prompt(self, conversation: Conversation) -> Rendered:
        """The text after which the model answers the last message, nothing of it trained.

        Raises:
            RenderError: the template refuses the conversation, or it holds images.
        """
        messages, tools, way_back = self._prepare(conversation)
        text = self._template.write([messages], tools, generation=True)[0]
        turns = [
            turn for turn in sampled_turns(self._template, messages, tools, self._stop_texts) if turn.stands_in(text)
        ]
        return Rendered(text, [(turn.start, len(turn.text), 0.0) for turn in turns], way_back=way_back)

    def write(self, conversation: Conversation) -> list[Rendered]:
        """The texts that train a conversation: one where the template leaves earlier turns as they were sampled.

        Where it rewrites them, one for each turn that no later text holds.

        Raises:
            RenderError: a trained turn has no right mask under this template, or the template refuses the conversation.
        """
        weights = message_weights(conversation["messages"], self._train_on_what)
        written = self._write_by_shape(conversation, weights)
        if written is None:
            written = self._write_anew(*self._prepare(conversation), weights)
        return written

    def _write_by_shape(self, conversation: Conversation, weights: list[float]) -> list[Rendered] | None:
        """As `write`, where what the template does is known from the roles alone; None where it is not."""
        if "tools" in conversation:
            return None
        roles, contents = [], []
        for message in conversation["messages"]:
            content = message["content"]
            if len(message) != 2 or type(content) is not str or not content or content.isspace():
                return None
            roles.append(message["role"])
            contents.append(content)
        if self._controls.occur_in("\0".join(contents)):
            return None
        key = (*roles, *weights)
        if key not in self._shapes:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes[key] = self._learn_shapes(roles, weights)
        shapes = self._shapes[key]
        if shapes is None or (shapes[0][0].stripped and any(content != content.strip() for content in contents)):
            return None
        written = []
        for shape, trained in shapes:
            text, borders = shape.write(contents)
            refuse_surrogates([text])
            written.append(Rendered(text, list(zip(borders[::2], borders[1::2], trained, strict=True))))
        return written

    def _learn_shapes(self, roles: list[str], weights: list[float]) -> list[tuple[Shape, list[float]]] | None:
        """How conversations with these roles are written, with each turn's weight, if their texts do not matter."""
        if self._train_on_what == "ALL_TOKENS":  # shapes say nothing of what stands between turns
            return None
        answers_only = all(role == "assistant" for role, weight in zip(roles, weights, strict=True) if weight)
        if not self._template.traceable or not answers_only or not any(weights):
            return None
        texts, note = stand_ins(len(roles))
        messages = [
            self._template.as_read({"role": role, "content": text}) for role, text in zip(roles, texts, strict=True)
        ]
        try:
            written = self._write_anew(messages, None, {}, weights)
        except (ContentMatters, RenderError):
            return None
        found = []
        for rendered in written:
            borders = [border for start, end, _ in rendered.turns for border in (start, end)]
            shape = shape_of(rendered.text, borders, len(roles), note)
            if shape is None:
                return None
            found.append((shape, [weight for _, _, weight in rendered.turns]))
        return None if note.looked else found

    def _write_anew(
        self, messages: list[Message], tools: list[Any] | None, way_back: WayBack, weights: list[float]
    ) -> list[Rendered]:
        """As `write`, by what the template makes of this conversation and its beginnings."""
        turns = sampled_turns(self._template, messages, tools, self._stop_texts)
        if self._train_on_what == "ALL_TOKENS":
            text = self._template.write([messages], tools)[0]
            if turns and turns[-1].message == len(messages) - 1 and turns[-1].problem is None:
                text = turns[-1].text
            spans = [(turn.start, len(turn.text), 1.0) for turn in turns if turn.stands_in(text)]
            return [Rendered(text, spans, everything=True, way_back=way_back)]
        for turn in turns:
            if weights[turn.message] and turn.problem:
                raise RenderError(turn.problem)
        texts = self._texts(messages, tools, turns, weights)
        found = []
        covered = -1  # the last message that an earlier text has trained
        for text, last in texts:
            spans = [
                (turn.start, len(turn.text), weights[turn.message] if turn.message > covered else 0.0)
                for turn in turns
                if turn.stands_in(text)
            ]
            others = self._other_spans(messages[: last + 1], tools, text, weights, covered)
            found.append(Rendered(text, spans, others, way_back=way_back))
            covered = last
        return found

    def _texts(
        self, messages: list[Message], tools: list[Any] | None, turns: list[Turn], weights: list[float]
    ) -> list[tuple[str, int]]:
        """The texts that are needed so that each trained message stands in one as sampled, each with its last message.

        A message that no model said is trained in the first text that holds it.
        """
        texts: list[tuple[str, int]] = []
        last_trained = max((i for i, weight in enumerate(weights) if weight), default=-1)
        if last_trained >= 0 and messages[last_trained]["role"] != "assistant":
            whole = self._template.write([messages[: last_trained + 1]], tools)[0]
            texts.append((whole, last_trained))
        for turn in reversed(turns):
            if weights[turn.message] and not any(turn.stands_in(text) for text, _ in texts):
                texts.append((turn.text, turn.message))
        return texts[::-1]

    def _other_spans(
        self, messages: list[Message], tools: list[Any] | None, text: str, weights: list[float], covered: int
    ) -> list[tuple[int, int, float]]:
        """The spans of trained messages that no model said: their text, and an end-of-turn token right after it.

        What changes when only the message does is where it stands; looking for its text could find it elsewhere.
        """
        wanted = [
            i
            for i in range(covered + 1, len(messages))
            if weights[i] and messages[i]["role"] != "assistant" and any(map(str.strip, texts_of(messages[i])))
        ]
        if not wanted:
            return []
        written = self._template.write([messages, *(with_stand_in(messages, i) for i in wanted)], tools)
        spans = []
        for i, other in zip(wanted, written[1:], strict=True):
            start, end = changed_span(written[0], other)
            if not all(content.strip() in written[0][start:end] for content in texts_of(messages[i])):
                raise RenderError(f"messages[{i}]: the chat template does not write this message as it is")
            ends = [stop for stop in self._stop_texts if text.startswith(stop, end)]
            spans.append((start, end + max(map(len, ends), default=0), weights[i]))
        return spans

    def _prepare(self, conversation: Conversation) -> tuple[list[Message], list[Any] | None, WayBack]:
        """Messages and tools in the form that templates read, control tokens in their text hidden."""
        for place, _ in image_parts(conversation["messages"]):
            raise RenderError(f"{place}: is an image, but this model is rendered with its chat template, as text only")
        messages = [self._template.as_read(message) for message in conversation["messages"]]
        messages, tools, way_back = self._controls.hide(messages, conversation.get("tools"))
        return messages, tools, way_back
