"""Conversations become tokens and per-token weights, exactly as the model will see and say them.

The rule: for each trained turn, the tokens before its first weight-1 token are the generation prompt for that history;
its weight-1 tokens are what the model must emit, the end-of-turn token included; every other weight is 0.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tinkertools.chat.records import Conversation
from tinkertools.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What to try when a base model cannot be loaded.
LOADING_HINT = "check the folder or name; a Hub model needs a network (HF_ENDPOINT names a mirror), HF_TOKEN if gated"

# Unicode's characters without a meaning of their own, which take the place of others for a while.
_PRIVATE_USE = range(0xE000, 0xF900)

# From the number of a character that hides another to that other, as `str.translate` takes it.
WayBack = dict[int, str]

# How many conversations go through the tokenizer at once.
_ENCODE_BATCH = 256


class RenderError(Exception):
    """Why a conversation has no right mask under this template; it names the turn."""


@dataclass(frozen=True)
class Example:
    """Tokens and their weights in the loss, not shifted: `weights[i]` says whether `tokens[i]` is to be learnt."""

    tokens: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    @property
    def trained_tokens(self) -> int:
        """How many tokens are learnt. The first token has nothing before it to be predicted from."""
        return int(np.count_nonzero(self.weights[1:]))


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, with the character spans that the model must emit.

    Where a message holds the text of a control token, `way_back` turns the characters that hide it into its own.
    """

    text: str
    spans: list[tuple[int, int]]
    way_back: WayBack


