"""What the training client computes, on the worker's thread: gradients, steps, states."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tinker import types

from tinkertools import custom_loss
from tinkertools.adapters.peft_files import base_model_of
from tinkertools.custom_loss import CustomLoss
from tinkertools.local import checkpoints, compute, datums, losses, responses
from tinkertools.local.compute import Item
from tinkertools.local.failures import BadRequest
from tinkertools.local.losses import LOSSES
from tinkertools.local.model import BaseModel

Config = Mapping[str, float | str] | None

_ADAM = ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm")


class Trainer:
    """An adapter, its gradient and its optimizer. Only the worker's thread may use it."""

    def __init__(self, base: BaseModel, adapter: str) -> None:
        self.base = base
        self.adapter = adapter
        self.parameters = base.adapter_parameters(adapter)
        self._optimizer = self._fresh_optimizer()
        self._has_gradient = False

    def forward(self, data: Sequence[types.Datum], loss_fn: str, config: Config) -> types.ForwardBackwardOutput:
        """The loss, and the logprob of every target token."""
        loss, settings = losses.loss_named(loss_fn), losses.settings_of(loss_fn, config)
        items = datums.checked(data, loss, self.base)
        logprobs = self._forward(items)
        value = losses.total(loss, settings, logprobs, [item.inputs for item in items])
        return responses.forward_backward_output(logprobs, {"loss:sum": value})

    def forward_backward(
        self, data: Sequence[types.Datum], loss_fn: str, config: Config
    ) -> types.ForwardBackwardOutput:
        """The same, where it has a weight, and its gradient added to what there is."""
        loss, settings = losses.loss_named(loss_fn), losses.settings_of(loss_fn, config)
        items = datums.checked(data, loss, self.base)
        logprobs, value = self._backward(items, loss, settings)
        return responses.forward_backward_output(logprobs, {"loss:sum": value})

    def forward_backward_custom(self, data: Sequence[types.Datum], loss_fn: CustomLoss) -> types.ForwardBackwardOutput:
        """The loss that `loss_fn` makes of the logprobs, and its gradient added to what there is."""
        plain = LOSSES["cross_entropy"]
        bare = [_without_extras(datum) for datum in data]
        items = datums.checked(bare, plain, self.base)
        logprobs = self._forward(items)
        loss = custom_loss.linear(data, logprobs, loss_fn)
        weighted = [
            Item(item.tokens, item.targets, {"weights": weights})
            for item, weights in zip(items, loss.weights, strict=True)
        ]
        _, surrogate = self._backward(weighted, plain, {})
        return responses.forward_backward_output(logprobs, custom_loss.metrics_of(loss, surrogate))

    def optim_step(self, adam: types.AdamParams) -> types.OptimStepResponse:
        """One step of Adam with decoupled weight decay over the gradient, which is then cleared."""
        _check_adam(adam)
        if not self._has_gradient:
            raise BadRequest("optim_step without a gradient: call forward_backward first, and see that it succeeded")
        for parameter in self.parameters.values():
            if parameter.grad is None:
                # A layer that took no part in the loss still moves with Adam's momentum.
                parameter.grad = torch.zeros_like(parameter)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), adam.grad_clip_norm or math.inf))
        if not math.isfinite(norm):
            self._clear_gradient()
            raise BadRequest(
                f"the norm of the gradient is {norm}; it is dropped, and the weights are as they were",
                hint="look for weights or advantages that are too large",
            )
        for group in self._optimizer.param_groups:
            group.update(
                lr=adam.learning_rate, betas=(adam.beta1, adam.beta2), eps=adam.eps, weight_decay=adam.weight_decay
            )
        self._optimizer.step()
        self._clear_gradient()
        return types.OptimStepResponse(metrics={"grad_norm": norm})

    def write(self, directory: Path, *, with_optimizer: bool) -> None:
        """Save the adapter in PEFT's layout, and beside it the optimizer."""
        config = self.base.adapter_config(self.adapter)
        checkpoints.write_adapter(directory, config, self.base.adapter_state(self.adapter))
        if with_optimizer:
            checkpoints.write_optimizer(directory, self.parameters, self._optimizer)

    def load(self, directory: Path, *, with_optimizer: bool, any_base: bool = False) -> None:
        """Go on from a saved adapter, and from its optimizer or a fresh one. The gradient is cleared.

        Nothing changes where it fails. With `any_base`, it may be of another base model with the same layers.
        """
        trained_on = base_model_of(directory)
        if not any_base and trained_on is not None and Path(trained_on).name != Path(self.base.name).name:
            raise BadRequest(
                f"{directory} was trained on {trained_on}, and this client trains {self.base.name}",
                hint="create_training_client_from_state(path, base_model=…) takes it all the same",
            )
        tensors = checkpoints.read_adapter(directory)
        optimizer = self._fresh_optimizer()
        if with_optimizer:
            checkpoints.read_optimizer(directory, self.parameters, optimizer)
        self.base.set_adapter_state(self.adapter, tensors)
        self._optimizer = optimizer
        self._clear_gradient()

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        # The learning rate here is that of no step: each optim_step brings its own.
        return torch.optim.AdamW(self.parameters.values(), lr=0.0)

    def _clear_gradient(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for parameter in self.parameters.values():
            parameter.grad = None
        self._has_gradient = False

    def _forward(self, items: list[Item]) -> list[torch.Tensor]:
        return self.base.budget.within(lambda: compute.forward(self.base, self.adapter, items))

    def _backward(
        self, items: list[Item], loss: losses.Loss, settings: Mapping[str, float]
    ) -> tuple[list[torch.Tensor], float]:
        """The logprobs and the summed loss; its gradient is added to what there is."""

        def run() -> tuple[list[torch.Tensor], float]:
            with self._whole_gradient():
                logprobs = compute.backward(self.base, self.adapter, items, loss, settings)
                return logprobs, losses.total(loss, settings, logprobs, [item.inputs for item in items])

        return self.base.budget.within(run)

    @contextmanager
    def _whole_gradient(self) -> Iterator[None]:
        """The gradient of all that the block computes is added, or, where it fails, none of it."""
        before = (
            {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}
            if self._has_gradient
            else {}
        )
        try:
            yield
        except BaseException:
            for name, parameter in self.parameters.items():
                parameter.grad = before.get(name)
            raise
        self._has_gradient = True


def _without_extras(datum: types.Datum) -> types.Datum:
    """What the model needs of a datum; the rest is for the custom loss alone."""
    kept = {name: value for name, value in datum.loss_fn_inputs.items() if name == "target_tokens"}
    return types.Datum(model_input=datum.model_input, loss_fn_inputs=kept)


def _check_adam(adam: types.AdamParams) -> None:
    """A learning rate of 0 is allowed, as in torch.optim.AdamW: it moves the moments and not the weights."""
    given = adam.model_dump()
    if unknown := sorted(given.keys() - set(_ADAM)):
        raise BadRequest(f"optim_step: the embedded engine does not know {', '.join(unknown)}")
    for name in _ADAM:
        value = given[name]
        below = 1.0 if name in ("beta1", "beta2") else math.inf
        if not 0 <= value < below:
            what = "learning rate" if name == "learning_rate" else name
            raise BadRequest(
                f"optim_step: the {what} is {value}, but must be a finite number of 0 or more"
                + (" and less than 1" if below == 1.0 else "")
            )
