"""Documents become sections: what is a heading, what is its text, and what is left out."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.chat.sections import Section, split_document


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A\ntext\n", [(1, ["A"], "text")]),
        ("# A\n\n\ntext\n\nmore\n\n", [(1, ["A"], "text\n\nmore")]),
        ("# A #\n## B ##\nb\n### C\nc\n## D\nd\n# E\ne", [
            (1, ["A"], ""), (2, ["A", "B"], "b"), (4, ["A", "B", "C"], "c"), (6, ["A", "D"], "d"), (8, ["E"], "e"),
        ]),
        # A level may be left out, on the way down and on the way up.
        ("# A\n#### B\nb\n## C\nc\n### D\nd", [
            (1, ["A"], ""), (2, ["A", "B"], "b"), (4, ["A", "C"], "c"), (6, ["A", "C", "D"], "d"),
        ]),
        ("### A\na\n## B\nb\n# C\nc", [(1, ["A"], "a"), (3, ["B"], "b"), (5, ["C"], "c")]),
        # Underlined headings, over more lines than one as well.
        ("A\n=\na\n\nB\n---\nb", [(1, ["A"], "a"), (5, ["A", "B"], "b")]),
        ("A\n=\na\nB\n-\nb", [(1, ["A"], ""), (3, ["A", "a B"], "b")]),
        ("\n\nA\nB\n===\na", [(3, ["A B"], "a")]),
        # What only looks like a heading is text of the one before.
        ("# A\n```\n# no\n```\n\n    # no\n\n#no\n\\# no\n####### no", [
            (1, ["A"], "```\n# no\n```\n\n    # no\n\n#no\n\\# no\n####### no"),
        ]),
        ("# A\n~~~\n# no\n\n# nor this", [(1, ["A"], "~~~\n# no\n\n# nor this")]),
        ("# A\n> # no\n\n- # no\n\n1. no\n   ---\n", [(1, ["A"], "> # no\n\n- # no\n\n1. no\n   ---")]),
        ("# A\n<!--\n# no\n-->\n<div>\n# no\n</div>\n", [(1, ["A"], "<!--\n# no\n-->\n<div>\n# no\n</div>")]),
        ("# A\n\n---\na | b\n--- | ---\n1 | 2\n", [(1, ["A"], "---\na | b\n--- | ---\n1 | 2")]),
        # The text is as it is written, a first line of code indented.
        ("# A\n\n    code\n  \n    more  \n\n*b*  [c](d)\n\n", [(1, ["A"], "    code\n  \n    more  \n\n*b*  [c](d)")]),
        ("# A\na\x0cb\u2028c\x85d", [(1, ["A"], "a\x0cb\u2028c\x85d")]),
        ("# A\r\na\r\n\r\nb\r# B\rc", [(1, ["A"], "a\n\nb"), (5, ["B"], "c")]),
        # The markup of a heading becomes its text.
        ("# The *A* **b** `c_d` <b>e</b>\nx", [(1, ["The A b c_d e"], "x")]),
        ("# [A](http://host) ![b *c*](i.png) <http://d.e> &amp; \\*\nx", [(1, ["A b c http://d.e & *"], "x")]),
        ("# [A][b] [c]\nx\n\n[b]: http://host\n", [(1, ["A [c]"], "x\n\n[b]: http://host")]),
        ("A\\\nB  \nC\n===\nx", [(1, ["A B C"], "x")]),
        ("#\nx\n## A\ny", [(1, [""], "x"), (3, ["", "A"], "y")]),
        # Front matter is none of the text; a rule across the page is.
        ("---\ntitle: A\n# no\n---\n# B\nb", [(5, ["B"], "b")]),
        ("---\ntitle: A\n...\nB\n-\nb", [(4, ["B"], "b")]),
        ("# A\n---\na: b\n---\nc", [(1, ["A"], "---"), (3, ["A", "a: b"], "c")]),
    ],
)  # fmt: skip
def test_sections(text: str, expected: list[tuple[int, list[str], str]]) -> None:
    document = split_document(text)
    assert document.sections == [Section(*section) for section in expected]
    assert document.leading == ""


@pytest.mark.parametrize(
    ("text", "leading", "sections"),
    [
        ("", "", 0),
        (" \n\n", "", 0),
        ("just\n\ntext\n", "just\n\ntext", 0),
        ("before\n\n# A\na", "before", 1),
        ("---\na: b\n---\n\nbefore\n# A\na", "before", 1),
        ("---\na: b\n---\n# A\na", "", 1),
        ("---\n", "---", 0),
        ("---\n# A\na", "---", 1),
        ("---\n\n# A\na\n\n---\n# B", "---", 2),
        ("> # A\n\na", "> # A\n\na", 0),
    ],
)
def test_what_stands_before_the_first_heading(text: str, leading: str, sections: int) -> None:
    document = split_document(text)
    assert (document.leading, len(document.sections)) == (leading, sections)


headings = st.tuples(st.integers(1, 6), st.text("abc é<&*_[", min_size=1, max_size=6))
paragraphs = st.lists(
    st.sampled_from(["text", "", "    # code", "> # quote", "- item\n  # in it", "```\n# code\n```", "<p>\n# x\n</p>"]),
    max_size=4,
).map("\n\n".join)  # fmt: skip


@given(st.text("text\n", max_size=9), st.lists(st.tuples(headings, paragraphs), max_size=5), st.sampled_from("\n\r"))
def test_every_line_is_in_one_place(before: str, parts: list[tuple[tuple[int, str], str]], end: str) -> None:
    lines: list[str] = [*before.split("\n"), ""]
    expected: list[Any] = []
    for (level, heading), body in parts:
        expected.append((len(lines) + 1, level, body))
        lines += [f"{'#' * level} {heading}", *body.split("\n"), ""]
    document = split_document(("\r\n" if end == "\r" else end).join(lines))
    assert document.leading == before.strip("\n")
    assert [section.line for section in document.sections] == [line for line, _, _ in expected]
    levels: list[int] = []
    for section, (_, level, body) in zip(document.sections, expected, strict=True):
        levels = [*(above for above in levels if above < level), level]
        assert len(section.headings) == len(levels)
        assert section.text == "\n".join(body.split("\n")).strip("\n")


def test_nothing_heavy_is_imported_until_a_document_is_read() -> None:
    check = "import sys, tinkertools.prepare, tinkertools.chat.records; sys.exit('markdown_it' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
