"""The embedded engine's entry: makes training and sampling clients on base models kept in memory once."""

import secrets
import threading
from pathlib import Path
from typing import Self

from tinkertools.adapters.peft_files import base_model_of, is_adapter
from tinkertools.errors import EngineError
from tinkertools.local.checkpoints import Store, default_store
from tinkertools.local.model import BaseModel
from tinkertools.local.sampling import SamplingClient
from tinkertools.local.training import TrainingClient


class ServiceClient:
    """As `tinker.ServiceClient`, computing in this process.

    Args:
        store: the folder for checkpoints; by default one in the user's cache.
        device: `cpu`, `cuda` …; by default a GPU where there is one.
    """

    def __init__(self, *, store: Path | None = None, device: str | None = None) -> None:
        self._root = store or default_store()
        self._device = device
        self._models: dict[str, BaseModel] = {}
        self._lock = threading.Lock()

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
    ) -> TrainingClient:
        """A fresh adapter on a base model.

        Raises:
            ModelError: the base model cannot be used.
            EngineError: there is nothing to train in it, or the rank is not positive.
        """
        if rank < 1:
            raise EngineError(f"the rank is {rank}, but must be at least 1")
        base = self._base(base_model)
        adapter = base.worker.submit(
            lambda: base.add_adapter(
                rank, secrets.randbits(31) if seed is None else seed,
                attn=train_attn, mlp=train_mlp, unembed=train_unembed,
            )
        ).result()  # fmt: skip
        return TrainingClient(base, adapter, Store(self._root))

    def create_training_client_from_state_with_optimizer(
        self, path: str, user_metadata: dict[str, str] | None = None
    ) -> TrainingClient:
        """Go on training from a state that `save_state` saved, with the same rank and layers.

        Raises:
            EngineError: there is no such state, or it does not fit its base model.
        """
        base, adapter = self._loaded(path, None)
        client = TrainingClient(base, adapter, Store(self._root))
        client.load_state_with_optimizer(path).result()
        return client

    def create_sampling_client(self, model_path: str | None = None, base_model: str | None = None) -> SamplingClient:
        """Sample from saved weights (a `tinker://` path or an adapter's folder), or from a base model alone.

        Raises:
            EngineError: neither is given, or the weights are not there or do not fit.
        """
        if model_path is None:
            if base_model is None:
                raise EngineError("a sampling client needs a model_path or a base_model")
            return SamplingClient(self._base(base_model), None)
        return SamplingClient(*self._loaded(model_path, base_model))

    def checkpoint_directory(self, path: str) -> Path:
        """The folder behind a `tinker://` path that a client of this service returned."""
        return Store(self._root).resolve(path)

    def max_length(self, base_model: str) -> int:
        """The most tokens a sequence may have."""
        return self._base(base_model).max_length

    def close(self, *, cancel: bool = False) -> None:
        """Stop the background threads: after finishing what was asked for, or at once."""
        with self._lock:
            for base in self._models.values():
                base.worker.close(cancel=cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=error is not None)

    def _loaded(self, path: str, base_model: str | None) -> tuple[BaseModel, str]:
        """The base model of saved weights, and the name of the adapter now installed on it."""
        directory = Store(self._root).resolve(path)
        if not is_adapter(directory):
            raise EngineError(f"{path} holds no adapter", hint="use a path that save_weights_for_sampler returned")
        name = base_model or base_model_of(directory)
        if name is None:
            raise EngineError(f"{path} does not name its base model", hint="give base_model as well")
        base = self._base(name)
        return base, base.worker.submit(lambda: base.load_adapter(directory)).result()

    def _base(self, name: str) -> BaseModel:
        with self._lock:
            if name not in self._models:
                self._models[name] = BaseModel(name, device=self._device)
            return self._models[name]
