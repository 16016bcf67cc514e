"""The client for what is kept: runs, checkpoints and sessions in the store on disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from tinker import types

from tinkertools.adapters.peft_files import base_model_of
from tinkertools.local import responses
from tinkertools.local.failures import BadRequest, NotFound
from tinkertools.local.store import SAMPLER, STATE, RunInfo, Store, default_store, expiry
from tinkertools.local.twins import awaits
from tinkertools.local.worker import LocalFuture

T = TypeVar("T")
Scope = Literal["owned", "accessible"]


class RestClient:
    """As `tinker.RestClient`, over the store. Everything there is yours, so `access_scope` and projects change nothing.

    Args:
        store: the folder with the checkpoints; by default one in the user's cache.
        models: the base models that there are, by name, with their context lengths.
        session: of the service client that made this one: its name, its metadata, and the names of its samplers.
    """

    def __init__(
        self,
        store: Store | None = None,
        models: Callable[[], Mapping[str, int | None]] = dict,
        session: tuple[str, dict[str, str] | None, Sequence[str]] | None = None,
    ) -> None:
        self.store = store or Store(default_store())
        self.models = models
        self._session = session

    def list_training_runs(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned", project_id: str | None = None
    ) -> LocalFuture[types.TrainingRunsResponse]:
        """Runs, the newest first."""

        def answer() -> types.TrainingRunsResponse:
            runs = self.store.runs()
            shown = [self._training_run(info) for info in _page(runs, limit, offset)]
            return types.TrainingRunsResponse(training_runs=shown, cursor=_cursor(runs, limit, offset))

        return _done(answer)

    def get_training_run(
        self, training_run_id: types.ModelID, access_scope: Scope = "owned"
    ) -> LocalFuture[types.TrainingRun]:
        """A run, with its newest checkpoints and its `user_metadata`."""
        return _done(lambda: self._training_run(self.store.run(training_run_id)))

    def get_training_run_by_tinker_path(
        self, tinker_path: str, access_scope: Scope = "owned"
    ) -> LocalFuture[types.TrainingRun]:
        """The run of a checkpoint."""
        return self.get_training_run(_parsed(tinker_path).training_run_id)

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> LocalFuture[types.WeightsInfoResponse]:
        """What it takes to load a checkpoint: its base model, rank and layers."""

        def answer() -> types.WeightsInfoResponse:
            directory = self.store.resolve(tinker_path)
            info = self.store.run_of(tinker_path)
            if info is None:
                raise NotFound(f"nothing is known of the run of {tinker_path} (of {base_model_of(directory)})")
            return types.WeightsInfoResponse(
                base_model=info.base_model,
                is_lora=True,
                lora_rank=info.lora_rank,
                train_unembed=info.train_unembed,
                train_mlp=info.train_mlp,
                train_attn=info.train_attn,
            )

        return _done(answer)

    def list_checkpoints(self, training_run_id: types.ModelID) -> LocalFuture[types.CheckpointsListResponse]:
        """The checkpoints of a run, the newest first."""

        def answer() -> types.CheckpointsListResponse:
            self.store.run(training_run_id)
            return types.CheckpointsListResponse(checkpoints=self.store.checkpoints(training_run_id))

        return _done(answer)

    def list_user_checkpoints(self, limit: int = 100, offset: int = 0) -> LocalFuture[types.CheckpointsListResponse]:
        """The checkpoints of all runs, the newest first."""

        def answer() -> types.CheckpointsListResponse:
            found = [checkpoint for info in self.store.runs() for checkpoint in self.store.checkpoints(info.run_id)]
            found.sort(key=lambda checkpoint: checkpoint.time, reverse=True)
            return types.CheckpointsListResponse(
                checkpoints=_page(found, limit, offset), cursor=_cursor(found, limit, offset)
            )

        return _done(answer)

    def delete_checkpoint(self, training_run_id: types.ModelID, checkpoint_id: str) -> LocalFuture[None]:
        """Remove a checkpoint for good; its id is `weights/NAME` or `sampler_weights/NAME`."""
        return self.delete_checkpoint_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> LocalFuture[None]:
        """Remove a checkpoint for good."""
        _parsed(tinker_path)
        return _done(lambda: self.store.delete(tinker_path))

    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> LocalFuture[None]:
        """Mark a checkpoint as public. It is a mark only: nobody else sees this store."""
        _parsed(tinker_path)
        return _done(lambda: self.store.annotate(tinker_path, public=True))

    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> LocalFuture[None]:
        """Take the mark back."""
        _parsed(tinker_path)
        return _done(lambda: self.store.annotate(tinker_path, public=False))

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> LocalFuture[None]:
        """Let a checkpoint expire that many seconds from now, or never (None)."""
        _parsed(tinker_path)
        return _done(lambda: self.store.annotate(tinker_path, expires_at=expiry(ttl_seconds)))

    def get_session(self, session_id: str, access_scope: Scope = "owned") -> LocalFuture[types.GetSessionResponse]:
        """The runs of a session; and its sampling clients, while its service client lives."""

        def answer() -> types.GetSessionResponse:
            runs = [info for info in self.store.runs() if info.session_id == session_id]
            own = self._session is not None and self._session[0] == session_id
            if not runs and not own:
                raise NotFound(f"no session {session_id}", hint="only sessions with a training run are kept")
            values = {
                "training_run_ids": [info.run_id for info in reversed(runs)],
                "sampler_ids": list(self._session[2]) if own and self._session else [],
                "user_metadata": self._session[1] if own and self._session else runs[0].session_metadata,
            }
            return responses.made(types.GetSessionResponse, values)

        return _done(answer)

    def list_sessions(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned"
    ) -> LocalFuture[types.ListSessionsResponse]:
        """The names of sessions, the newest first."""

        def answer() -> types.ListSessionsResponse:
            own = [self._session[0]] if self._session else []
            found = list(dict.fromkeys([*own, *(info.session_id for info in self.store.runs())]))
            return types.ListSessionsResponse(sessions=_page(found, limit, offset))

        return _done(answer)

    def get_server_capabilities(self) -> LocalFuture[types.GetServerCapabilitiesResponse]:
        """The base models that need no download: those in memory, those of `models`, and the starter model."""

        def answer() -> types.GetServerCapabilitiesResponse:
            found = [
                responses.made(
                    types.SupportedModel,
                    {"model_name": name, "max_context_length": length, "trainable": True, "sampleable": True},
                )
                for name, length in self.models().items()
            ]
            return types.GetServerCapabilitiesResponse(supported_models=found)

        return _done(answer)

    list_training_runs_async = awaits(list_training_runs)
    get_training_run_async = awaits(get_training_run)
    get_training_run_by_tinker_path_async = awaits(get_training_run_by_tinker_path)
    list_checkpoints_async = awaits(list_checkpoints)
    list_user_checkpoints_async = awaits(list_user_checkpoints)
    delete_checkpoint_async = awaits(delete_checkpoint)
    delete_checkpoint_from_tinker_path_async = awaits(delete_checkpoint_from_tinker_path)
    publish_checkpoint_from_tinker_path_async = awaits(publish_checkpoint_from_tinker_path)
    unpublish_checkpoint_from_tinker_path_async = awaits(unpublish_checkpoint_from_tinker_path)
    set_checkpoint_ttl_from_tinker_path_async = awaits(set_checkpoint_ttl_from_tinker_path)
    get_session_async = awaits(get_session)
    list_sessions_async = awaits(list_sessions)

    def _training_run(self, info: RunInfo) -> types.TrainingRun:
        checkpoints = self.store.checkpoints(info.run_id)
        newest = {
            kind: next((one for one in checkpoints if one.checkpoint_id.startswith(f"{kind}/")), None)
            for kind in (STATE, SAMPLER)
        }
        values: dict[str, Any] = {
            "training_run_id": info.run_id,
            "base_model": info.base_model,
            "model_owner": "local",
            "is_lora": True,
            "lora_rank": info.lora_rank,
            # Requests are not written down: the newest that left something.
            "last_request_time": checkpoints[0].time if checkpoints else info.created,
            "last_checkpoint": newest[STATE],
            "last_sampler_checkpoint": newest[SAMPLER],
            "user_metadata": info.user_metadata,
        }
        return types.TrainingRun(**values)


def _done(answer: Callable[[], T]) -> LocalFuture[T]:
    """A finished future of an answer, or of the error that it is."""
    future: LocalFuture[T] = LocalFuture()
    try:
        future.set_result(answer())
    except Exception as error:  # noqa: BLE001 - as with any future, the result raises it
        future.set_exception(error)
    return future


def _parsed(tinker_path: str) -> types.ParsedCheckpointTinkerPath:
    try:
        return types.ParsedCheckpointTinkerPath.from_tinker_path(tinker_path)
    except ValueError as error:
        raise BadRequest(str(error), hint="a path reads tinker://RUN/weights/NAME") from error


def _page(found: Sequence[T], limit: int, offset: int) -> list[T]:
    return list(found[offset : offset + limit])


def _cursor(found: Sequence[Any], limit: int, offset: int) -> types.Cursor:
    return types.Cursor(offset=offset, limit=limit, total_count=len(found))
