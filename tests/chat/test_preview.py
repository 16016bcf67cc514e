"""Examples as a person reads them."""

import numpy as np

from tinkertools.chat.examples import IMAGE_TOKEN, Example, Image
from tinkertools.chat.preview import Piece, lengths, pieces, plain, visible
from tinkertools.chat.rendering import load_renderer
from tinkertools.shipped import STARTER_MODEL

RENDERER = load_renderer(str(STARTER_MODEL))


def test_control_characters_are_visible() -> None:
    assert visible("a\nb\tc\rd\x1b[31m\x00\u200b\u202e\ufeff\xa0é🙂") == (
        "a↵\nb⇥c␍d\\x1b[31m\\x00\\u200b\\u202e\\ufeff\\u00a0é🙂"
    )


def test_what_is_trained_stands_in_brackets() -> None:
    conversation = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]}
    [example] = next(iter(RENDERER.render([conversation])))  # type: ignore[list-item, misc]
    assert plain(RENDERER, example) == "<|im_start|>user↵\nHi.<|im_end|>↵\n<|im_start|>assistant↵\n⟦Hello!<|im_end|>⟧"
    half = Example(example.tokens, (example.weights / 2).astype(np.float32))
    assert plain(RENDERER, half).endswith("⟦0.5× Hello!<|im_end|>⟧")


def test_images_are_named() -> None:
    tokens = np.array([4, IMAGE_TOKEN, IMAGE_TOKEN, 5], np.int32)
    example = Example(tokens, np.array([0, 0, 0, 1], np.float32), (Image(1, 2, b"", "png"),))
    found = list(pieces(RENDERER, example))
    assert found[1] == Piece("[image, 2 tokens]", 0.0)
    assert [piece.weight for piece in found] == [0, 0, 1]


def test_lengths_in_words() -> None:
    examples = [Example(np.zeros(size, np.int32), np.zeros(size, np.float32)) for size in range(1, 101)]
    assert lengths(examples) == "51 (50 %), 91 (90 %), 100 (99 %), at most 100"
