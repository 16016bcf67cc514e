"""The training client of the embedded engine."""

import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tinker import types

from tinkertools import custom_loss
from tinkertools.custom_loss import CustomLoss
from tinkertools.errors import EngineError
from tinkertools.local import responses
from tinkertools.local.failures import BadRequest, Closed, as_sdk
from tinkertools.local.model import BaseModel
from tinkertools.local.sampling import SamplingClient
from tinkertools.local.store import SAMPLER, STATE, Notes, RunInfo, Store, expiry
from tinkertools.local.trainer import Config, Trainer
from tinkertools.local.twins import Ready, submits
from tinkertools.local.worker import LocalFuture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Metadata = dict[str, str] | None
T = TypeVar("T")


class TrainingClient(Ready):
    """As `tinker.TrainingClient`: trains one adapter.

    Methods that return futures return at once; what they ask for is done in the order of the calls.
    """

    def __init__(self, base: BaseModel, adapter: str, store: Store, info: RunInfo) -> None:
        self._base = base
        self._adapter = adapter
        self._store = store
        self._run = info
        self._trainer = Trainer(base, adapter)
        self.model_id = info.run_id
        release_with(self, base, adapter)

    def forward(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Config = None
    ) -> LocalFuture[types.ForwardBackwardOutput]:
        """The loss over `data` and the `logprobs` of every target token, without a gradient."""
        _check_data(data)
        return self._submit(lambda: self._trainer.forward(data, loss_fn, loss_fn_config))

    def forward_backward(
        self, data: Sequence[types.Datum], loss_fn: str, loss_fn_config: Config = None
    ) -> LocalFuture[types.ForwardBackwardOutput]:
        """Add the gradient of the summed loss over `data` to what `optim_step` will use, or, where it fails, nothing.

        The output holds for each datum its `logprobs`, one a target token; 0.0 where the weight or the advantage is 0,
        for which nothing is computed. `metrics` hold `loss:sum`.
        """
        _check_data(data)
        return self._submit(lambda: self._trainer.forward_backward(data, loss_fn, loss_fn_config))

    def forward_backward_custom(
        self, data: Sequence[types.Datum], loss_fn: CustomLoss, *, loss_type_input: str | None = None
    ) -> LocalFuture[types.ForwardBackwardOutput]:
        """As `forward_backward`, with a loss in Python: from `data` and the logprobs of each to the loss and metrics.

        `loss_fn` runs on the engine's thread; it must not wait for the engine. What it raises is raised by the result.
        """
        try:
            custom_loss.check(data, loss_fn)
        except EngineError as error:
            raise as_sdk(error) from None
        if loss_type_input not in (None, "logprobs"):
            raise BadRequest(f"loss_type_input is {loss_type_input!r}; only 'logprobs' is supported")
        return self._submit(lambda: self._trainer.forward_backward_custom(data, loss_fn))

    def optim_step(
        self, optim_params: types.AdamParams | None = None, *, adam_params: types.AdamParams | None = None
    ) -> LocalFuture[types.OptimStepResponse]:
        """One step of Adam with decoupled weight decay over the accumulated gradient, which is then cleared.

        A learning rate of 0 is allowed. `metrics` hold `grad_norm`, before it is clipped.
        """
        if optim_params is not None and adam_params is not None:
            raise BadRequest("Specify optim_params or legacy adam_params, not both")
        adam = optim_params if optim_params is not None else adam_params
        if not isinstance(adam, types.AdamParams):
            raise TypeError(f"optim_step takes AdamParams, not {type(adam).__name__}: only Adam is in this engine")
        return self._submit(lambda: self._trainer.optim_step(adam))

    def save_state(
        self, name: str, ttl_seconds: int | None = None, overwrite: bool = False, user_metadata: Metadata = None
    ) -> LocalFuture[types.SaveWeightsResponse]:
        """Save adapter and optimizer, from which training can go on."""
        return self._submit(
            lambda: types.SaveWeightsResponse(path=self._save(STATE, name, ttl_seconds, overwrite, user_metadata))
        )

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, user_metadata: Metadata = None
    ) -> LocalFuture[types.SaveWeightsForSamplerResponse]:
        """Save the adapter in PEFT's layout, to sample from. It replaces one of that name."""
        return self._submit(
            lambda: types.SaveWeightsForSamplerResponse(
                path=self._save(SAMPLER, name, ttl_seconds, True, user_metadata)
            )
        )

    def load_state(self, path: str, weights_access_token: str | None = None) -> LocalFuture[types.LoadWeightsResponse]:
        """Load the adapter of a saved state; the optimizer starts afresh, and accumulated gradients are dropped."""
        return self._submit(lambda: self._load(path, with_optimizer=False))

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> LocalFuture[types.LoadWeightsResponse]:
        """Load the adapter and the optimizer of a saved state; accumulated gradients are dropped."""
        return self._submit(lambda: self._load(path, with_optimizer=True))

    def create_sampling_client(
        self, model_path: str, retry_config: Any = None, record_stability_info: bool = False
    ) -> SamplingClient:
        """Sample from weights saved with `save_weights_for_sampler`."""
        return self._saved(model_path, record_stability_info).result()

    async def create_sampling_client_async(
        self, model_path: str, retry_config: Any = None, record_stability_info: bool = False
    ) -> SamplingClient:
        """As `create_sampling_client`, without blocking the event loop."""
        return await self._saved(model_path, record_stability_info).result_async()

    def save_weights_and_get_sampling_client(
        self,
        name: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
        kind: str = "snapshot",
    ) -> SamplingClient:
        """Sample from the adapter as it is after what was asked for before. The name is ignored, as in the SDK.

        Nothing is written; the copy is freed with the sampling client.
        """
        return self._snapshot(name, record_stability_info, kind).result()

    async def save_weights_and_get_sampling_client_async(
        self,
        name: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
        kind: str = "snapshot",
    ) -> SamplingClient:
        """As `save_weights_and_get_sampling_client`, without blocking the event loop."""
        return await self._snapshot(name, record_stability_info, kind).result_async()

    def save_weights_and_get_sampling_client_submit(self, retry_config: Any = None) -> LocalFuture[SamplingClient]:
        """As `save_weights_and_get_sampling_client`, as a future; in the SDK up to 0.34."""
        return self._snapshot(None, False, "snapshot")

    def get_info(self) -> types.GetInfoResponse:
        """Which model is trained."""
        name = self._run.base_model
        data = types.ModelData(arch=self._base.config.model_type, model_name=name, tokenizer_id=self._base.name)
        return types.GetInfoResponse(
            model_data=data, model_id=self.model_id, is_lora=True, lora_rank=self._run.lora_rank, model_name=name
        )

    def get_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base model's tokenizer."""
        return self._base.tokenizer

    forward_async = submits(forward)
    forward_backward_async = submits(forward_backward)
    forward_backward_custom_async = submits(forward_backward_custom)
    optim_step_async = submits(optim_step)
    save_state_async = submits(save_state)
    save_weights_for_sampler_async = submits(save_weights_for_sampler)
    load_state_async = submits(load_state)
    load_state_with_optimizer_async = submits(load_state_with_optimizer)
    get_info_async = submits(get_info)

    def _submit(self, run: Callable[[], T]) -> LocalFuture[T]:
        return self._base.worker.submit(run)

    def _saved(self, path: str, record_stability_info: bool) -> LocalFuture[SamplingClient]:
        refuse_stability(record_stability_info)
        return self._submit(lambda: self._sampler(self._base.load_adapter(self._store.resolve(path))))

    def _snapshot(self, name: str | None, record_stability_info: bool, kind: str) -> LocalFuture[SamplingClient]:
        if name is not None:
            warnings.warn(
                "the name is ignored: use save_weights_for_sampler(name) and create_sampling_client(path) to keep "
                "the weights",
                DeprecationWarning,
                stacklevel=3,
            )
        refuse_stability(record_stability_info)
        if kind != "snapshot":
            raise BadRequest(f"sampling clients of kind {kind!r} are not in the embedded engine", hint="use 'snapshot'")
        return self._submit(lambda: self._sampler(self._base.copy_adapter(self._adapter)))

    def take_state(self, directory: Path) -> LocalFuture[None]:
        """Load a state's adapter and optimizer, whatever base model of these layers it was trained on."""
        return self._submit(lambda: self._trainer.load(directory, with_optimizer=True, any_base=True))

    # What follows runs on the worker's thread.

    def _sampler(self, adapter: str) -> SamplingClient:
        client = SamplingClient(self._base, adapter)
        release_with(client, self._base, adapter)
        return client

    def _save(self, kind: str, name: str, ttl_seconds: int | None, overwrite: bool, metadata: Metadata) -> str:
        path = f"tinker://{self.model_id}/{kind}/{name}"
        notes = Notes(expires_at=expiry(ttl_seconds), user_metadata=metadata)
        with self._store.new_checkpoint(path, notes, overwrite=overwrite) as directory:
            self._trainer.write(directory, with_optimizer=kind == STATE)
        return path

    def _load(self, path: str, *, with_optimizer: bool) -> types.LoadWeightsResponse:
        self._trainer.load(self._store.resolve(path), with_optimizer=with_optimizer)
        return responses.made(types.LoadWeightsResponse, {"path": path, "model_id": self.model_id})


def release_with(client: object, base: BaseModel, adapter: str) -> None:
    """Free an adapter once its client is gone and what it asked for is done."""
    weakref.finalize(client, _release, base, adapter).atexit = False


def _release(base: BaseModel, adapter: str) -> None:
    with suppress(Closed):
        base.worker.submit(lambda: base.remove_adapter(adapter))


def refuse_stability(record_stability_info: bool) -> None:
    """Refuse an option of the SDK's that the embedded engine does not have."""
    if record_stability_info:
        raise BadRequest("record_stability_info is not in the embedded engine")


def _check_data(data: Sequence[types.Datum]) -> None:
    # At once, as the SDK does; all else is checked when it is computed.
    if not data:
        raise BadRequest("No data provided: the list of datums is empty")
