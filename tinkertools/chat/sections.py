"""Documents become sections: each heading with the text under it, as Markdown's own rules find them."""

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# Plain text is read by the same rules: a line underlined with = or - is a heading there as well.
SUFFIXES = (".md", ".markdown", ".txt")


class Section(NamedTuple):
    """A heading's line (from 1), the headings it stands under and itself, and the text up to the next heading."""

    line: int
    headings: list[str]
    text: str


class Document(NamedTuple):
    """What stands before the first heading, and the sections."""

    leading: str
    sections: list[Section]


@dataclass
class SectionCounts:
    """What documents held: `empty` of the `sections` have no text, `leading` of the `documents` begin with some."""

    documents: int = 0
    sections: int = 0
    empty: int = 0
    leading: int = 0


def split_document(text: str) -> Document:
    """The sections of a Markdown document, their text as it is written there.

    Only headings of the document itself count: those in code, quotes, lists and HTML are a part of the text. Front
    matter is left out. Line ends become newlines.
    """
    # Markdown's lines: Python's `splitlines` knows more ends of a line.
    lines = _without_front_matter(re.split(r"\r\n?|\n", text))
    blocks, inlines = _parsers()
    env: dict[str, Any] = {}
    tokens = blocks.parse("\n".join(lines), env)
    path: list[tuple[int, str]] = []
    found: list[tuple[int, int, list[str]]] = []  # the lines a heading begins on and ends before, and its path
    for opening, content in pairwise(tokens):
        if opening.type != "heading_open" or opening.level or opening.map is None:
            continue
        level = int(opening.tag[1:])
        path = [(above, heading) for above, heading in path if above < level]
        path.append((level, _plain(inlines.parseInline(content.content, env)).strip()))
        start, body = opening.map
        found.append((start, body, [heading for _, heading in path]))
    ends = [start for start, _, _ in found] + [len(lines)]
    sections = [
        Section(start + 1, headings, _stripped(lines[body:end]))
        for (start, body, headings), end in zip(found, ends[1:], strict=True)
    ]
    return Document(_stripped(lines[: ends[0]]), sections)


@cache
def _parsers() -> "tuple[MarkdownIt, MarkdownIt]":
    """One that finds blocks only, for the document, and one for the text of headings: the rest need not be parsed."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").disable("inline"), MarkdownIt("commonmark")


def _without_front_matter(lines: list[str]) -> list[str]:
    """The lines with those of YAML front matter empty, so that the others keep their numbers."""
    # A blank line after it makes a `---` a rule across the page.
    if lines[0].rstrip() != "---" or len(lines) < 2 or not lines[1].strip():
        return lines
    end = next((i for i, line in enumerate(lines) if i and line.rstrip() in ("---", "...")), None)
    return lines if end is None else [""] * (end + 1) + lines[end + 1 :]


def _plain(tokens: "list[Token]") -> str:
    """The text of inline tokens without its markup; of an image, what is written in its place."""
    texts = []
    for token in tokens:
        if token.children:
            texts.append(_plain(token.children))
        elif token.type in ("text", "code_inline"):
            texts.append(token.content)
        elif token.type in ("softbreak", "hardbreak"):
            texts.append(" ")
    return "".join(texts)


def _stripped(lines: list[str]) -> str:
    """The lines as one text, less blank ones around it; the first keeps its indentation, which may mean code."""
    filled = [i for i, line in enumerate(lines) if line.strip()]
    return "\n".join(lines[filled[0] : filled[-1] + 1]).rstrip() if filled else ""
