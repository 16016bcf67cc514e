"""A loss in Python over the logprobs of target tokens, and the cross-entropy that has the same gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinkertools.errors import EngineError

# From the datums and the logprobs of each, a float32 tensor (T,), to the loss and what else is worth knowing.
CustomLoss = Callable[[list[Any], list[Any]], tuple[Any, dict[str, float]]]


@dataclass(frozen=True)
class Linear:
    """A custom loss at these logprobs.

    Attributes:
        value: the loss.
        metrics: what it told besides.
        weights: for each datum, a float32 tensor (T,): with them, cross-entropy has the gradient of the loss.
    """

    value: float
    metrics: dict[str, float]
    weights: list[Any]


def linear(data: Sequence[Any], logprobs: Sequence[Any], loss_fn: CustomLoss) -> Linear:
    """Compute a custom loss and its gradient with respect to the logprobs.

    The gradient of Σ -log p · weight is that of the loss where each weight is minus its derivative by that log p.

    Args:
        data: what the loss is handed first.
        logprobs: of every target token of each datum, a float32 tensor (T,).
        loss_fn: the loss.

    Raises:
        EngineError: what it returns is no loss of these logprobs; the message says why.
        Exception: what it raises.
    """
    import torch

    leaves = [values.detach().clone().requires_grad_() for values in logprobs]
    with torch.enable_grad():
        made = loss_fn(list(data), leaves)
        if not isinstance(made, tuple) or len(made) != 2:
            raise EngineError(f"the custom loss must return the loss and a dict of metrics, not a {_kind(made)}")
        value, metrics = made
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            raise EngineError("the custom loss must be a tensor of one number that is computed from the logprobs")
        value.backward()
    return Linear(float(value.detach()), metrics, [-_gradient(i, leaf) for i, leaf in enumerate(leaves)])


def metrics_of(loss: Linear, surrogate: float) -> dict[str, float]:
    """The metrics of a pass with a custom loss.

    Args:
        loss: the loss.
        surrogate: the cross-entropy that stood for it.
    """
    return {**loss.metrics, "loss:sum": loss.value, "surrogate_loss:sum": surrogate}


def check(data: Sequence[Any], loss_fn: object) -> None:
    """What can be known before anything is computed.

    Raises:
        EngineError: there are no datums, or the loss is no function.
    """
    if not data:
        raise EngineError("No data provided: the list of datums is empty")
    if not callable(loss_fn):
        raise EngineError(f"the custom loss is a {_kind(loss_fn)}, but must be a function")


def _gradient(i: int, leaf: Any) -> Any:
    import torch

    if leaf.grad is None:
        raise EngineError(f"No gradient computed for logprob tensor: the custom loss does not use that of data[{i}]")
    if not torch.isfinite(leaf.grad).all():
        raise EngineError(f"data[{i}]: the custom loss has a gradient that is not finite")
    return leaf.grad


def _kind(thing: object) -> str:
    return type(thing).__name__
