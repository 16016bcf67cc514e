"""Written conversations become tokens, and the weights of spans of their characters those of tokens."""

import copy
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkertools.chat.examples import Example, RenderError
from tinkertools.chat.templates.controls import ControlTokens, WayBack
from tinkertools.chat.templates.writing import Rendered
from tinkertools.chat.tokenizing import Encoded

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """Encodes what a `Writer` has written, with a model's tokenizer; `backend` is that without its Python parts."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", controls: ControlTokens) -> None:
        self._tokenizer = tokenizer
        self._controls = controls
        self.backend: Any = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        # No tokens are added, so all that is left for a post-processor is to take spaces out of tokens' offsets.
        self.backend.post_processor = None
        self._idle_backends: list[Any] = []

    def encode(self, rendered: Rendered) -> Example:
        """The tokens of a text and their weights.

        Raises:
            RenderError: this tokenizer cannot be cut at a turn's border, or cannot write a control token as text.
        """
        return self._weigh(rendered, self._encode(rendered.text, rendered.way_back))

    def encode_all(self, texts: Sequence[Rendered]) -> list[Example | RenderError]:
        """As `encode`, for many texts; several threads may call this at once."""
        encodings = iter(self._encode_batch([rendered.text for rendered in texts if not rendered.way_back]))
        found: list[Example | RenderError] = []
        for rendered in texts:
            try:
                if rendered.way_back:
                    encoded = self._encode_hidden(rendered.text, rendered.way_back)
                else:
                    encoded = Encoded.of(next(encodings))
                found.append(self._weigh(rendered, encoded))
            except RenderError as error:
                found.append(error)
        return found

    def text(self, tokens: Sequence[int]) -> str:
        """The text of any tokens, control tokens included."""
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _weigh(self, rendered: Rendered, encoded: Encoded) -> Example:
        """Weights by character spans; a token that reaches across a turn's border is cut there, as sampling would."""
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
            if (cut and encoded.ids[first - 1] not in self._controls.numbers) or (
                cut_after and encoded.ids[after - 1] not in self._controls.numbers
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

    def _encode_batch(self, texts: list[str]) -> "list[Encoding]":
        """The tokenizer's answers, from one that no other thread uses meanwhile: threads that share one wait for it."""
        try:
            backend = self._idle_backends.pop()
        except IndexError:
            backend = copy.deepcopy(self.backend)
        encodings: list[Encoding] = backend.encode_batch(texts, add_special_tokens=False)
        self._idle_backends.append(backend)
        return encodings

    def _encode(self, text: str, way_back: WayBack) -> Encoded:
        if way_back:
            return self._encode_hidden(text, way_back)
        return Encoded.of(self.backend.encode(text, add_special_tokens=False))

    def _encode_hidden(self, text: str, way_back: WayBack) -> Encoded:
        """Ids and offsets of a text in which only the template's own control tokens are control tokens."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for found in [*self._controls.find(text), None]:
            end = found.start() if found else len(text)
            part = self._blind_backend.encode(text[position:end].translate(way_back), add_special_tokens=False)
            ids += part.ids
            offsets += [(a + position, b + position) for a, b in part.offsets]
            if found:
                ids.append(self._controls.ids[found[0]])
                offsets.append(found.span())
                position = found.end()
        if self._controls.swallow_space or not self._spells(ids, text.translate(way_back)):
            raise RenderError("a message holds a control token, which this tokenizer cannot write as plain text")
        return Encoded(ids, offsets)

    def _spells(self, ids: list[int], text: str) -> bool:
        """Whether tokens give back a text, as it is or with its characters in the tokenizer's normal form."""
        spelled = self.text(ids)
        normalizer = self.backend.normalizer
        return spelled == text or (normalizer is not None and spelled == normalizer.normalize_str(text))

    @cached_property
    def _blind_backend(self) -> Any:
        """The tokenizer of text in which nothing is a control token: a second one, since threads share the first."""
        backend = copy.deepcopy(self.backend)
        backend.encode_special_tokens = True
        return backend
