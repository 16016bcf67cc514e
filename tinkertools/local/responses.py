"""The SDK's response types, whose constructors differ between its versions."""

import inspect
import uuid
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from tinker import types

T = TypeVar("T")


def forward_backward_output(logprobs: Sequence[torch.Tensor], metrics: dict[str, float]) -> types.ForwardBackwardOutput:
    """One record of `logprobs` a datum."""
    return types.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=[{"logprobs": types.TensorData.from_torch(values)} for values in logprobs],
        metrics=metrics,
    )


def sampled_sequence(tokens: list[int], logprobs: list[float], stop_reason: str) -> types.SampledSequence:
    """A sampled answer with the logprob of each of its tokens; `stop_reason` is "stop" or "length"."""
    values: dict[str, Any] = {
        "stop_reason": stop_reason,
        # To 0.28 or so a pydantic model of lists, later a dataclass of arrays with an id.
        "tokens": tokens,
        "logprobs": logprobs,
        "tokens_np": np.asarray(tokens, np.int32),
        "logprobs_np": np.asarray(logprobs, np.float32),
        "sequence_id": uuid.uuid4().hex,
    }
    return made(types.SampledSequence, values)


def sample_response(
    sequences: list[types.SampledSequence], prompt_logprobs: list[float | None] | None
) -> types.SampleResponse:
    """The answers to one prompt, and the prompt's own logprobs (None for its first token) where they were asked for."""
    values: dict[str, Any] = {"sequences": sequences}
    if prompt_logprobs is not None:
        values["prompt_logprobs"] = prompt_logprobs
        values["prompt_logprobs_np"] = np.asarray([np.nan if v is None else v for v in prompt_logprobs], np.float32)
    return made(types.SampleResponse, values)


def made(kind: type[T], values: dict[str, Any]) -> T:
    """A `kind` of those values that this version of the SDK knows."""
    parameters = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in values.items() if name in parameters})
