"""The embedded engine's entry: makes training and sampling clients on base models kept in memory once."""

import secrets
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tinker import types

from tinkertools.adapters.peft_files import base_model_of, is_adapter
from tinkertools.errors import EngineError, ModelError, RunError
from tinkertools.local.failures import BadRequest, Closed, as_sdk
from tinkertools.local.limits import limits_of
from tinkertools.local.model import BaseModel
from tinkertools.local.rest import RestClient
from tinkertools.local.sampling import SamplingClient
from tinkertools.local.store import RunInfo, Store, default_store, new_id, now
from tinkertools.local.training import Metadata, TrainingClient, refuse_stability, release_with
from tinkertools.local.twins import in_thread, submits
from tinkertools.local.worker import LocalFuture, finished
from tinkertools.reporting import Notify
from tinkertools.shipped import STARTER_MODEL


class ServiceClient:
    """As `tinker.ServiceClient`, computing in this process.

    Args:
        user_metadata: kept with the runs of this session.
        project_id: accepted and not used, as are the next four: there is no server.
        display_name: the same.
        base_url: the same.
        api_key: the same.
        default_headers_overrides: the same.
        store: the folder for checkpoints; by default one in the user's cache.
        device: `cpu`, `cuda` …; by default a GPU where there is one.
        models: names of base models and the folders that stand for them.
        notify: is told, in a line, where memory runs out and a step is repeated; by default a warning.
        kwargs: warned of and not used, as in the SDK.
    """

    def __init__(
        self,
        user_metadata: Metadata = None,
        project_id: str | None = None,
        *,
        display_name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        default_headers_overrides: Mapping[str, str] | None = None,
        store: Path | str | None = None,
        device: str | None = None,
        models: Mapping[str, Path | str] | None = None,
        notify: Notify = warnings.warn,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            warnings.warn(
                f"ServiceClient ignores unsupported arguments: {', '.join(sorted(kwargs))}", FutureWarning, stacklevel=2
            )
        self._store = Store(Path(store) if store else default_store())
        self._store.remove_expired()
        self._user_metadata = user_metadata
        self._session_id = new_id()
        self._samplers: list[str] = []
        self._device = device
        self._notify = notify
        self._aliases = {name: str(folder) for name, folder in (models or {}).items()}
        self._models: dict[str, BaseModel] = {}
        self._lock = threading.Lock()
        self._closed = False

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: Metadata = None,
        optimizer: Any = None,
    ) -> TrainingClient:
        """A fresh adapter on a base model. It returns when the model is loaded.

        Raises:
            BadModel: the base model cannot be used.
            BadRequest: there is nothing to train in it, the rank is not positive, or the optimizer is not Adam.
        """
        _check_optimizer(optimizer)
        if rank < 1:
            raise BadRequest(f"the rank is {rank}, but must be at least 1")
        if not (train_mlp or train_attn or train_unembed):
            raise BadRequest("At least one of train_mlp, train_attn, or train_unembed must be True")
        base = self._base(base_model)
        adapter = base.worker.submit(
            lambda: base.add_adapter(
                rank, secrets.randbits(31) if seed is None else seed,
                attn=train_attn, mlp=train_mlp, unembed=train_unembed,
            )
        ).result()  # fmt: skip
        return self._training_client(base, adapter, base_model, (train_attn, train_mlp, train_unembed), user_metadata)

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: Metadata = None,
        weights_access_token: str | None = None,
        optimizer: Any = None,
    ) -> TrainingClient:
        """Go on training from saved weights, with the same rank and layers and a fresh optimizer.

        Raises:
            NotFound: there are none.
            BadRequest: they do not fit the base model.
        """
        _check_optimizer(optimizer)
        return self._from_state(path, base_model, user_metadata, with_optimizer=False)

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: Metadata = None,
        weights_access_token: str | None = None,
    ) -> TrainingClient:
        """Go on training from a state that `save_state` saved, as if it had never stopped.

        Raises:
            NotFound: there is no such state.
            BadRequest: it does not fit its base model, or holds no optimizer.
        """
        return self._from_state(path, base_model, user_metadata, with_optimizer=True)

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
    ) -> SamplingClient:
        """Sample from saved weights (a `tinker://` path or an adapter's folder), or from a base model alone.

        Raises:
            NotFound: the weights are not there.
            BadRequest: neither is given, or the weights do not fit.
        """
        refuse_stability(record_stability_info)
        if model_path is None:
            if base_model is None:
                raise BadRequest("Either model_path or base_model must be provided")
            client = SamplingClient(self._base(base_model), None)
        else:
            base, adapter, _ = self._loaded(model_path, base_model)
            client = SamplingClient(base, adapter)
            release_with(client, base, adapter)
        self._samplers.append(f"{self._session_id}:sample:{len(self._samplers)}")
        return client

    def create_rest_client(self) -> RestClient:
        """The client for runs and checkpoints in the store."""
        return RestClient(self._store, self._known_models, (self._session_id, self._user_metadata, self._samplers))

    def get_server_capabilities(self) -> types.GetServerCapabilitiesResponse:
        """The base models that need no download."""
        return self.create_rest_client().get_server_capabilities().result()

    create_lora_training_client_async = in_thread(create_lora_training_client)
    create_training_client_from_state_async = in_thread(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = in_thread(create_training_client_from_state_with_optimizer)
    create_sampling_client_async = in_thread(create_sampling_client)
    get_server_capabilities_async = submits(get_server_capabilities)

    def checkpoint_directory(self, path: str) -> Path:
        """The folder behind a `tinker://` path that a client of this service returned."""
        return self._store.resolve(path)

    def max_length(self, base_model: str) -> int:
        """The most tokens a sequence may have."""
        return self._base(base_model).max_length

    def close(self, status: str = "success", detail: str | None = None, *, cancel: bool = False) -> LocalFuture[None]:
        """Stop the background threads: after finishing what was asked for, or at once with `cancel`.

        It returns a finished future, as the SDK returns one. `status` and `detail` tell a server; here is none.
        """
        with self._lock:
            self._closed = True
            for base in self._models.values():
                base.worker.close(cancel=cancel)
        return finished(None)

    def __enter__(self) -> Self:
        if self._closed:
            raise Closed("ServiceClient is closed", hint="make a new one")
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=error is not None)

    def _from_state(
        self, path: str, base_model: str | None, user_metadata: Metadata, *, with_optimizer: bool
    ) -> TrainingClient:
        base, adapter, name = self._loaded(path, base_model)
        info = self._store.run_of(path)
        parts = (info.train_attn, info.train_mlp, info.train_unembed) if info else base.parts_of(adapter)
        client = self._training_client(base, adapter, name, parts, user_metadata)
        if with_optimizer:
            client.take_state(self._store.resolve(path)).result()
        return client

    def _training_client(
        self, base: BaseModel, adapter: str, name: str, parts: tuple[bool, bool, bool], user_metadata: Metadata
    ) -> TrainingClient:
        info = RunInfo(
            run_id=new_id(),
            base_model=name,
            lora_rank=int(base.adapter_config(adapter).r),
            train_attn=parts[0],
            train_mlp=parts[1],
            train_unembed=parts[2],
            session_id=self._session_id,
            created=now().isoformat(),
            user_metadata=user_metadata,
            session_metadata=self._user_metadata,
        )
        self._store.add_run(info)
        return TrainingClient(base, adapter, self._store, info)

    def _loaded(self, path: str, base_model: str | None) -> tuple[BaseModel, str, str]:
        """The base model of saved weights, the adapter now installed on it, and the base model's name to the user."""
        directory = self._store.resolve(path)
        if not is_adapter(directory):
            raise BadRequest(f"{path} holds no adapter", hint="use a path that save_weights_for_sampler returned")
        info = self._store.run_of(path)
        try:
            name = base_model or base_model_of(directory)
        except RunError as error:
            raise as_sdk(error) from error
        if name is None:
            raise BadRequest(f"{path} does not name its base model", hint="give base_model as well")
        base = self._base(name)
        adapter = base.worker.submit(lambda: base.load_adapter(directory)).result()
        return base, adapter, base_model or (info.base_model if info else name)

    def _base(self, name: str) -> BaseModel:
        folder = self._aliases.get(name, name)
        with self._lock:
            if self._closed:
                raise Closed("ServiceClient is closed", hint="make a new one")
            if folder not in self._models:
                try:
                    self._models[folder] = BaseModel(folder, device=self._device, notify=self._notify)
                except (EngineError, ModelError) as error:
                    raise as_sdk(error) from error
            return self._models[folder]

    def _known_models(self) -> dict[str, int | None]:
        """Base models that need no download, and their context lengths."""
        names = {**self._aliases, **{folder: folder for folder in self._models}, str(STARTER_MODEL): str(STARTER_MODEL)}
        return {name: limits_of(folder).max_length for name, folder in names.items()}


def _check_optimizer(optimizer: Any) -> None:
    if optimizer is not None and getattr(optimizer, "type", None) != "adamw":
        raise BadRequest(f"the optimizer {optimizer!r} is not in the embedded engine", hint="leave it out: AdamW")
