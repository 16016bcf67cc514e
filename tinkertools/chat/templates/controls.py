"""The control tokens of a tokenizer, and how their text is kept out of its sight where it stands in a message."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tinkertools.chat.conversations import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Unicode's characters without a meaning of their own, which take the place of others for a while.
_PRIVATE_USE = range(0xE000, 0xF900)

# From the number of a character that hides another to that other, as `str.translate` takes it.
WayBack = dict[int, str]


class ControlTokens:
    """The tokens that structure a conversation, such as `<|im_end|>`: `ids` by their texts.

    `swallow_space` says that some of them take the space beside them into themselves.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        special = [(number, token) for number, token in tokenizer.added_tokens_decoder.items() if token.special]
        self.ids = {str(token): number for number, token in special}
        self.numbers = frozenset(self.ids.values())
        self.swallow_space = any(token.lstrip or token.rstrip for _, token in special)
        longest_first = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def occur_in(self, text: str) -> bool:
        """Whether a text holds any."""
        return self._pattern is not None and self._pattern.search(text) is not None

    def find(self, text: str) -> Iterator[re.Match[str]]:
        """Where each of them stands in a text."""
        return self._pattern.finditer(text) if self._pattern else iter(())

    def hide(self, messages: list[Message], tools: list[Any] | None) -> tuple[list[Message], list[Any] | None, WayBack]:
        """Messages and tools with the control tokens in their text out of the tokenizer's sight, and the way back.

        As it stands, `<|im_end|>` in a message would become the control token and end the turn. Its first character
        becomes one that occurs nowhere else; so every place in the text stays where it is.
        """
        control = self._pattern
        if control is None or not any(control.search(text) for text in _strings([messages, tools])):
            return messages, tools, {}
        used = set().union(*_strings([messages, tools]))
        spare = (mask for mask in map(chr, _PRIVATE_USE) if mask not in used)
        masks = {first: next(spare) for first in sorted({token[0] for token in self.ids})}

        def hidden(value: Any) -> Any:
            if isinstance(value, str):
                while control.search(value):  # again, since one may overlap another
                    value = control.sub(lambda found: masks[found[0][0]] + found[0][1:], value)
                return value
            if isinstance(value, dict):
                return {hidden(key): hidden(item) for key, item in value.items()}
            return [hidden(item) for item in value] if isinstance(value, list) else value

        return hidden(messages), hidden(tools), {ord(mask): first for first, mask in masks.items()}


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
