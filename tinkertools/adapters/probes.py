"""Conversations that show what a chat template does, and the chat template that writes them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tinkertools.chat.conversations import Message
from tinkertools.chat.examples import RenderError
from tinkertools.chat.templates.program import ChatTemplate
from tinkertools.config import TEMPLATE_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts that no template writes itself.
MARKS = tuple(f"probe{letter}text" for letter in "abcde")
# Texts as people write them; those with space around them or with reasoning are tried apart.
_TEXTS = (
    "Hello!", 'She said: "{{ .Content }}"', "Grüße, 世界! 🙂", "def f():\n\n\treturn {}  # {% if %}", "1",
    "<b>&amp;</b>", "What is 2 + 2?\nAnd 3?", "It's 4.",
)  # fmt: skip
_ROLES = {"s": "system", "u": "user", "a": "assistant"}


class DifferentError(Exception):
    """No Go template, or not this one, writes what the chat template does."""


class RefusedError(DifferentError):
    """The chat template refuses a conversation, or leaves its system message out."""


class Chat:
    """What the chat template writes, less the token that Ollama puts at the beginning itself."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.notes: dict[str, None] = {}
        self._template = ChatTemplate(tokenizer)
        if self._template.source != tokenizer.chat_template:
            self.notes[f"the chat template writes the date: here it is {TEMPLATE_DATE}, as in training"] = None
        first = tokenizer.encode("x", add_special_tokens=True)[:1]
        self._bos = str(tokenizer.bos_token) if first == [tokenizer.bos_token_id] else ""

    def write(self, messages: list[Message], *, generation: bool = True) -> str:
        """A conversation as the chat template writes it, with or without the beginning of an answer.

        Raises:
            RefusedError: it refuses the conversation.
        """
        try:
            text = self._template.write([messages], None, generation=generation)[0]
        except RenderError as error:
            raise RefusedError(f"it refuses {roles_of(messages)}: {error.__cause__ or error}") from error
        if self._bos and not text.startswith(self._bos):
            self.notes[f"Ollama puts {self._bos} before every conversation, the chat template does not"] = None
        return text.removeprefix(self._bos)


def talk(roles: str, *texts: str) -> list[Message]:
    """A conversation: of each message the first letter of its role, and its text."""
    return [{"role": _ROLES[role], "content": text} for role, text in zip(roles, texts, strict=True)]


def roles_of(messages: list[Message]) -> str:
    """The roles of a conversation, for messages to people."""
    return " → ".join(message["role"] for message in messages)


def usual(*, with_system: bool) -> Iterator[list[Message]]:
    """Conversations that must be written right: one to four turns, also after a system message."""
    for turns in range(1, 5):
        for start in range(len(_TEXTS)):
            texts = [_TEXTS[(start + i) % len(_TEXTS)] for i in range(2 * turns)]
            yield talk("uauauau"[: len(texts) - 1], *texts[1:])
            if with_system:
                yield talk("suauauau"[: len(texts)], *texts)


_SPACE = "the chat template takes away the space around texts; Ollama leaves it"
# Conversations that may be written otherwise, and what is said then.
UNUSUAL = (
    (_SPACE, talk("uau", "\n b ", " c\n", "d \n")),
    (_SPACE, talk("su", " a\n", "b")),
    (
        "the chat template takes the reasoning (<think>…</think>) out of earlier answers; Ollama leaves it",
        talk("uau", "a", "<think>\nb\n</think>\n\nc", "d"),
    ),
    ("a system message after the first message is left out or written otherwise", talk("uasu", "a", "b", "c", "d")),
    ("an empty system message is written otherwise", talk("su", "", "a")),
    ("a conversation that begins with an answer is written otherwise", talk("au", "a", "b")),
)
