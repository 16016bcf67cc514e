"""The SDK's response types, whose constructors differ between its versions."""

import importlib
import inspect
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from tinker import types

from tinkertools.local.scoring import NO_LOGPROB, Scores, Tops

T = TypeVar("T")


def forward_backward_output(logprobs: Sequence[torch.Tensor], metrics: dict[str, float]) -> types.ForwardBackwardOutput:
    """One record of `logprobs` a datum."""
    return types.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=[{"logprobs": types.TensorData.from_torch(values)} for values in logprobs],
        metrics=metrics,
    )


def sampled_sequence(
    tokens: list[int], logprobs: list[float], stop_reason: str, tops: Tops | None = None
) -> types.SampledSequence:
    """A sampled answer with the logprob of each of its tokens; `stop_reason` is "stop" or "length"."""
    values: dict[str, Any] = {
        "stop_reason": stop_reason,
        # To 0.24 or so a pydantic model of lists, later a dataclass of arrays with an id.
        "tokens": tokens,
        "logprobs": logprobs,
        "tokens_np": np.asarray(tokens, np.int32),
        "logprobs_np": np.asarray(logprobs, np.float32),
        "sequence_id": uuid.uuid4().hex,
    }
    if tops is not None:
        values["topk_logprobs_np"] = _top_logprobs(tops)
    return made(types.SampledSequence, values)


def sample_response(
    sequences: list[types.SampledSequence], scores: Scores, targets: types.TensorData | None
) -> types.SampleResponse:
    """The answers to one prompt, and of the prompt itself what was asked for, in the layout of `targets` for those."""
    values: dict[str, Any] = {"sequences": sequences}
    if scores.logprobs is not None:
        values["prompt_logprobs"] = scores.logprobs
        values["prompt_logprobs_np"] = np.asarray([np.nan if v is None else v for v in scores.logprobs], np.float32)
    if scores.tops is not None:
        ids, logprobs = scores.tops
        values["topk_prompt_logprobs_np"] = _top_logprobs(scores.tops)
        values["topk_prompt_logprobs"] = [
            None if row[0] == NO_LOGPROB else list(zip(names, row, strict=True))
            for names, row in zip(ids.tolist(), logprobs.tolist(), strict=True)
        ]
    if scores.targets is not None and targets is not None:
        values["target_prompt_logprobs"] = _like(targets, scores.targets)
    if scores.draws is not None:
        tokens, drawn = (types.TensorData.from_torch(x) for x in scores.draws)
        values["prompt_alt_tokens"] = types.PromptAltTokens(tokens=tokens, logprobs=drawn)
    return made(types.SampleResponse, values)


def _like(data: types.TensorData, values: torch.Tensor) -> types.TensorData:
    """The matrix `values` as a tensor of the same layout as `data`, dense or of the same cells."""
    if getattr(data, "sparse_crow_indices", None) is None:
        return types.TensorData.from_torch(values)
    rows = np.repeat(np.arange(len(values)), np.diff(np.asarray(data.sparse_crow_indices)))
    return types.TensorData(
        data=values.numpy()[rows, np.asarray(data.sparse_col_indices, np.int64)],
        dtype="float32",
        shape=data.shape,
        sparse_crow_indices=data.sparse_crow_indices,
        sparse_col_indices=data.sparse_col_indices,
    )


def _top_logprobs(tops: Tops) -> Any:
    # In the oldest SDKs there are lists alone, later this of the prompt alone.
    for home, name in (("topk_logprobs", "TopkLogprobs"), ("topk_prompt_logprobs", "TopkPromptLogprobs")):
        with suppress(ImportError):
            kind = getattr(importlib.import_module(f"tinker.types.{home}"), name)
            return kind(token_ids=tops[0], logprobs=tops[1])
    return None


def made(kind: type[T], values: dict[str, Any]) -> T:
    """A `kind` of those values that this version of the SDK knows."""
    parameters = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in values.items() if name in parameters})
