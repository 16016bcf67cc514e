"""Examples as a person can read them, and what the data amounts to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tinkertools.chat.examples import IMAGE_TOKEN, Example
from tinkertools.chat.rendering import Renderer

# Shown at each length of an example: percentiles, in per cent.
_PERCENTILES = (50, 90, 99)

_VISIBLE = {
    **{number: f"\\x{number:02x}" for number in (*range(32), *range(0x7F, 0xA0))},
    ord("\n"): "↵\n",
    ord("\t"): "⇥",
    ord("\r"): "␍",
    # Spaces that look like nothing or like another, and marks that turn the direction of writing.
    **{number: f"\\u{number:04x}" for number in (0xA0, 0xAD, *range(0x200B, 0x2010), *range(0x2028, 0x202F))},
    **{number: f"\\u{number:04x}" for number in (*range(0x2060, 0x206A), 0xFEFF)},
}


@dataclass(frozen=True)
class Piece:
    """A stretch of an example with one weight, as text."""

    text: str
    weight: float


def pieces(renderer: Renderer, example: Example) -> Iterator[Piece]:
    """The example's stretches of equal weight, with control characters made visible."""
    breaks = np.flatnonzero(np.diff(example.weights)) + 1
    images = [border for image in example.images for border in (image.start, image.start + image.length)]
    borders = sorted({0, *breaks.tolist(), *images, len(example.tokens)})
    for start, end in pairwise(borders):
        tokens = example.tokens[start:end].tolist()
        text = f"[image, {end - start} tokens]" if tokens[0] == IMAGE_TOKEN else visible(renderer.text(tokens))
        yield Piece(text, float(example.weights[start]))


def visible(text: str) -> str:
    """The text with characters that cannot be seen written out; a line ends with its mark."""
    return text.translate(_VISIBLE)


def plain(renderer: Renderer, example: Example) -> str:
    """The example with its trained stretches in brackets; a weight other than 1 stands before its stretch."""
    return "".join(bracketed(piece) for piece in pieces(renderer, example))


def bracketed(piece: Piece) -> str:
    """A piece, in brackets where it is trained."""
    if not piece.weight:
        return piece.text
    return f"⟦{piece.text}⟧" if piece.weight == 1 else f"⟦{piece.weight:g}× {piece.text}⟧"


def lengths(examples: Sequence[Example]) -> str:
    """How long the examples are, in words."""
    sizes = np.asarray([len(example.tokens) for example in examples])
    shown = [f"{int(np.percentile(sizes, p, method='higher')):,} ({p} %)" for p in _PERCENTILES]
    return f"{', '.join(shown)}, at most {int(sizes.max()):,}"
