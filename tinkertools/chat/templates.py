"""Rendering with a model's own chat template, for every model that the vendor's renderers do not cover.

A conversation is written as text, the span of each assistant turn in it is found by comparing renders as text, and the
tokenizer's offsets turn spans of characters into weights of tokens.
"""

import copy
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkertools.chat.conversations import Conversation, Message
from tinkertools.chat.examples import (
    Example,
    Prompt,
    RenderError,
    changed_span,
    image_parts,
    message_weights,
    split_reasoning,
    texts_of,
    trimmed,
    unite,
    with_stand_in,
)
from tinkertools.chat.shapes import ContentMatters, Shape, StandIn, copies_blindly, shape_of, stand_ins
from tinkertools.chat.tokenizing import Encoded, cores, end_of_turn_tokens, load_tokenizer, without_tokenizers_threads
from tinkertools.config import TEMPLATE_DATE, TrainOnWhat
from tinkertools.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = "chat-template"

# Unicode's characters without a meaning of their own, which take the place of others for a while.
_PRIVATE_USE = range(0xE000, 0xF900)

# From the number of a character that hides another to that other, as `str.translate` takes it.
WayBack = dict[int, str]

# How many conversations, and characters of them, go through the tokenizer at once: it needs some 30 bytes a character.
_BLOCK = 128
_BLOCK_CHARACTERS = 1_000_000

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_PROBE = "probe"

# Shapes that are remembered: conversations differ in how many turns they have, hardly in more.
_MOST_SHAPES = 4096


@dataclass(frozen=True)
class Turn:
    """An assistant turn as it is sampled: `text` ends with it, and `text[start:]` is what the model must emit.

    `problem` says why it cannot be trained, where that is so.
    """

    message: int
    text: str = ""
    start: int = 0
    problem: str | None = None

    def stands_in(self, text: str) -> bool:
        """Whether `text`, a later state of the conversation, holds this turn and all before it as they were."""
        return self.problem is None and text.startswith(self.text)


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


