"""What a chat template does with all conversations of one shape, whatever their texts say.

Most templates only ever copy a message's text. Where that is so, conversations with the same roles are written as the
same pieces with other texts between them, and each need not be rendered anew. It is found out by rendering stand-ins:
texts that take note when the template looks at what they say. As long as nothing does, no other texts can make the
template do anything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

# Between the marks stands what a template changes if it does more than copy: space at the ends, quotes, escapes.
_MARK = "\ue000"
_TEXT = " \n\t" + _MARK + "{number}\ue001\"'\\<&>é\xa0\r\n "

# Filters and methods that make a plain text out of a stand-in without its taking note.
_BLIND = frozenset(("escape", "e", "forceescape", "format", "join", "striptags", "urlize", "xmlattr"))


class ContentMatters(Exception):
    """The template looks at what a text says."""


@dataclass
class Note:
    """What a template did with the stand-ins of a conversation."""

    looked: bool = False
    stripped: bool = False


class StandIn(str):
    """A text that may be copied, joined to others and taken for a text, but not looked at.

    Stripping it of space is let pass, and noted: it changes nothing in a text that has no space at its ends.
    """

    note: Note
    joined: bool

    @classmethod
    def of(cls, text: str, note: Note, *, joined: bool = False) -> "StandIn":
        """A stand-in that reports to `note`; `joined` says that it is more than one message's text."""
        made = cls(text)
        made.note, made.joined = note, joined
        return made

    def __add__(self, other: str) -> "StandIn":
        return StandIn.of(str.__add__(self, other), self.note, joined=True)

    def __radd__(self, other: str) -> "StandIn":
        return StandIn.of(str.__add__(other, self), self.note, joined=True)

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True

    def strip(self, chars: str | None = None) -> "StandIn":
        """Itself, if it is only asked to be without outer space."""
        if self.joined or not (chars is None or chars.isspace()):
            _refuse(self)
        self.note.stripped = True
        return self

    lstrip = rstrip = strip


def _refuse(self: StandIn, *_: object, **__: object) -> NoReturn:
    self.note.looked = True  # some of Jinja's tests swallow every error
    raise ContentMatters


_LOOKS = ["__contains__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__getitem__", "__hash__"]
_LOOKS += ["__iter__", "__len__", "__mod__", "__rmod__", "__mul__", "__rmul__", "__format__", "__repr__"]
_LOOKS += [name for name in vars(str) if not name.startswith("__") and name not in vars(StandIn)]
for _name in _LOOKS:
    setattr(StandIn, _name, _refuse)


def copies_blindly(template: Any) -> bool:
    """Whether a Jinja syntax tree joins or escapes texts in ways of which a stand-in does not learn."""
    from jinja2 import nodes

    if next(template.find_all((nodes.Concat, nodes.Mod)), None) is not None:
        return True
    if any(found.name in _BLIND for found in template.find_all(nodes.Filter)):
        return True
    return any(found.attr in _BLIND for found in template.find_all(nodes.Getattr))


@dataclass(frozen=True)
class Shape:
    """How conversations of one shape are written: for each text, its fixed pieces and which message is between them.

    `pieces[k]` stands before the text of message `messages[k]`; the last piece ends it. A border of a span is a piece
    and a place in it.
    """

    pieces: list[str]
    messages: list[int]
    borders: list[tuple[int, int]]
    stripped: bool

    def write(self, contents: Sequence[str]) -> tuple[str, list[int]]:
        """The text with these contents in place, and where the borders are in it."""
        parts = [self.pieces[0]]
        for piece, message in zip(self.pieces[1:], self.messages, strict=True):
            parts += (contents[message], piece)
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part))
        return "".join(parts), [starts[2 * piece] + place for piece, place in self.borders]


def stand_ins(count: int) -> tuple[list[StandIn], Note]:
    """A stand-in for the text of each message, and the note that they share."""
    note = Note()
    return [StandIn.of(_TEXT.format(number=number), note) for number in range(count)], note


def shape_of(text: str, borders: Sequence[int], count: int, note: Note) -> Shape | None:
    """The shape that a text written with stand-ins has, or None where a text was changed or a border lies in one."""
    found: list[tuple[int, int, int]] = []
    for number in range(count):
        content = _TEXT.format(number=number)
        at = text.find(content)
        while at >= 0:
            found.append((at, at + len(content), number))
            at = text.find(content, at + len(content))
    found.sort()
    pieces, starts, messages, position = [], [], [], 0
    for start, end, number in found:
        pieces.append(text[position:start])
        starts.append(position)
        messages.append(number)
        position = end
    pieces.append(text[position:])
    starts.append(position)
    if any(_MARK in piece or "ue000" in piece for piece in pieces):
        return None
    placed = []
    for border in borders:
        inside = [k for k, piece in enumerate(pieces) if starts[k] <= border <= starts[k] + len(piece)]
        if not inside:
            return None
        placed.append((inside[0], border - starts[inside[0]]))
    return Shape(pieces, messages, placed, note.stripped)
