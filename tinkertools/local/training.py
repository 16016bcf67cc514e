"""The training client of the embedded engine."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tinker import types

from tinkertools.errors import EngineError
from tinkertools.local import checkpoints, compute, responses
from tinkertools.local.compute import Item
from tinkertools.local.limits import tokens_of
from tinkertools.local.losses import LOSSES, Loss
from tinkertools.local.model import BaseModel
from tinkertools.local.sampling import SamplingClient
from tinkertools.local.worker import LocalFuture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TrainingClient:
    """Trains one adapter. Methods return at once; what they ask for is done in the order of the calls."""

    def __init__(self, base: BaseModel, adapter: str, store: checkpoints.Store) -> None:
        self._base = base
        self._adapter = adapter
        self._store = store
        self._parameters = base.adapter_parameters(adapter)
        # The values here are those of no step: each optim_step brings its own.
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=0.0)
        self._has_gradient = False
        self.model_id = store.run_id

    def forward_backward(
        self,
        data: Sequence[types.Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> LocalFuture[types.ForwardBackwardOutput]:
        """Add the gradient of the summed loss over `data` to what `optim_step` will use.

        The output holds for each datum its `logprobs`, one a target token; 0.0 where the weight is 0, for which nothing
        is computed.
        """
        return self._base.worker.submit(lambda: self._forward_backward(data, loss_fn, loss_fn_config))

    def forward(
        self,
        data: Sequence[types.Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> LocalFuture[types.ForwardBackwardOutput]:
        """The loss over `data` and the `logprobs` of every target token, without a gradient."""
        return self._base.worker.submit(lambda: self._forward(data, loss_fn, loss_fn_config))

    def optim_step(self, adam_params: types.AdamParams) -> LocalFuture[types.OptimStepResponse]:
        """One step of Adam with decoupled weight decay over the accumulated gradient, which is then cleared."""
        return self._base.worker.submit(lambda: self._optim_step(adam_params))

    def save_state(self, name: str, ttl_seconds: int | None = None) -> LocalFuture[types.SaveWeightsResponse]:
        """Save adapter and optimizer, from which training can go on. Files here do not expire."""
        return self._base.worker.submit(lambda: types.SaveWeightsResponse(path=self._save("weights", name)))

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> LocalFuture[types.SaveWeightsForSamplerResponse]:
        """Save the adapter in PEFT's layout, to sample from. Files here do not expire."""
        return self._base.worker.submit(
            lambda: types.SaveWeightsForSamplerResponse(path=self._save("sampler_weights", name))
        )

    def load_state(self, path: str) -> LocalFuture[types.LoadWeightsResponse]:
        """Load the adapter of a saved state; the optimizer starts afresh."""
        return self._base.worker.submit(lambda: self._load(path, with_optimizer=False))

    def load_state_with_optimizer(self, path: str) -> LocalFuture[types.LoadWeightsResponse]:
        """Load the adapter and the optimizer of a saved state."""
        return self._base.worker.submit(lambda: self._load(path, with_optimizer=True))

    def create_sampling_client(self, model_path: str) -> SamplingClient:
        """Sample from weights saved with `save_weights_for_sampler`."""
        directory = self._store.resolve(model_path)
        adapter = self._base.worker.submit(lambda: self._base.load_adapter(directory)).result()
        return SamplingClient(self._base, adapter)

    def save_weights_and_get_sampling_client(self, name: str | None = None) -> SamplingClient:
        """Sample from the adapter as it is now. The name is ignored, as in the SDK since 0.20."""
        return self.create_sampling_client(
            self.save_weights_for_sampler(f"sampler_{self._store.next_number()}").result().path
        )

    def get_info(self) -> types.GetInfoResponse:
        """Which model is trained."""
        data = types.ModelData(arch=None, model_name=self._base.name, tokenizer_id=self._base.name)
        rank = int(self._base.adapter_config(self._adapter).r)
        return types.GetInfoResponse(
            model_data=data, model_id=self.model_id, is_lora=True, lora_rank=rank, model_name=self._base.name
        )

    def get_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base model's tokenizer."""
        return self._base.tokenizer

    # What follows runs on the worker's thread.

    def _forward_backward(
        self, data: Sequence[types.Datum], loss_fn: str, config: Mapping[str, float | str] | None
    ) -> types.ForwardBackwardOutput:
        loss, settings, items = self._checked(data, loss_fn, config)
        logprobs = compute.backward(self._base, self._adapter, items, loss, settings)
        self._has_gradient = True
        return _output(items, logprobs, loss, settings)

    def _forward(
        self, data: Sequence[types.Datum], loss_fn: str, config: Mapping[str, float | str] | None
    ) -> types.ForwardBackwardOutput:
        loss, settings, items = self._checked(data, loss_fn, config)
        return _output(items, compute.forward(self._base, self._adapter, items), loss, settings)

    def _checked(
        self, data: Sequence[types.Datum], loss_fn: str, config: Mapping[str, float | str] | None
    ) -> tuple[Loss, dict[str, float], list[Item]]:
        """The loss, its settings and the data as tensors, all of it checked before anything is computed."""
        if loss_fn not in LOSSES:
            raise EngineError(f"the loss '{loss_fn}' is not in the embedded engine", hint=f"use {', '.join(LOSSES)}")
        if config:
            raise EngineError(f"{loss_fn} takes no loss_fn_config, but got {', '.join(config)}")
        if not data:
            raise EngineError("no data: the list of datums is empty")
        loss = LOSSES[loss_fn]
        return loss, {}, [self._checked_datum(i, datum, loss) for i, datum in enumerate(data)]

    def _checked_datum(self, i: int, datum: types.Datum, loss: Loss) -> Item:
        tokens = torch.tensor(tokens_of(datum.model_input, f"data[{i}]"), dtype=torch.long)
        given: Mapping[str, Any] = datum.loss_fn_inputs
        if "target_tokens" not in given:
            raise EngineError(f"data[{i}] has no target_tokens among its loss_fn_inputs")
        targets = given["target_tokens"].to_torch().long()
        inputs: dict[str, torch.Tensor] = {}
        for name in loss.inputs:
            if name in given:
                inputs[name] = given[name].to_torch().float()
            elif name in loss.optional:
                inputs[name] = torch.full((len(tokens),), loss.optional[name])
            else:
                raise EngineError(f"data[{i}] has no {name} among its loss_fn_inputs")
        for name, values in {"target_tokens": targets, **inputs}.items():
            if values.shape != tokens.shape:
                raise EngineError(
                    f"data[{i}]: {len(tokens)} tokens and {name} of shape {list(values.shape)} must have one length"
                )
        if not len(tokens):
            raise EngineError(f"data[{i}] has no tokens")
        if len(tokens) > self._base.max_length:
            raise EngineError(f"data[{i}] has {len(tokens)} tokens; the model takes {self._base.max_length}")
        for name, ids in (("model_input", tokens), ("target_tokens", targets)):
            if int(ids.min()) < 0 or int(ids.max()) >= self._base.vocabulary:
                raise EngineError(f"data[{i}]: {name} has ids outside the vocabulary of {self._base.vocabulary}")
        for name, values in inputs.items():
            if not torch.isfinite(values).all():
                raise EngineError(f"data[{i}]: {name} must be finite numbers")
        return Item(tokens, targets, inputs)

    def _optim_step(self, adam: types.AdamParams) -> types.OptimStepResponse:
        if not math.isfinite(adam.learning_rate):
            raise EngineError(f"the learning rate is {adam.learning_rate}, but must be a finite number")
        if not self._has_gradient:
            raise EngineError("optim_step without a gradient: call forward_backward first, and see that it succeeded")
        for parameter in self._parameters.values():
            if parameter.grad is None:
                # A layer that took no part in the loss still moves with Adam's momentum.
                parameter.grad = torch.zeros_like(parameter)
        limit = adam.grad_clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit)
        for group in self._optimizer.param_groups:
            group.update(
                lr=adam.learning_rate, betas=(adam.beta1, adam.beta2), eps=adam.eps, weight_decay=adam.weight_decay
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._has_gradient = False
        return types.OptimStepResponse(metrics={"grad_norm": float(norm)})

    def _save(self, kind: str, name: str) -> str:
        with self._store.new_checkpoint(kind, name) as directory:
            config = self._base.adapter_config(self._adapter)
            checkpoints.write_adapter(directory, config, self._base.adapter_state(self._adapter))
            if kind == "weights":
                checkpoints.write_optimizer(directory, self._parameters, self._optimizer)
        return self._store.path_of(kind, name)

    def _load(self, path: str, *, with_optimizer: bool) -> types.LoadWeightsResponse:
        directory: Path = self._store.resolve(path)
        tensors = checkpoints.read_adapter(directory)
        self._base.set_adapter_state(self._adapter, tensors)
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=0.0)
        self._optimizer.zero_grad(set_to_none=True)
        self._has_gradient = False
        if with_optimizer:
            checkpoints.read_optimizer(directory, self._parameters, self._optimizer)
        return types.LoadWeightsResponse(path=path)


def _output(
    items: Sequence[Item], logprobs: Sequence[torch.Tensor], loss: Loss, settings: Mapping[str, float]
) -> types.ForwardBackwardOutput:
    total = sum(
        float(loss.token_losses(values, item.inputs, settings).sum())
        for values, item in zip(logprobs, items, strict=True)
    )
    return responses.forward_backward_output(logprobs, {"loss:sum": total})