class ChatTemplateRenderer:
    """Renders with the model's own chat template."""

    name = CHAT_TEMPLATE

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop_tokens: Sequence[int],
        train_on_what: TrainOnWhat = "ALL_ASSISTANT_MESSAGES",
    ) -> None:
        self.train_on_what = train_on_what
        self._tokenizer = tokenizer
        backend: Any = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        # No tokens are added, so all that is left for a post-processor is to take spaces out of tokens' offsets.
        backend.post_processor = None
        self._backend = backend
        self._idle_backends: list[Any] = []
        self._chat_template = _TODAY.sub(
            lambda found: repr(TEMPLATE_DATE.strftime(found[2])), str(tokenizer.chat_template)
        )
        self._marks_generation = _GENERATION.search(self._chat_template) is not None
        code = _COMMENT.sub("", self._chat_template)
        self._takes_reasoning = re.search(r"reasoning|\bthinking\b", code) is not None
        self._knows_developer = "developer" in code
        self._control_ids = {str(t): number for number, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._control_numbers = frozenset(self._control_ids.values())
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        controls = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._swallows_space = any(token.lstrip or token.rstrip for token in controls)
        self._content_as_parts = False
        self._content_as_parts = self._wants_parts()
        self._shapes: dict[tuple[Any, ...], list[tuple[Shape, list[float]]] | None] = {}
        self.stop_tokens = list(stop_tokens)
        self.stop_tokens += self._ending_of_template(self.stop_tokens)
        self.bos_token: int | None = tokenizer.bos_token_id
        self._stop_texts = [str(tokenizer.convert_ids_to_tokens(token)) for token in self.stop_tokens]

    @property
    def identity(self) -> dict[str, str]:
        """What decides, beside the conversation, the tokens and weights."""
        special = sorted(self._tokenizer.special_tokens_map.items())
        return {
            "renderer": self.name,
            "train_on_what": self.train_on_what,
            "chat_template": self._chat_template,
            "tokenizer": "\0".join([self._backend.to_str(), repr(self.stop_tokens), repr(special)]),
        }

    def generation_prompt(self, conversation: Conversation) -> Prompt:
        """The tokens after which the model answers the last message.

        Raises:
            RenderError: the template refuses the conversation, or it holds images.
        """
        messages, tools, way_back = self._prepare(conversation)
        text = self._write([messages], tools, generation=True)[0]
        turns = [turn for turn in self._turns(messages, tools) if turn.stands_in(text)]
        rendered = Rendered(text, [(turn.start, len(turn.text), 0.0) for turn in turns], way_back=way_back)
        return Prompt(self._weigh(rendered, self._encode_with_offsets([rendered], self._backend)[0]).tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text: control tokens, such as the end of the turn, left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of any tokens, control tokens included."""
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def render(self, conversations: Iterable[Conversation]) -> Iterator[list[Example] | RenderError]:
        """Each conversation's examples, in order, or why it has none.

        Blocks of texts are encoded on all cores, each thread with a tokenizer of its own: threads that share one wait
        for its cache. Meanwhile the next texts are written.
        """
        remaining = iter(conversations)
        waiting: deque[Future[list[list[Example] | RenderError]]] = deque()
        with without_tokenizers_threads(), ThreadPoolExecutor(cores()) as threads:
            while block := _block(remaining):
                written = [self._written_or_error(conversation) for conversation in block]
                waiting.append(threads.submit(self._finish, written))
                if len(waiting) > 2 * cores():
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _finish(self, written: list[list[Rendered] | RenderError]) -> list[list[Example] | RenderError]:
        """The examples of what was written, with a tokenizer that no other thread uses meanwhile."""
        try:
            backend = self._idle_backends.pop()
        except IndexError:
            backend = copy.deepcopy(self._backend)
        texts = [rendered for item in written if isinstance(item, list) for rendered in item]
        encoded = iter(self._encode_with_offsets(texts, backend))
        self._idle_backends.append(backend)
        found: list[list[Example] | RenderError] = []
        for item in written:
            if isinstance(item, RenderError):
                found.append(item)
                continue
            pairs = [(rendered, next(encoded)) for rendered in item]
            try:
                found.append(unite([trimmed(self._weigh(rendered, tokens)) for rendered, tokens in pairs]))
            except RenderError as error:
                found.append(error)
        return found

    def _written_or_error(self, conversation: Conversation) -> list[Rendered] | RenderError:
        try:
            return self.write(conversation)
        except RenderError as error:
            return error

    def write(self, conversation: Conversation) -> list[Rendered]:
        """The texts that train a conversation: one where the template leaves earlier turns as they were sampled.

        Where it rewrites them, one for each turn that no later text holds.

        Raises:
            RenderError: a trained turn has no right mask under this template, or the template refuses the conversation.
        """
        weights = message_weights(conversation["messages"], self.train_on_what)
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
        if self._control is not None and self._control.search("\0".join(contents)):
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
            _refuse_surrogates([text])
            written.append(Rendered(text, list(zip(borders[::2], borders[1::2], trained, strict=True))))
        return written

    def _learn_shapes(self, roles: list[str], weights: list[float]) -> list[tuple[Shape, list[float]]] | None:
        """How conversations with these roles are written, with each turn's weight, if their texts do not matter."""
        answers_only = all(role == "assistant" for role, weight in zip(roles, weights, strict=True) if weight)
        if not self._traceable or not answers_only or not any(weights):
            return None
        texts, note = stand_ins(len(roles))
        messages = [self._as_read({"role": role, "content": text}) for role, text in zip(roles, texts, strict=True)]
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
        turns = self._turns(messages, tools)
        if self.train_on_what == "ALL_TOKENS":
            text = self._write([messages], tools)[0]
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
            whole = self._write([messages[: last_trained + 1]], tools)[0]
            texts.append((whole, last_trained))
        for turn in reversed(turns):
            if weights[turn.message] and not any(turn.stands_in(text) for text, _ in texts):
                texts.append((turn.text, turn.message))
        return texts[::-1]

    def _turns(self, messages: list[Message], tools: list[Any] | None) -> list[Turn]:
        """Each assistant turn as it is sampled."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            return []
        prompts = self._write([messages[:i] for i in answers], tools, generation=True)
        texts, blocks = self._write_with_blocks([messages[: i + 1] for i in answers], tools)
        turns = []
        for i, prompt, text, marked in zip(answers, prompts, texts, blocks, strict=True):
            lost = _lost_of_tools(messages[:i], tools, prompt)
            turns.append(Turn(i, problem=lost) if lost else self._turn(i, messages[i], prompt, text, marked))
        return turns

    def _turn(self, i: int, message: Message, prompt: str, text: str, blocks: list[tuple[int, int]] | None) -> Turn:
        """The turn that `text` ends with, given the generation prompt before it and the template's own marks."""
        start = len(prompt)
        if not text.startswith(prompt):
            return Turn(
                i, problem=f"messages[{i}]: the chat template writes the conversation before this turn differently "
                "from the prompt it would be sampled with"
            )  # fmt: skip
        stops = [(at, at + len(stop)) for stop in self._stop_texts if (at := text.find(stop, start)) >= 0]
        if not stops:
            return Turn(
                i, problem=f"messages[{i}]: the chat template ends this turn without an end-of-turn token "
                f"({' or '.join(self._stop_texts)}), so the model would never learn to stop"
            )  # fmt: skip
        stop, end = min(stops)
        for content in map(str.__str__, texts_of(message)):  # a stand-in may be looked at here
            reasoning, rest = split_reasoning({**message, "content": content})
            if reasoning.strip() not in text[start:stop]:
                return Turn(
                    i, problem=f"messages[{i}]: the chat template leaves this turn's reasoning out: remove it, or name "
                    "a renderer that writes it with --renderer"
                )  # fmt: skip
            if rest.strip() not in text[start:stop]:
                return Turn(i, problem=f"messages[{i}]: the chat template does not write this turn's text as it is")
        position = start
        for j, call in enumerate(message.get("tool_calls", [])):
            function = call["function"]
            position = text.find(function["name"], position, stop) + 1
            if not position or not all(_is_written(key, text[start:stop]) for key in function["arguments"]):
                return Turn(i, problem=f"messages[{i}].tool_calls[{j}]: the chat template does not write this call")
        if blocks is not None and not _covered(blocks, start, stop):
            return Turn(
                i, problem=f"messages[{i}]: the template's {{% generation %}} leaves out a part of what the model "
                "must emit after its own generation prompt"
            )  # fmt: skip
        return Turn(i, text[:end], start)

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
        written = self._write([messages, *(with_stand_in(messages, i) for i in wanted)], tools)
        spans = []
        for i, other in zip(wanted, written[1:], strict=True):
            start, end = changed_span(written[0], other)
            if not all(content.strip() in written[0][start:end] for content in texts_of(messages[i])):
                raise RenderError(f"messages[{i}]: the chat template does not write this message as it is")
            ends = [stop for stop in self._stop_texts if text.startswith(stop, end)]
            spans.append((start, end + max(map(len, ends), default=0), weights[i]))
        return spans

    def _weigh(self, rendered: Rendered, encoded: Encoded | RenderError) -> Example:
        """Weights by character spans; a token that reaches across a turn's border is cut there, as sampling would."""
        if isinstance(encoded, RenderError):
            raise encoded
        turns = self._turn_tokens(rendered, encoded)
        if turns is None:
            encoded = self._encode_in_pieces(rendered)
            turns = self._turn_tokens(rendered, encoded)
            assert turns is not None
        weights = np.zeros(len(encoded.ids), np.float32)
        if rendered.everything:
            weights[:] = 1
        for first, after, weight in turns:
            weights[first:after] = weight
        for start, end, weight in rendered.others:
            weights[encoded.begin_at(start)[0] : encoded.begin_at(end)[0]] = weight
        return Example(np.array(encoded.ids, np.int32), weights)

    def _turn_tokens(self, rendered: Rendered, encoded: Encoded) -> list[tuple[int, int, float]] | None:
        """The spans of the turns in tokens; None where a token reaches across the border of one.

        A control token may: some swallow the space that follows them.
        """
        size = len(rendered.text)
        turns = []
        for start, end, weight in rendered.turns:
            first, cut = encoded.begin_at(start)
            after, cut_after = (len(encoded.ids), False) if end == size else encoded.begin_at(end)
            if (cut and encoded.ids[first - 1] not in self._control_numbers) or (
                cut_after and encoded.ids[after - 1] not in self._control_numbers
            ):
                return None
            turns.append((first, after, weight))
        return turns

    def _encode_in_pieces(self, rendered: Rendered) -> Encoded:
        """Tokens of the text cut at the turns' borders, where the tokenizer would merge across one."""
        text = rendered.text
        borders = [border for start, end, _ in rendered.turns for border in (start, end)]
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in pairwise([0, *borders, len(text)]):
            found = self._encode(text[start:end], rendered.way_back)
            ids += found.ids
            offsets += [(a + start, b + start) for a, b in found.offsets]
        if not self._spells(ids, text.translate(rendered.way_back)):
            raise RenderError("a token reaches across the border of an answer, and this tokenizer cannot be cut there")
        return Encoded(ids, offsets)

    def _encode_with_offsets(self, texts: list[Rendered], backend: Any) -> list[Encoded | RenderError]:
        plain = [rendered.text for rendered in texts if not rendered.way_back]
        encoded = iter(backend.encode_batch(plain, add_special_tokens=False))
        found: list[Encoded | RenderError] = []
        for rendered in texts:
            try:
                if rendered.way_back:
                    found.append(self._encode_hidden(rendered.text, rendered.way_back))
                else:
                    found.append(Encoded.of(next(encoded)))
            except RenderError as error:
                found.append(error)
        return found

    def _encode(self, text: str, way_back: WayBack) -> Encoded:
        if way_back:
            return self._encode_hidden(text, way_back)
        return Encoded.of(self._backend.encode(text, add_special_tokens=False))

    def _encode_hidden(self, text: str, way_back: WayBack) -> Encoded:
        """Ids and offsets of a text in which only the template's own control tokens are control tokens."""
        assert self._control is not None
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for found in [*self._control.finditer(text), None]:
            end = found.start() if found else len(text)
            part = self._blind_backend.encode(text[position:end].translate(way_back), add_special_tokens=False)
            ids += part.ids
            offsets += [(a + position, b + position) for a, b in part.offsets]
            if found:
                ids.append(self._control_ids[found[0]])
                offsets.append(found.span())
                position = found.end()
        if self._swallows_space or not self._spells(ids, text.translate(way_back)):
            raise RenderError("a message holds a control token, which this tokenizer cannot write as plain text")
        return Encoded(ids, offsets)

    def _spells(self, ids: list[int], text: str) -> bool:
        """Whether tokens give back a text, as it is or with its characters in the tokenizer's normal form."""
        spelled = self.text(ids)
        normalizer = self._backend.normalizer
        return spelled == text or (normalizer is not None and spelled == normalizer.normalize_str(text))

    @cached_property
    def _blind_backend(self) -> Any:
        """The tokenizer of text in which nothing is a control token: a second one, since threads share the first."""
        backend = copy.deepcopy(self._backend)
        backend.encode_special_tokens = True
        return backend

    def _write(
        self, conversations: list[list[Message]], tools: list[Any] | None, *, generation: bool = False
    ) -> list[str]:
        """Each conversation as the template writes it, with or without the beginning of an answer."""
        stand_ins = any(isinstance(message["content"], StandIn) for messages in conversations for message in messages)
        if self._content_as_parts:
            conversations = [self._as_parts(messages) for messages in conversations]
        try:
            if stand_ins:
                return [self._trace(messages, generation=generation) for messages in conversations]
            written: Any = self._tokenizer.apply_chat_template(
                conversations,
                tools=tools,
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except ContentMatters:
            raise
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise RenderError(f"the chat template refuses the conversation: {error}") from error
        _refuse_surrogates(written)
        return list(written)

    def _trace(self, messages: list[Message], *, generation: bool) -> str:
        """As `apply_chat_template`, which would make plain texts of stand-ins."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        text = _compile_jinja_template(self._chat_template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=generation,
            **self._tokenizer.special_tokens_map,
        )
        return str(text)

    @cached_property
    def _traceable(self) -> bool:
        """Whether stand-ins take note of all that this template does."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        compiled = _compile_jinja_template(self._chat_template)
        return not self._marks_generation and not copies_blindly(compiled.environment.parse(self._chat_template))

    def _write_with_blocks(
        self, conversations: list[list[Message]], tools: list[Any] | None
    ) -> tuple[list[str], Sequence[list[tuple[int, int]] | None]]:
        """As `_write` without an answer's beginning, with the spans that the template marks as generated."""
        if not self._marks_generation:
            return self._write(conversations, tools), [None] * len(conversations)
        from transformers.utils.chat_template_utils import render_jinja_template

        if self._content_as_parts:
            conversations = [self._as_parts(messages) for messages in conversations]
        special: Any = self._tokenizer.special_tokens_map
        try:
            written: Any = render_jinja_template(
                conversations,
                tools=tools,
                chat_template=self._chat_template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=False,
                **special,
            )
        except Exception as error:
            raise RenderError(f"the chat template refuses the conversation: {error}") from error
        texts, blocks = written
        return texts, blocks

    def _prepare(self, conversation: Conversation) -> tuple[list[Message], list[Any] | None, WayBack]:
        """Messages and tools in the form that templates read, control tokens in their text hidden."""
        for place, _ in image_parts(conversation["messages"]):
            raise RenderError(f"{place}: is an image, but this model is rendered with its chat template, as text only")
        messages = [self._as_read(message) for message in conversation["messages"]]
        messages, tools, way_back = self._hide(messages, conversation.get("tools"))
        return messages, tools, way_back

    def _as_read(self, message: Message) -> Message:
        """A message as chat templates read it: arguments of tools as objects, reasoning where they look for it."""
        if message["role"] == "developer" and not self._knows_developer:
            message = {**message, "role": "system"}
        if "tool_calls" in message:
            calls = [
                {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ]
            message = {**message, "tool_calls": calls}
        if "reasoning_content" in message and not self._takes_reasoning:
            content = f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"
            message = {key: value for key, value in message.items() if key != "reasoning_content"}
            message["content"] = content
        return message

    def _as_parts(self, messages: list[Message]) -> list[Message]:
        """The messages with their texts in lists of parts."""
        return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]

    def _hide(
        self, messages: list[Message], tools: list[Any] | None
    ) -> tuple[list[Message], list[Any] | None, WayBack]:
        """Messages and tools with the control tokens in their text out of the tokenizer's sight, and the way back.

        As it stands, `<|im_end|>` in a message would become the control token and end the turn. Its first character
        becomes one that occurs nowhere else; so every place in the text stays where it is.
        """
        control = self._control
        if control is None or not any(control.search(text) for text in _strings([messages, tools])):
            return messages, tools, {}
        used = set().union(*_strings([messages, tools]))
        spare = (mask for mask in map(chr, _PRIVATE_USE) if mask not in used)
        masks = {first: next(spare) for first in sorted({token[0] for token in self._control_ids})}

        def hidden(value: Any) -> Any:
            if isinstance(value, str):
                while control.search(value):  # again, since one may overlap another
                    value = control.sub(lambda found: masks[found[0][0]] + found[0][1:], value)
                return value
            if isinstance(value, dict):
                return {hidden(key): hidden(item) for key, item in value.items()}
            return [hidden(item) for item in value] if isinstance(value, list) else value

        return hidden(messages), hidden(tools), {ord(mask): first for first, mask in masks.items()}

    def _wants_parts(self) -> bool:
        """Whether the template writes a message's text only where it is a list of parts, as vision models' do."""

        def writes(content: Any) -> bool:
            try:
                return _PROBE in self._write([[{"role": "user", "content": content}]], None)[0]
            except RenderError:
                return False

        return not writes(_PROBE) and writes([{"type": "text", "text": _PROBE}])

    def _ending_of_template(self, known: Sequence[int]) -> list[int]:
        """The control token that ends an answer as the template writes it, where the model's configuration omits it."""
        messages = [self._as_read({"role": role, "content": _PROBE}) for role in ("user", "assistant")]
        try:
            text = self._write([messages], None)[0].rstrip()
        except RenderError:
            return []
        answer = text[text.rfind(_PROBE) + len(_PROBE) :]
        if any(str(self._tokenizer.convert_ids_to_tokens(token)) in answer for token in known):
            return []
        return [number for control, number in self._control_ids.items() if answer.endswith(control)]


def _block(conversations: Iterator[Conversation]) -> list[Conversation]:
    """The next conversations, as many as go through the tokenizer at once."""
    block: list[Conversation] = []
    characters = 0
    for conversation in conversations:
        block.append(conversation)
        characters += sum(len(message["content"]) for message in conversation["messages"])
        if len(block) == _BLOCK or characters > _BLOCK_CHARACTERS:
            break
    return block


def _refuse_surrogates(texts: Iterable[str]) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise RenderError("a message holds half of a surrogate pair, which is no text") from error


def _is_written(text: str, written: str) -> bool:
    """Whether a text stands in another, as it is or as it stands in JSON."""
    return text.strip() in written or json.dumps(text.strip(), ensure_ascii=False)[1:-1] in written


def _lost_of_tools(messages: list[Message], tools: list[Any] | None, prompt: str) -> str | None:
    """What a template without tools leaves out: the tools themselves, or what one of them returned."""
    if tools and not all(_is_written(tool["function"]["name"], prompt) for tool in tools):
        return "tools: the chat template does not write them"
    for i, message in enumerate(messages):
        if message["role"] == "tool" and not all(_is_written(text, prompt) for text in texts_of(message)):
            return f"messages[{i}]: the chat template does not write what the tool returned"
    return None


def _covered(blocks: list[tuple[int, int]], start: int, end: int) -> bool:
    """Whether the blocks leave no character of a span out."""
    for begin, stop in sorted(blocks):
        if begin > start:
            break
        start = max(start, stop)
    return start >= end


def _strings(value: Any) -> Iterator[str]:
    """Every text in nested values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def load_template_renderer(base_model: str, train_on_what: TrainOnWhat) -> ChatTemplateRenderer:
    """The renderer of a base model: a folder, or a name on the Hub.

    Raises:
        ModelError: it has no tokenizer, no chat template, or no end-of-turn token.
    """
    tokenizer = load_tokenizer(base_model)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{base_model} has no chat template, so a conversation cannot be written as the model expects it",
            hint="use the instruct or chat variant of the model, put a chat_template.jinja into its folder, or name a "
            "renderer: --renderer NAME",
        )
    renderer = ChatTemplateRenderer(tokenizer, end_of_turn_tokens(base_model, tokenizer), train_on_what)
    if not renderer.stop_tokens:
        raise ModelError(
            f"{base_model} names no end-of-turn token, so its answers could never end",
            hint="set eos_token in its tokenizer_config.json",
        )
    return renderer
