"""Examples become `tinker.types.Datum`: cut to length, counted, shifted once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinkertools.chat.examples import IMAGE_TOKEN, Example, Image, Tokens
from tinkertools.chat.rendering import RenderedData
from tinkertools.config import Overlength
from tinkertools.errors import DataError

if TYPE_CHECKING:
    from tinker import types


@dataclass(frozen=True)
class Fitted:
    """Examples that fit the model, and what was done to make them fit.

    `cut` examples lost `cut_tokens` tokens at their end; `dropped` were too long; `unfinished` would have kept no whole
    trained turn; `untrained` conversations have nothing to train.
    """

    examples: list[Example]
    cut: int = 0
    cut_tokens: int = 0
    dropped: int = 0
    unfinished: int = 0
    untrained: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(example.tokens) for example in self.examples)

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all examples."""
        return sum(example.trained_tokens for example in self.examples)


def fit(
    data: RenderedData, conversations: int, max_length: int | None, overlength: Overlength, stop_tokens: Sequence[int]
) -> Fitted:  # fmt: skip
    """Make every example at most `max_length` tokens long; leave out those without a trained token.

    Args:
        data: the examples of `conversations` conversations.
        conversations: how many there were.
        max_length: the most tokens, or None for no limit.
        overlength: what becomes of longer examples.
        stop_tokens: those that end a turn.

    Raises:
        DataError: an example is too long and `overlength` is `error`; or no trained token is left at all.
    """
    kept: list[Example] = []
    cut = cut_tokens = dropped = unfinished = 0
    untrained = conversations - len(np.unique(data.origins))
    for origin, example in zip(data.origins.tolist(), data.examples, strict=True):
        fitted = example
        if max_length is not None and len(example.tokens) > max_length:
            if overlength == "error":
                raise DataError(
                    f"conversation {origin + 1} has {len(example.tokens):,} tokens, more than the limit of "
                    f"{max_length:,}",
                    hint="--overlength drop leaves such conversations out, --overlength truncate cuts them",
                )
            if overlength == "drop":
                dropped += 1
                continue
            fitted = truncate(example, max_length, stop_tokens)
            if not fitted.trained_tokens:
                unfinished += 1
                continue
            cut += 1
            cut_tokens += len(example.tokens) - len(fitted.tokens)
        elif not fitted.trained_tokens:
            untrained += 1
            continue
        kept.append(fitted)
    if not kept:
        raise DataError(
            f"no trained token in the data: {dropped:,} examples are too long, {unfinished:,} have no whole turn that "
            f"fits, {untrained:,} conversations have nothing to train",
            hint="see what is trained (--dry-run), check the data with `tt prepare`, or raise --max-length",
        )
    return Fitted(kept, cut, cut_tokens, dropped, unfinished, untrained)


def truncate(example: Example, max_length: int, stop_tokens: Sequence[int]) -> Example:
    """The whole trained turns that fit in the first `max_length` tokens; no tokens at all where none does.

    A turn whose end is cut off would teach the model to speak without an end, and what follows the last whole turn
    teaches nothing.
    """
    front = example.head(max_length)
    ends = np.flatnonzero(np.isin(front.tokens, stop_tokens) & (front.weights != 0)) + 1
    borders = [end for _, end in example.runs if end <= max_length]
    return example.head(max([*ends.tolist(), *borders], default=0))


def to_datums(examples: Sequence[Example]) -> list["types.Datum"]:
    """One batch, with weights divided by its trained tokens.

    The service sums −logprob · weight over all tokens, so this makes the loss the mean per trained token however the
    batch is cut into requests.
    """
    total = sum(float(example.weights[1:].sum()) for example in examples)
    return [to_datum(example, total) for example in examples]


def to_datum(example: Example, total: float = 1.0) -> "types.Datum":
    """Inputs are tokens[:-1], targets tokens[1:], weights[1:] divided by `total`."""
    import torch
    from tinker import types

    return types.Datum(
        model_input=to_model_input(example.tokens[:-1], example.images),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_torch(
                # As the cookbook does it, a place of an image has target 0; its weight is 0 as well.
                torch.from_numpy(np.maximum(example.tokens[1:], 0).astype(np.int64))
            ),
            "weights": types.TensorData.from_torch(torch.from_numpy(example.weights[1:] / np.float32(total))),
        },
    )


def to_model_input(tokens: Tokens, images: Sequence[Image] = ()) -> "types.ModelInput":
    """Tokens, and images in their places, as the service takes them."""
    from tinker import types

    if not images:
        return types.ModelInput.from_ints(tokens.tolist())
    chunks: list[types.ModelInputChunk] = []
    position = 0
    for image in images:
        if image.start > position:
            chunks.append(types.EncodedTextChunk(tokens=tokens[position : image.start].tolist()))
        chunks.append(
            types.ImageChunk(
                data=image.data,
                format="png" if image.format == "png" else "jpeg",
                expected_tokens=image.length,
            )
        )
        position = image.start + image.length
    rest = tokens[position:]
    assert IMAGE_TOKEN not in rest
    if len(rest):
        chunks.append(types.EncodedTextChunk(tokens=rest.tolist()))
    return types.ModelInput(chunks=chunks)
