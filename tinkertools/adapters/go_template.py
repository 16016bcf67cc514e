"""A chat template as the Go template that Ollama takes: found by what the chat template writes, and held against it.

Conversations of marked texts are rendered, and what stands between the marks is cut into what each role begins and
ends with. The Go template that is made of it is then run, here, on other conversations: what it writes must be what
the chat template writes. What Ollama gives to a template is in https://github.com/ollama/ollama/blob/main/template/template.go,
Go's language in https://pkg.go.dev/text/template.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkertools.adapters.go_interpreter import run
from tinkertools.adapters.probes import MARKS, UNUSUAL, Chat, DifferentError, RefusedError, roles_of, talk, usual
from tinkertools.chat.conversations import Message
from tinkertools.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a Go template or a Modelfile would read otherwise; of other characters, those that Modelfiles lose are escaped.
_SPECIAL = re.compile(r'\{{2,}|\{\Z|"{3,}|[^\n\x20-\x7e]+')
_HAS_SYSTEM = '(eq (index $.Messages 0).Role "system")'
_AFTER_SYSTEM = f"and (eq $i 1) {_HAS_SYSTEM}"
_LAST_WITH_SYSTEM = f"and (eq (len (slice $.Messages $i)) 1) {_HAS_SYSTEM}"
_SHOWN = 60


@dataclass(frozen=True)
class GoTemplate:
    """A Go template that writes conversations as the chat template does, and in which cases it does not, in words."""

    text: str
    notes: tuple[str, ...] = ()


def make_go_template(tokenizer: "PreTrainedTokenizerBase", name: str) -> GoTemplate:
    """The chat template of a tokenizer for Ollama; `name` is the model's, for messages.

    Raises:
        ModelError: there is no chat template, or no Go template says the same.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"{name} has no chat template", hint="put a chat_template.jinja into its folder")
    chat = Chat(tokenizer)
    try:
        pieces = _cut(chat)
        text = _written(pieces)
        for messages in usual(with_system=pieces.takes_system):
            _compare(chat, text, messages)
    except DifferentError as error:
        raise ModelError(
            f"the chat template of {name} cannot be written as Ollama's TEMPLATE: {error}",
            hint="leave out --export ollama; vLLM takes the chat template as it is: --export vllm",
        ) from error
    notes = list(chat.notes)
    if not pieces.takes_system:
        notes.append("the chat template takes no system message: here it is left out")
    for words, messages in UNUSUAL:
        if any(message["role"] == "system" for message in messages) and not pieces.takes_system:
            continue
        try:
            _compare(chat, text, messages)
        except RefusedError:
            continue  # what the chat template refuses it cannot write otherwise
        except DifferentError:
            notes.append(words)
    return GoTemplate(text, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Pieces:
    """What stands before and after a text of each role.

    `opening` stands before a conversation that begins with no system message. `system` is of a first message;
    `later_system` of others. `joined` says that a user's text after a system message has nothing before it but that.
    `last_system` is of a first message that is written in the turn of the last user.
    """

    opening: str
    first_user: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    system: tuple[str, str] | None
    later_system: tuple[str, str] | None
    joined: bool
    last_system: tuple[str, str] | None

    @property
    def takes_system(self) -> bool:
        """Whether the chat template takes a system message."""
        return bool(self.system or self.last_system)


def _cut(chat: Chat) -> _Pieces:
    """What the chat template writes around texts.

    Raises:
        DifferentError: it is not the same for every turn.
    """
    before, to_answer, to_user, *others, end = _around(chat, "uauau")
    if others != [to_answer, to_user]:
        raise DifferentError("later turns are not written as the first ones are")
    user_end = _if_begins(to_answer, _around(chat, "u", generation=False)[-1])
    answer_end = _if_begins(to_user, _around(chat, "ua", generation=False)[-1])
    user = to_user.removeprefix(answer_end)
    opening, first_user = (before.removesuffix(user), user) if before.endswith(user) else ("", before)
    generation = end.removeprefix(_if_begins(end, user_end))
    user_end = end.removesuffix(generation)
    system, joined = None, False
    last_system = _last_system(chat, to_user)
    if not last_system:
        try:
            system_begin, system_end, *rest = _around(chat, "suau")
        except RefusedError:
            rest = [to_answer, to_user, end]
        else:
            joined = not system_end.endswith(user)
            system = (system_begin, system_end if joined else system_end.removesuffix(user))
        if rest != [to_answer, to_user, end]:
            raise DifferentError("a system message changes how the turns after it are written")
    return _Pieces(
        opening, first_user, (user, user_end), (to_answer.removeprefix(user_end), answer_end), generation,
        system, _later_system(chat, user, answer_end), joined, last_system,
    )  # fmt: skip


def _later_system(chat: Chat, user: str, answer_end: str) -> tuple[str, str] | None:
    try:
        _, _, begin, end, _ = _around(chat, "uasu")
    except DifferentError:
        return None
    return (begin.removeprefix(answer_end), end.removesuffix(user)) if end.endswith(user) else None


def _last_system(chat: Chat, to_user: str) -> tuple[str, str] | None:
    """What stands around a first system message that is written in the last user's turn, as Mistral's templates do."""
    try:
        _, _, begin, end, _ = _around(chat, "suau", order=(1, 2, 0, 3))
    except DifferentError:
        return None
    return (begin.removeprefix(to_user), end) if begin.startswith(to_user) else None


def _around(chat: Chat, roles: str, *, generation: bool = True, order: Sequence[int] = ()) -> list[str]:
    """What stands before, between and after the texts of messages, which are looked for in order.

    Raises:
        DifferentError: a text is not written, more than once, or out of its place.
    """
    messages = talk(roles, *MARKS[: len(roles)])
    text = chat.write(messages, generation=generation)
    pieces: list[str] = []
    for number in order or range(len(roles)):
        mark = MARKS[number]
        if text.count(mark) > 1:
            raise DifferentError(f"it writes texts twice in {roles_of(messages)}")
        piece, found, text = text.partition(mark)
        if not found and "s" in roles and roles.index("s") == MARKS.index(mark) and not pieces:
            raise RefusedError("it leaves out a system message")
        if not found:
            raise DifferentError(f"it leaves out or moves texts in {roles_of(messages)}")
        pieces.append(piece)
    return [*pieces, text]


def _if_begins(text: str, beginning: str) -> str:
    return beginning if text.startswith(beginning) else ""


# --- writing


def _written(pieces: _Pieces) -> str:
    first_system = pieces.system
    system = _literal(pieces.opening) if first_system is None else _turn(*first_system)
    if pieces.later_system != first_system:
        later = _turn(*pieces.later_system) if pieces.later_system else ""
        system = _either("eq $i 0", system, later)
    beginning = _either("eq $i 0", _literal(pieces.first_user), _literal(pieces.user[0]))
    if pieces.joined:
        beginning = _either(f"not ({_AFTER_SYSTEM})", beginning, "")
    opening = _either('and (eq $i 0) (ne .Role "system")', _literal(pieces.opening), "")
    if pieces.last_system:
        before, after = map(_literal, pieces.last_system)
        written = f"{before}{{{{ (index $.Messages 0).Content }}}}{after}"
        beginning += _either(_LAST_WITH_SYSTEM, written, "")
    return (
        "{{ range $i, $_ := .Messages }}"
        f'{opening}{{{{ if eq .Role "system" }}}}{system}'
        f'{{{{ else if eq .Role "user" }}}}{beginning}{_turn("", pieces.user[1])}'
        f'{{{{ else if eq .Role "assistant" }}}}{_turn(*pieces.assistant)}'
        f"{{{{ end }}}}{{{{ end }}}}{_literal(pieces.generation)}"
    )


def _turn(before: str, after: str) -> str:
    return f"{_literal(before)}{{{{ .Content }}}}{_literal(after)}"


def _either(condition: str, yes: str, no: str) -> str:
    if yes == no:
        return yes
    otherwise = f"{{{{ else }}}}{no}" if no else ""
    return f"{{{{ if {condition} }}}}{yes}{otherwise}{{{{ end }}}}"


def _literal(text: str) -> str:
    """A text that a Go template and a Modelfile leave as it is."""

    def escaped(found: re.Match[str]) -> str:
        special = found[0]
        if special[0] not in '{"' and special.isprintable():
            return special
        return '{{ "' + "".join(f"\\U{ord(character):08x}" for character in special) + '" }}'

    return _SPECIAL.sub(escaped, text)


# --- comparing


def _compare(chat: Chat, template: str, messages: list[Message]) -> None:
    """Hold a Go template against the chat template.

    Raises:
        DifferentError: they write different things.
    """
    wanted, found = chat.write(messages), run(template, messages)
    if wanted != found:
        pairs = enumerate(zip(wanted, found, strict=False))
        at = next((i for i, (one, other) in pairs if one != other), min(len(wanted), len(found)))
        raise DifferentError(
            f"of {roles_of(messages)} it writes {wanted[at : at + _SHOWN]!r} where the other writes "
            f"{found[at : at + _SHOWN]!r}"
        )
