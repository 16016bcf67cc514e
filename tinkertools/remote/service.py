"""The SDK at the seam: the service client, on any version of the SDK and any server."""

import difflib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from tinkertools.config import CONTACT_SECONDS, without_password
from tinkertools.errors import EngineError, ModelError, ServerTimeoutError, without_secrets
from tinkertools.remote.clients import SamplingClient, TrainingClient
from tinkertools.remote.download import Downloads
from tinkertools.remote.explain import LOADING, explain, mismatch
from tinkertools.remote.kinds import SKYRL, kind_of
from tinkertools.remote.waiting import Waiter, settled, standard
from tinkertools.remote.wire import Wire, watch
from tinkertools.reporting import Notify

T = TypeVar("T")

# Errors of the server in a row after which the first contact and the probe give up.
_ERRORS_IN_A_ROW = 4
# Seconds to say goodbye in.
_GOODBYE = 5.0


@dataclass(frozen=True)
class ServedModel:
    """A base model that the server has; None where it does not say."""

    name: str
    max_length: int | None
    trainable: bool | None


class ServiceClient:
    """A Tinker server, spoken to through the SDK. Use it in a `with` block; entering makes the first contact.

    Args:
        base_url: its address; None is the one that the SDK takes by itself.
        limit: seconds that a request may take.
        notify: is told what is waited for, in a line of words.
        downloads: of its adapters.
    """

    def __init__(self, base_url: str | None, limit: float, notify: Notify, downloads: Downloads) -> None:
        self._base_url = base_url
        self.notify = notify
        self.address = without_password(base_url or default_address())
        self.wire = Wire(self.address)
        self.waiter = Waiter(self.wire, self.address, limit, notify)
        self._downloads = downloads
        self._stack = ExitStack()
        self._sdk: Any = None
        self._rest: Any = None
        self._models: list[ServedModel] | None = None

    def __enter__(self) -> Self:
        self._stack.enter_context(watch(self.wire))
        self._stack.enter_context(_SdkLog(self.notify))
        try:
            self._connect()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            self._say_goodbye("success" if error is None else "errored")
        finally:
            self._stack.close()

    @property
    def rest(self) -> Any:
        """The SDK's `RestClient`."""
        return self._rest

    @property
    def models(self) -> list[ServedModel] | None:
        """The base models of the server; None where it does not say."""
        return self._models

    def create_lora_training_client(
        self, base_model: str, rank: int, seed: int | None, train_mlp: bool, train_attn: bool, train_unembed: bool
    ) -> TrainingClient:
        """A fresh adapter on a base model. The server and the SDK are known to understand each other then.

        Raises:
            ModelError: the server does not have the base model.
            EngineError: the server refuses, or does not understand this SDK.
        """
        with self._impatient():
            client = self.create_model(base_model, rank, seed, train_mlp, train_attn, train_unembed)
            return self._probed(client)

    def create_model(
        self, base_model: str, rank: int, seed: int | None, train_mlp: bool, train_attn: bool, train_unembed: bool
    ) -> TrainingClient:
        """As `create_lora_training_client`, without finding out whether the server understands this SDK."""
        name = self.name_of(base_model)
        made = self.call(
            "create_model",
            lambda: settled(
                self._sdk.create_lora_training_client(
                    base_model=name, rank=rank, seed=seed, train_mlp=train_mlp, train_attn=train_attn,
                    train_unembed=train_unembed,
                )
            ),
        )  # fmt: skip
        return self._training_client(made)

    def _training_client(self, made: Any) -> TrainingClient:
        skyrl = kind_of(self._base_url or default_address()) == SKYRL
        return TrainingClient(made, self.waiter, self._downloads, keeps_order=not skyrl, means=skyrl)

    def create_training_client_from_state_with_optimizer(self, path: str) -> TrainingClient:
        """Go on from a state on the server.

        Raises:
            RunError: it is not there any more.
            EngineError: the server refuses, or does not understand this SDK.
        """
        with self._impatient():
            made = self.call(
                f"{LOADING}{path}", lambda: settled(self._sdk.create_training_client_from_state_with_optimizer(path))
            )
            return self._probed(self._training_client(made))

    def create_training_client_from_state(self, path: str, base_model: str | None = None) -> TrainingClient:
        """Start from weights on the server, with a fresh optimizer. The server knows their base model.

        Raises:
            RunError: they are not there any more.
            EngineError: the server refuses, or does not understand this SDK.
        """
        with self._impatient():
            made = self.call(f"{LOADING}{path}", lambda: settled(self._sdk.create_training_client_from_state(path)))
            return self._probed(self._training_client(made))

    def create_sampling_client(self, model_path: str | None = None, base_model: str | None = None) -> SamplingClient:
        """Sample from weights on the server (a `tinker://` path), or from a base model alone.

        Raises:
            ModelError: the server does not have the base model.
            EngineError: the server refuses.
        """
        options = {"model_path": model_path} if model_path else {"base_model": self.name_of(str(base_model))}
        made = self.call(
            f"a sampler of {model_path or base_model}",
            lambda: settled(self._sdk.create_sampling_client(**options)),
        )
        return SamplingClient(made, self.waiter)

    def checkpoint_directory(self, path: str) -> Path:
        """A folder with what is saved under a `tinker://` path: the adapter of sampler weights, nothing of a state.

        Raises:
            EngineError: it cannot be downloaded.
        """
        return self._downloads.fetch(path, self)

    def base_model_of(self, path: str) -> str | None:
        """The base model of what a `tinker://` path names; None where the server does not tell."""
        try:
            run = self.call(
                "get_training_run",
                lambda: settled(self._rest.get_training_run_by_tinker_path(path), self.waiter.limit),
            )
        except ServerTimeoutError:
            raise
        except EngineError:
            return None
        return str(run.base_model)

    def rank_of(self, path: str) -> int | None:
        """The rank of the adapter that a `tinker://` path names; None where the server does not tell."""
        try:
            info = self.call(
                "get_weights_info",
                lambda: settled(self._rest.get_weights_info_by_tinker_path(path), self.waiter.limit),
            )
        except ServerTimeoutError:
            raise
        except EngineError:
            return None
        rank = getattr(info, "lora_rank", None)
        return int(rank) if rank else None

    def max_length(self, base_model: str) -> int | None:
        """The most tokens a sequence may have; None where nobody says."""
        served = [model.max_length for model in self._models or [] if model.name == self.name_of(base_model)]
        return served[0] if served else None

    def name_of(self, base_model: str) -> str:
        """A base model as the server names it.

        Raises:
            ModelError: the server does not have it.
        """
        if not self._models:
            return base_model
        names = [model.name for model in self._models]
        same = [name for name in names if name == base_model or _same_folder(name, base_model)]
        if same:
            return same[0]
        close = difflib.get_close_matches(base_model, names, n=3, cutoff=0.5)
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise ModelError(
            f"{self.address} does not have {base_model}; it has {shown}",
            hint=f"--base-model {(close or names)[0]}",
        )

    def call(self, what: str, function: Callable[[], T], limit: float | None = None) -> T:
        """What a blocking call of the SDK returns, waited for with words and an end.

        Raises:
            EngineError: it failed, or gave no answer in time.
        """
        try:
            return self.waiter.call(function, what, limit)
        except Exception as error:
            raise explain(error, self.waiter, what) from error

    def _connect(self) -> None:
        import tinker

        limit = min(CONTACT_SECONDS, self.waiter.limit)
        rest_client = getattr(tinker, "RestClient", None)

        def connect() -> tuple[Any, Any]:
            options: dict[str, Any] = {"base_url": self._base_url} if self._base_url else {}
            service = tinker.ServiceClient(**options)
            return service, rest_client(**options) if rest_client else service.create_rest_client()

        def models() -> list[ServedModel]:
            source = self._rest if hasattr(self._rest, "get_server_capabilities") else self._sdk
            found = settled(source.get_server_capabilities(), limit).supported_models
            return [
                ServedModel(
                    str(model.model_name),
                    getattr(model, "max_context_length", None),
                    getattr(model, "trainable", None),
                )
                for model in found
                if model.model_name
            ]

        with self._impatient():
            self._sdk, self._rest = self.call("the first contact", connect, limit)
            self._models = self.call("the first contact", models, limit)
        self._downloads.choose_way(self._rest)

    @contextmanager
    def _impatient(self) -> Iterator[None]:
        """While the block runs, a few errors of the server in a row are an answer."""
        self.waiter.refuse_after = _ERRORS_IN_A_ROW
        try:
            yield
        finally:
            self.waiter.refuse_after = None

    def _probed(self, client: TrainingClient) -> TrainingClient:
        """The client, after one token went there and back; from now on nothing is sent twice."""
        try:
            client.forward([one_token()], "cross_entropy").result()
        except EngineError as error:
            raise mismatch(error, self.waiter) from error
        self.wire.guards = True
        return client

    def _say_goodbye(self, status: str) -> None:
        """Let go of the session; a server that does not answer now is not waited for."""
        if self._sdk is None:
            return
        try:
            if hasattr(self._sdk, "close"):
                standard(self._sdk.close(status)).result(_GOODBYE)
            else:
                self._sdk.holder.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run is over
            logging.getLogger(__name__).debug("the session was not closed: %s", type(error).__name__)