class ChatTemplateRenderer:
    """Renders with the model's own chat template."""

    name = "chat-template"

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.stop_tokens = list(stop_tokens)
        self._stop_texts = [str(tokenizer.convert_ids_to_tokens(token)) for token in self.stop_tokens]
        self._control_ids = {str(t): number for number, t in tokenizer.added_tokens_decoder.items() if t.special}
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def generation_prompt(self, messages: Conversation) -> list[int]:
        """The tokens after which the model answers the last message.

        Raises:
            RenderError: the template refuses the conversation.
        """
        messages, way_back = self._hide(messages)
        text = self._template(messages, generation=True)
        try:
            spans = self._spans(messages, text)
        except RenderError:
            spans = []  # this history has no mask, so nothing was trained after it: the template alone decides
        tokens: list[int] = self._example(Rendered(text, spans, way_back)).tokens.tolist()
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text: control tokens, such as the end of the turn, left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def render(self, conversations: Iterable[Conversation]) -> Iterator[Example | RenderError]:
        """Each conversation's example, in order, or why it has none."""
        remaining = iter(conversations)
        while block := list(islice(remaining, _ENCODE_BATCH)):
            found = [self._rendered_or_error(conversation) for conversation in block]
            texts = [item.text for item in found if isinstance(item, Rendered) and not item.way_back]
            encoded = iter(self._encode_with_offsets(texts))
            for item in found:
                if isinstance(item, Rendered):
                    try:
                        yield self._example(item) if item.way_back else self._weigh(item, *next(encoded))
                    except RenderError as error:
                        yield error
                else:
                    yield item

    def _rendered_or_error(self, conversation: Conversation) -> Rendered | RenderError:
        try:
            return self.render_text(conversation)
        except RenderError as error:
            return error

    def render_text(self, messages: Conversation) -> Rendered:
        """The whole conversation as text, and for each assistant turn the span from its generation prompt to its end.

        Raises:
            RenderError: the template writes an earlier turn differently once later ones follow, or ends a turn without
                an end-of-turn token.
        """
        messages, way_back = self._hide(messages)
        whole = self._template(messages, generation=False)
        return Rendered(whole, self._spans(messages, whole), way_back)

    def _spans(self, messages: Conversation, whole: str) -> list[tuple[int, int]]:
        """The span of each assistant turn in `whole`, which begins with the messages as the template writes them."""
        spans: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._template(messages[:i], generation=True)
            up_to = self._template(messages[: i + 1], generation=False)
            if not (whole.startswith(prompt) and up_to.startswith(prompt)):
                raise RenderError(
                    f"messages[{i}]: the chat template writes the conversation before this turn differently from the "
                    "prompt it would be sampled with"
                )
            end = self._end_of_turn(up_to, len(prompt))
            if end is None:
                raise RenderError(
                    f"messages[{i}]: the chat template ends this turn without an end-of-turn token "
                    f"({' or '.join(self._stop_texts)}), so the model would never learn to stop"
                )
            if not whole.startswith(up_to[:end]):
                raise RenderError(f"messages[{i}]: the chat template rewrites this turn once later turns follow it")
            spans.append((len(prompt), end))
        return spans

    def _end_of_turn(self, text: str, start: int) -> int | None:
        ends = [at + len(stop) for stop in self._stop_texts if (at := text.find(stop, start)) >= 0]
        return min(ends, default=None)

    def _example(self, rendered: Rendered) -> Example:
        """One rendered text as tokens and weights."""
        if rendered.way_back:
            return self._weigh(rendered, *self._encode_hidden(rendered.text, rendered.way_back))
        return self._weigh(rendered, *next(self._encode_with_offsets([rendered.text])))

    def _weigh(self, rendered: Rendered, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Example:
        """Weights by character spans; a token that reaches across a span's border is cut there, as sampling would."""
        spans = rendered.spans
        starts = [begin for begin, _ in offsets]
        for start, end in spans:
            at = bisect_left(starts, start)
            if at and offsets[at - 1][1] > start:
                return self._weigh_in_pieces(rendered)
            at = bisect_left(starts, end)
            if at and offsets[at - 1][1] > end:
                return self._weigh_in_pieces(rendered)
        weights = np.zeros(len(ids), np.float32)
        for start, end in spans:
            weights[bisect_left(starts, start) : bisect_left(starts, end)] = 1
        return Example(np.asarray(ids, np.int32), weights)

    def _weigh_in_pieces(self, rendered: Rendered) -> Example:
        """Tokens of the text cut at the spans' borders, where the tokenizer would merge across one."""
        text = rendered.text
        borders = [0, *(border for span in rendered.spans for border in span), len(text)]
        ids = [self._encode(text[a:b], rendered.way_back) for a, b in pairwise(borders)]
        tokens = [token for piece in ids for token in piece]
        if self._tokenizer.decode(tokens) != text.translate(rendered.way_back):
            raise RenderError("a token reaches across the border of an answer, and this tokenizer cannot be cut there")
        weights = [float(i % 2) for i, piece in enumerate(ids) for _ in piece]
        return Example(np.asarray(tokens, np.int32), np.asarray(weights, np.float32))

    def _encode(self, text: str, way_back: WayBack) -> list[int]:
        if way_back:
            return self._encode_hidden(text, way_back)[0]
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _encode_with_offsets(self, texts: list[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        if not texts:
            return iter(())
        encoded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[list[int]] = encoded["input_ids"]
        offsets: list[list[tuple[int, int]]] = encoded["offset_mapping"]
        return zip(ids, offsets, strict=True)

    def _template(self, messages: Conversation, *, generation: bool) -> str:
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RenderError(f"the chat template refuses the conversation: {error}") from error
        return str(text)

    def _hide(self, messages: Conversation) -> tuple[Conversation, WayBack]:
        """The messages with the control tokens in their text out of the tokenizer's sight, and the way back.

        As it stands, `<|im_end|>` in a message would become the control token and end the turn. Its first character
        becomes one that occurs nowhere else; so every place in the text stays where it is.
        """
        control = self._control
        if control is None or not any(control.search(message["content"]) for message in messages):
            return messages, {}
        used = set().union(*(message["content"] for message in messages))
        spare = (mask for mask in map(chr, _PRIVATE_USE) if mask not in used)
        masks = {first: next(spare) for first in sorted({token[0] for token in self._control_ids})}
        hidden = []
        for message in messages:
            text = message["content"]
            while control.search(text):  # again, since one may overlap another
                text = control.sub(lambda found: masks[found[0][0]] + found[0][1:], text)
            hidden.append({**message, "content": text})
        return hidden, {ord(mask): first for first, mask in masks.items()}

    def _encode_hidden(self, text: str, way_back: WayBack) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of a text in which only the template's own control tokens are control tokens."""
        assert self._control is not None
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for found in [*self._control.finditer(text), None]:
            end = found.start() if found else len(text)
            part = self._tokenizer(
                text[position:end].translate(way_back), add_special_tokens=False, return_offsets_mapping=True,
                split_special_tokens=True,
            )  # fmt: skip
            ids += part["input_ids"]
            offsets += [(a + position, b + position) for a, b in part["offset_mapping"]]
            if found:
                ids.append(self._control_ids[found[0]])
                offsets.append(found.span())
                position = found.end()
        if self._tokenizer.decode(ids) != text.translate(way_back):
            raise RenderError("a message holds a control token, which this tokenizer cannot write as plain text")
        return ids, offsets


def load_renderer(base_model: str) -> ChatTemplateRenderer:
    """The renderer of a base model: a folder, or a name on the Hub.

    Raises:
        ModelError: it has no tokenizer, no chat template, or no end-of-turn token.
    """
    tokenizer = load_tokenizer(base_model)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{base_model} has no chat template, so a conversation cannot be written as the model expects it",
            hint="use the instruct or chat variant of the model, or put a chat_template.jinja into its folder",
        )
    stop_tokens = end_of_turn_tokens(base_model, tokenizer)
    if not stop_tokens:
        raise ModelError(
            f"{base_model} names no end-of-turn token, so its answers could never end",
            hint="set eos_token in its tokenizer_config.json",
        )
    return ChatTemplateRenderer(tokenizer, stop_tokens)


def load_tokenizer(base_model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base model.

    Raises:
        ModelError: there is none that gives offsets.
    """
    from transformers import AutoTokenizer

    folder = Path(base_model)
    if folder.is_dir() and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ModelError(
            f"{base_model} has no tokenizer (no tokenizer.json)",
            hint="copy the tokenizer files of the model into its folder",
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(base_model)
    except Exception as error:
        first_line = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(
            f"the tokenizer of {base_model} cannot be loaded: {first_line}",
            hint=LOADING_HINT,
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {base_model} gives no offsets", hint="it needs a tokenizer.json")
    return tokenizer  # type: ignore[no-any-return]


def end_of_turn_tokens(base_model: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer: the generation configuration's, then the tokenizer's."""
    from transformers import GenerationConfig

    tokens: list[int] = []
    try:
        configured = GenerationConfig.from_pretrained(base_model).eos_token_id
    except OSError:
        configured = None  # a model without the file: the tokenizer alone decides
    for token in [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]:
        if isinstance(token, int) and token not in tokens:
            tokens.append(token)
    return tokens


def render_all(
    renderer: ChatTemplateRenderer,
    conversations: list[Conversation],
    errors_shown: int,
    report: Callable[[float], None] = lambda _: None,
) -> list[Example]:
    """The example of each conversation, all of which must have one. `report` is told how many are done.

    Raises:
        DataError: some have none; the first `errors_shown` are named.
    """
    examples: list[Example] = []
    failed: list[str] = []
    for number, item in enumerate(renderer.render(conversations), 1):
        if isinstance(item, Example):
            examples.append(item)
        else:
            failed.append(f"conversation {number}: {item}")
        if number % _ENCODE_BATCH == 0 or number == len(conversations):
            report(number)
    if failed:
        more = [f"… and {len(failed) - errors_shown:,} more"] if len(failed) > errors_shown else []
        count = "1 conversation" if len(failed) == 1 else f"{len(failed):,} conversations"
        raise DataError(
            "\n  ".join(
                [f"{count} cannot be rendered with this model's chat template:", *failed[:errors_shown], *more]
            ),
            hint="mend or leave out these conversations, or choose another --base-model",
        )
    return examples
