"""Texts shown to a model as material, not as words to it.

They may speak to the model, or pretend to end where they do not. So each question has a code, a hash of everything in
it, which no text in it can know: the lines between which a text stands carry it.
"""

import hashlib
from collections.abc import Sequence

import orjson

_CODE_LENGTH = 10


def code_of(sections: Sequence[tuple[str, str]]) -> str:
    """A hash of all names and texts, which none of them holds."""
    content = orjson.dumps(sections)
    while True:
        code = hashlib.sha256(content).hexdigest()[:_CODE_LENGTH]
        if not any(code in text for section in sections for text in section):
            return code
        content += b"."


def framed(code: str, sections: Sequence[tuple[str, str]]) -> str:
    """Each text under its name, between lines that carry the code."""
    # A name may come from data as well: in a line of its own it could pretend to be anything.
    lines = [(" ".join(name.split()), text) for name, text in sections]
    return "\n\n".join(f"<<begin {code} {name}>>\n{text}\n<<end {code} {name}>>" for name, text in lines)


def clean(text: str) -> str:
    """A text that can be sent: half of a surrogate pair, which a broken source may hold, cannot."""
    return text.encode("utf-8", "replace").decode()