def one_token() -> Any:
    """The smallest datum: a token that every model has, which counts for nothing."""
    from tinker import types

    inputs: dict[str, Any] = {"target_tokens": [0], "weights": [0.0]}
    return types.Datum(model_input=types.ModelInput.from_ints([0]), loss_fn_inputs=inputs)


class _SdkLog(logging.Handler):
    """Shows the SDK's warnings, as of a queue that is paused, as words of the wait; each once in a row."""

    def __init__(self, notify: Notify) -> None:
        super().__init__(logging.WARNING)
        self._notify = notify
        self._last = ""
        self._logger = logging.getLogger("tinker")

    def emit(self, record: logging.LogRecord) -> None:
        """Take a warning, but for those of waits that are told anyway."""
        if record.name.endswith("rest_client"):
            return
        text = without_secrets(record.getMessage())
        if text != self._last:
            self._last = text
            self._notify(text)

    def __enter__(self) -> Self:
        self._propagated = self._logger.propagate
        self._logger.addHandler(self)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated


def default_address() -> str:
    """Where the SDK goes by itself."""
    try:
        from tinker.lib.base_url import DEFAULT_BASE_URL  # in newer versions only

        return str(DEFAULT_BASE_URL)
    except ImportError:
        return "https://tinker.thinkingmachines.dev"


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)
