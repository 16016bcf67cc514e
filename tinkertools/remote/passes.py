"""What passes carry: datums whose losses are sums on every server, and custom losses as datums."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinkertools import custom_loss
from tinkertools.custom_loss import CustomLoss, Linear
from tinkertools.errors import EngineError, TinkertoolsError
from tinkertools.loss_settings import LOSS_SETTINGS

CROSS_ENTROPY = "cross_entropy"
# Losses of actions: of the logprobs that they were taken with, and of their advantages.
_POLICY_LOSSES = ("importance_sampling", "ppo", "cispo")
# With it, `cispo` is -log p · advantage: the ratio, which is a constant to it, is 1 whatever the logprobs are.
_RATIO_OF_ONE = {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0}

Config = Mapping[str, float | str] | None
# Datums, their loss and its settings, as they are sent.
Sent = tuple[list[Any], str, Config]


def as_sums(data: Sequence[Any], loss_fn: str, config: Config) -> Sent:
    """A pass of a policy loss that is the sum over tokens on SkyRL, too, with the settings that are usual.

    SkyRL on JAX divides the loss of each datum by the sum of its weights, which are ones where it brings none: the
    tokens of its prompt would count for the length of an answer. These losses are linear in the scale of the
    advantages, so that weights that sum to 1 and advantages that are as much larger give the sum. Where thresholds are
    left out, it takes those of `ppo` for `cispo`, too. Other losses are left as they are.

    Raises:
        EngineError: a datum lacks what the loss is computed from, which SkyRL would take for zeros; or its weights are
            below zero.
    """
    if loss_fn not in _POLICY_LOSSES:
        return list(data), loss_fn, config
    defaults = {key: value for key, value in LOSS_SETTINGS[loss_fn].items() if value is not None}
    sums = [_policy_sum(f"data[{i}]", datum, loss_fn) for i, datum in enumerate(data)]
    return sums, loss_fn, {**defaults, **(config or {})} or None


def _policy_sum(what: str, datum: Any, loss_fn: str) -> Any:
    import torch

    given = datum.loss_fn_inputs
    length = len(_targets(what, datum))
    found = {}
    for name in ("logprobs", "advantages", "weights"):
        if name not in given and name != "weights":
            raise EngineError(f"{what} has no {name} among its loss_fn_inputs, which {loss_fn} is computed from")
        found[name] = given[name].to_torch().float() if name in given else torch.ones(length)
        if found[name].shape != (length,):
            raise EngineError(f"{what}: {length} target_tokens and {name} of shape {list(found[name].shape)}")
    if (found["weights"] < 0).any():
        raise EngineError(f"{what} has weights below 0", hint="give a sign to its advantages instead")
    total = float(found["weights"].double().sum())
    if total == 0:
        return datum
    return _datum(
        datum,
        logprobs=found["logprobs"],
        advantages=found["advantages"] * total,
        weights=found["weights"] / total,
    )


def plain(data: Sequence[Any]) -> list[Any]:
    """Datums of cross-entropy where every target counts, so that the logprob of each is told."""
    import torch

    return [_datum(datum, weights=torch.ones(len(_targets(f"data[{i}]", datum)))) for i, datum in enumerate(data)]


def logprobs_of(data: Sequence[Any], output: Any) -> list[Any]:
    """The logprobs of the targets of each datum, float32 (T,).

    Raises:
        EngineError: they are not as many as the targets.
    """
    lengths = [len(datum.loss_fn_inputs["target_tokens"].to_torch()) for datum in data]
    found = [record["logprobs"].to_torch().float() for record in output.loss_fn_outputs]
    if [values.shape for values in found] != [(length,) for length in lengths]:
        raise EngineError(
            f"logprobs of {lengths} targets were asked for, and {[list(values.shape) for values in found]} came back"
        )
    return found


def computed(data: Sequence[Any], logprobs: Sequence[Any], loss_fn: CustomLoss) -> Linear:
    """A custom loss and the weights that stand for it.

    Raises:
        EngineError: the function failed, or what it returned is no loss of the logprobs.
    """
    try:
        return custom_loss.linear(data, logprobs, loss_fn)
    except TinkertoolsError:
        raise
    except Exception as error:
        said = str(error).strip()
        raise EngineError(
            f"the custom loss failed at {_place(error, loss_fn)}: {type(error).__name__}{f': {said}' if said else ''}"
        ) from error


def weighted(data: Sequence[Any], logprobs: Sequence[Any], loss: Linear, *, means: bool) -> Sent:
    """The pass with the gradient of a custom loss: cross-entropy with its weights, which may be below zero.

    Args:
        data: the datums.
        logprobs: of the targets of each.
        loss: the loss.
        means: whether the server divides by the sum of weights, as SkyRL on JAX does. There, the weights go as
            advantages, with weights that sum to 1.
    """
    if not means:
        return [_datum(datum, weights=w) for datum, w in zip(data, loss.weights, strict=True)], CROSS_ENTROPY, None
    sent = [
        _datum(datum, logprobs=values, advantages=weights)
        for datum, values, weights in zip(data, logprobs, loss.weights, strict=True)
    ]
    return as_sums(sent, "cispo", _RATIO_OF_ONE)


def with_sum(output: Any) -> Any:
    """What a pass answered, with the sum of its loss among its metrics, which SkyRL leaves to who asks."""
    from tinker import types

    metrics, records = dict(output.metrics or {}), output.loss_fn_outputs
    if "loss:sum" in metrics or not all("elementwise_loss" in record for record in records):
        return output
    metrics["loss:sum"] = sum(float(record["elementwise_loss"].to_torch().double().sum()) for record in records)
    return types.ForwardBackwardOutput(
        loss_fn_output_type=output.loss_fn_output_type, loss_fn_outputs=records, metrics=metrics
    )


def as_one(forward: Any, loss: Linear) -> Callable[[Any], Any]:
    """What the two passes of a custom loss answer together, from what the second one answers."""

    def read(backward: Any) -> Any:
        from tinker import types

        logprobs = [record["logprobs"].to_torch().double() for record in backward.loss_fn_outputs]
        surrogate = -sum(float((values * w).sum()) for values, w in zip(logprobs, loss.weights, strict=True))
        own = custom_loss.metrics_of(loss, surrogate)
        return types.ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord",
            loss_fn_outputs=[{"logprobs": record["logprobs"]} for record in forward.loss_fn_outputs],
            metrics={**(backward.metrics or {}), **own},
        )

    return read


def _datum(datum: Any, **inputs: Any) -> Any:
    """A datum with its targets and these inputs alone; newer SDKs know where its tokens come from, too."""
    from tinker import types

    spans = {
        name: getattr(datum, name)
        for name in ("model_input_spans", "loss_fn_input_spans")
        if getattr(datum, name, None) is not None
    }
    tensors = {name: types.TensorData.from_torch(values) for name, values in inputs.items()}
    targets = datum.loss_fn_inputs["target_tokens"]
    return types.Datum(model_input=datum.model_input, loss_fn_inputs={"target_tokens": targets, **tensors}, **spans)


def _targets(what: str, datum: Any) -> Any:
    if "target_tokens" not in datum.loss_fn_inputs:
        raise EngineError(f"{what} has no target_tokens among its loss_fn_inputs")
    targets = datum.loss_fn_inputs["target_tokens"].to_torch()
    if targets.ndim != 1:
        raise EngineError(f"{what} has target_tokens of shape {list(targets.shape)}; only one a token is understood")
    return targets


def _place(error: Exception, loss_fn: CustomLoss) -> str:
    """Where a function failed: the last line of its own file on the way to the error, as FILE:LINE."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(loss_fn, "__code__", None), "co_filename", None)
    frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return f"{frame.filename}:{frame.lineno}"
