"""Stops that are text: whether an answer's newest token completes one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Bytes of a character, the first of which may be cut off in the window, and some for a space that a tokenizer drops
# where a text begins.
_MARGIN = 16


class TextStops:
    """Texts that end an answer.

    Only so many of the last tokens are decoded as can hold the longest text: what comes before was looked at when it
    was the newest.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._texts = tuple(texts)
        self._bytes = max(len(text.encode()) for text in texts) + _MARGIN

    def end(self, tokens: Sequence[int]) -> bool:
        """Whether the text of `tokens` holds a stop that it did not hold without the last of them."""
        # A token has a byte at least; where some have none, the window grows.
        window = self._bytes
        while True:
            text = str(self._tokenizer.decode(list(tokens[-window:])))
            if window >= len(tokens) or len(text.encode()) >= self._bytes:
                return any(stop in text for stop in self._texts)
            window *= 2
