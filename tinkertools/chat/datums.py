"""Examples become `tinker.types.Datum`: cut to length, counted, shifted once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinkertools.chat.rendering import Example
from tinkertools.config import Overlength
from tinkertools.errors import DataError

if TYPE_CHECKING:
    from tinker import types


@dataclass(frozen=True)
class Fitted:
    """Examples that fit the model, and what was done to make them fit."""

    examples: list[Example]
    cut: int = 0
    dropped: int = 0
    untrained: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(example.tokens) for example in self.examples)

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all examples."""
        return sum(example.trained_tokens for example in self.examples)


def fit(examples: Sequence[Example], max_length: int, overlength: Overlength) -> Fitted:
    """Make every example at most `max_length` tokens long; leave out those without a trained token.

    `truncate` keeps the front. A turn that the cut would part from its end-of-turn token is no longer trained, or the
    model would learn to speak without an end.

    Raises:
        DataError: an example is too long and `overlength` is `error`; or no trained token is left at all.
    """
    kept: list[Example] = []
    cut = dropped = untrained = 0
    for number, example in enumerate(examples, 1):
        fitted = example
        if len(example.tokens) > max_length:
            if overlength == "error":
                raise DataError(
                    f"conversation {number} has {len(example.tokens):,} tokens, more than the limit of {max_length:,}",
                    hint="--overlength drop leaves such conversations out, --overlength truncate cuts them",
                )
            if overlength == "drop":
                dropped += 1
                continue
            fitted = truncate(example, max_length)
        if not fitted.trained_tokens:
            untrained += 1
            continue
        cut += fitted is not example
        kept.append(fitted)
    if not kept:
        raise DataError(
            "no trained token in the data: "
            f"{dropped:,} conversations are too long, {untrained:,} have no assistant turn (that fits)",
            hint="check the data with `tt prepare`, or raise --max-length",
        )
    return Fitted(kept, cut, dropped, untrained)


def truncate(example: Example, max_length: int) -> Example:
    """The first `max_length` tokens, trained only where a turn's end is among them."""
    weights = example.weights[:max_length].copy()
    if example.weights[max_length]:
        untouched = np.flatnonzero(weights == 0)
        weights[untouched[-1] + 1 if len(untouched) else 0 :] = 0
    return Example(example.tokens[:max_length], weights)


def to_datums(examples: Sequence[Example]) -> list["types.Datum"]:
    """One batch. Inputs are tokens[:-1], targets tokens[1:], weights[1:] divided by the batch's trained tokens.

    The service sums −logprob · weight over all tokens, so this makes the loss the mean per trained token however the
    batch is cut into requests.
    """
    import torch
    from tinker import types

    total = sum(float(example.weights[1:].sum()) for example in examples)
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(example.tokens[:-1].tolist()),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_torch(torch.from_numpy(example.tokens[1:].astype(np.int64))),
                "weights": types.TensorData.from_torch(torch.from_numpy(example.weights[1:] / np.float32(total))),
            },
        )
        for example in examples
    ]
