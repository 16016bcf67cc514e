"""Datums of the SDK made tensors, with everything checked before anything is computed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tinker import types

from tinkertools.local.compute import Item
from tinkertools.local.failures import BadRequest
from tinkertools.local.limits import tokens_of
from tinkertools.local.losses import Loss
from tinkertools.local.model import BaseModel

# Whole numbers are exact in float32 up to here.
_EXACT = 1 << 24


def checked(data: Sequence[types.Datum], loss: Loss, base: BaseModel) -> list[Item]:
    """The tensors of each datum for a loss on a model.

    Raises:
        BadRequest: there are none, or one that the model or the loss cannot take; the message says which and why.
    """
    if not data:
        raise BadRequest("no data: the list of datums is empty")
    return [_checked(f"data[{i}]", datum, loss, base) for i, datum in enumerate(data)]


def _checked(what: str, datum: types.Datum, loss: Loss, base: BaseModel) -> Item:
    if not isinstance(datum, types.Datum):
        raise BadRequest(f"{what} is a {type(datum).__name__}, but must be a tinker.types.Datum")
    tokens = torch.tensor(tokens_of(datum.model_input, what), dtype=torch.long)
    given: Mapping[str, Any] = datum.loss_fn_inputs
    if unknown := sorted(given.keys() - {"target_tokens", *loss.inputs}):
        raise BadRequest(
            f"{what}: the loss does not take {', '.join(unknown)} among its loss_fn_inputs",
            hint=f"it takes {', '.join(('target_tokens', *loss.inputs))}",
        )
    targets = _tensor(what, "target_tokens", given)
    if targets.is_floating_point():
        if not (targets == targets.long()).all() or targets.abs().max() > _EXACT:
            raise BadRequest(f"{what}: target_tokens must be whole numbers")
        targets = targets.long()
    inputs = {
        name: torch.full((len(tokens),), loss.optional[name])
        if name in loss.optional and name not in given
        else _tensor(what, name, given).float()
        for name in loss.inputs
    }
    if not len(tokens):
        raise BadRequest(f"{what} has no tokens")
    for name, values in {"target_tokens": targets, **inputs}.items():
        if values.shape != tokens.shape:
            several = " (several targets a token are not in the embedded engine)" if values.ndim == 2 else ""
            raise BadRequest(
                f"{what}: {len(tokens)} tokens and {name} of shape {list(values.shape)} must have one length{several}"
            )
    if len(tokens) > base.max_length:
        raise BadRequest(f"{what} has {len(tokens)} tokens; the model takes {base.max_length}")
    for name, ids in (("model_input", tokens), ("target_tokens", targets)):
        if wrong := ids[(ids < 0) | (ids >= base.vocabulary)].tolist():
            raise BadRequest(
                f"{what}: {name} has ids outside the vocabulary of {base.vocabulary}, such as {wrong[0]}",
                hint="make the tokens with this model's own tokenizer",
            )
    for name, values in inputs.items():
        if wrong := (~torch.isfinite(values)).nonzero().flatten().tolist():
            raise BadRequest(f"{what}: {name} must be finite numbers, but is {float(values[wrong[0]])} at {wrong[0]}")
    return Item(tokens, targets, inputs)


def _tensor(what: str, name: str, given: Mapping[str, Any]) -> torch.Tensor:
    if name not in given:
        raise BadRequest(f"{what} has no {name} among its loss_fn_inputs")
    tensor: torch.Tensor = given[name].to_torch()
    return tensor
