"""What the model says of preferences before its first step, which DPO holds the trained model against.

It is asked once, before the first step, and kept with the run: a run that goes on has other weights by then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tinkertools.chat.pairs import Pair
from tinkertools.errors import EngineError, RunError
from tinkertools.files import write_json
from tinkertools.kept import key_of
from tinkertools.methods.base import Bench
from tinkertools.methods.preferences import forward_sums, sides

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = 1
# Parts that are on their way at once.
_AT_ONCE = 4
_HINT = "put a copy of it back, or start a new run"


@dataclass(frozen=True)
class Reference:
    """Σ logprob of each answer of pairs under the model that training starts from, natural log; a number a pair."""

    chosen: list[float]
    rejected: list[float]

    def tensors(self) -> "tuple[Tensor, Tensor]":
        """Both as float64 (P,)."""
        import torch

        return torch.tensor(self.chosen, dtype=torch.float64), torch.tensor(self.rejected, dtype=torch.float64)


def references(bench: Bench, sets: Mapping[str, Sequence[Pair]]) -> dict[str, Reference]:
    """The reference of each set of pairs, by its name: the run's, or, before the first step, asked of the model.

    Raises:
        RunError: steps were taken, and what the run keeps is not there, not whole, or of other pairs.
        EngineError: the model gives an answer no likelihood at all.
    """
    path = bench.run.reference
    if bench.saved is not None:
        return _kept(path, sets)
    try:
        return _kept(path, sets)
    except RunError:
        found = {name: _asked(bench, name, pairs) for name, pairs in sets.items()}
    values: dict[str, Any] = {"version": _VERSION}
    for name, pairs in sets.items():
        values[name] = {
            "fingerprint": fingerprint_of(pairs), "chosen": found[name].chosen, "rejected": found[name].rejected,
        }  # fmt: skip
    write_json(path, values)
    return found


def _kept(path: Path, sets: Mapping[str, Sequence[Pair]]) -> dict[str, Reference]:
    """What the file of a run says.

    Raises:
        RunError: it is not there, not whole, or of other pairs.
    """
    lost = "what the model said of the preferences before its first step, which the model of now cannot say"
    try:
        values = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} is missing: {lost}", hint=_HINT) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not readable ({error}): {lost}", hint=_HINT) from error
    found = {}
    for name, pairs in sets.items():
        try:
            kept = values[name]
            reference = Reference(
                [float(value) for value in kept["chosen"]], [float(value) for value in kept["rejected"]]
            )
            of = kept["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged: {lost}", hint=_HINT) from error
        if of != fingerprint_of(pairs) or not len(reference.chosen) == len(reference.rejected) == len(pairs):
            raise RunError(f"{path} is of other pairs than the run's now: {lost}", hint=_HINT)
        found[name] = reference
    return found


def _asked(bench: Bench, name: str, pairs: Sequence[Pair]) -> Reference:
    """What the client's weights, which are those of the start, say of pairs."""
    sums: list[float] = []
    with bench.voice.progress(f"reference, {name}", len(pairs), "pairs") as report:
        for _, found in forward_sums(bench.client, pairs, _AT_ONCE):
            sums += found.tolist()
            report(len(sums) / 2)
    for i, value in enumerate(sums):
        if not -float("inf") < value < float("inf"):
            side = "rejected" if i % 2 else "chosen"
            raise EngineError(
                f"row {pairs[i // 2].origin + 1}, {side}: the logprobs of the answer add up to {value} under the "
                "starting model",
                hint="leave the row out",
            )
    return Reference(sums[0::2], sums[1::2])


def fingerprint_of(pairs: Sequence[Pair]) -> str:
    """A hash of all that the model sees of pairs, and of what counts of it."""
    return key_of(
        *(
            content
            for side in sides(pairs)
            for content in (side.tokens.tobytes(), side.weights.tobytes(), *(image.data for image in side.images))
        )
    )
