"""Runs, checkpoints and sessions in the store: what is kept of them, how they end, that nothing escapes the store."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import tinker
from tinker import types

from tinkertools.local import ServiceClient
from tinkertools.local.store import Store


@pytest.fixture
def service(tmp_path: Path) -> ServiceClient:
    return ServiceClient({"team": "blue"}, store=tmp_path / "store", device="cpu")


def test_runs_are_listed_with_what_was_said_of_them(service: ServiceClient, tiny: str) -> None:
    rest = service.create_rest_client()
    first = service.create_lora_training_client(tiny, rank=2, train_mlp=False, user_metadata={"try": "1"})
    second = service.create_lora_training_client(tiny, rank=4)
    runs = rest.list_training_runs().result()
    assert [run.training_run_id for run in runs.training_runs] == [second.model_id, first.model_id]
    assert (runs.cursor.total_count, runs.cursor.limit, runs.cursor.offset) == (2, 20, 0)
    assert [run.training_run_id for run in rest.list_training_runs(1, 1).result().training_runs] == [first.model_id]
    run = rest.get_training_run(first.model_id).result()
    assert (run.base_model, run.lora_rank, run.is_lora, run.user_metadata) == (tiny, 2, True, {"try": "1"})
    assert run.last_checkpoint is None
    path = first.save_state("s", user_metadata={"best": "yes"}).result().path
    sampler = first.save_weights_for_sampler("w").result().path
    run = rest.get_training_run_by_tinker_path(path).result()
    assert run.last_checkpoint is not None and run.last_checkpoint.tinker_path == path
    assert run.last_sampler_checkpoint is not None and run.last_sampler_checkpoint.tinker_path == sampler
    assert run.last_checkpoint.size_bytes and run.last_checkpoint.expires_at is None
    info = rest.get_weights_info_by_tinker_path(path).result()
    assert (info.base_model, info.lora_rank, info.train_mlp, info.train_attn) == (tiny, 2, False, True)
    (session,) = rest.list_sessions().result().sessions
    assert rest.get_session(session).result().training_run_ids == [first.model_id, second.model_id]
    # Another process sees the same.
    other = ServiceClient(store=service._store.root).create_rest_client()
    assert other.get_session(session).result().training_run_ids == [first.model_id, second.model_id]
    assert len(other.list_user_checkpoints().result().checkpoints) == 2
    for missing in (rest.get_training_run("nobody"), rest.get_session("nobody"), rest.list_checkpoints("..")):
        with pytest.raises(tinker.NotFoundError):
            missing.result()


def test_checkpoints_can_be_published_expire_and_be_deleted(service: ServiceClient, tiny: str) -> None:
    rest = service.create_rest_client()
    client = service.create_lora_training_client(tiny, rank=2)
    state = client.save_state("s", ttl_seconds=3600).result().path
    weights = client.save_weights_for_sampler("w").result().path

    def shown() -> dict[str, types.Checkpoint]:
        return {one.tinker_path: one for one in rest.list_checkpoints(client.model_id).result().checkpoints}

    expires = shown()[state].expires_at
    assert expires is not None and abs(expires - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=5)
    rest.publish_checkpoint_from_tinker_path(state).result()
    assert (shown()[state].public, shown()[weights].public) == (True, False)
    rest.unpublish_checkpoint_from_tinker_path(state).result()
    assert not shown()[state].public and shown()[state].expires_at == expires
    rest.set_checkpoint_ttl_from_tinker_path(state, None).result()
    assert shown()[state].expires_at is None
    rest.set_checkpoint_ttl_from_tinker_path(weights, 1).result()
    folder = service.checkpoint_directory(weights)
    time.sleep(1.1)
    assert folder.is_dir()
    with pytest.raises(tinker.NotFoundError, match="has expired"):
        service.create_sampling_client(weights)
    assert not folder.exists() and list(shown()) == [state]
    rest.delete_checkpoint(client.model_id, "weights/s").result()
    assert not shown()
    with pytest.raises(tinker.NotFoundError, match="no checkpoint at"):
        rest.delete_checkpoint_from_tinker_path(state).result()
    with pytest.raises(tinker.NotFoundError):
        service.create_training_client_from_state(state)
    with pytest.raises(ValueError, match="Invalid tinker path"):
        rest.delete_checkpoint_from_tinker_path("nowhere")
    assert [path.name for path in (service._store.root / client.model_id / "weights").iterdir()] == []


def test_a_new_service_removes_what_has_expired(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2)
    folder = service.checkpoint_directory(client.save_state("s", ttl_seconds=1).result().path)
    time.sleep(1.1)
    ServiceClient(store=service._store.root)
    assert not folder.exists()


def test_a_name_is_taken_once_unless_it_may_be_overwritten(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2)
    path = client.save_state("s", ttl_seconds=60, user_metadata={"a": "1"}).result().path
    with pytest.raises(tinker.ConflictError, match="is there already"):
        client.save_state("s").result()
    assert client.save_state("s", overwrite=True).result().path == path
    (checkpoint,) = service.create_rest_client().list_checkpoints(client.model_id).result().checkpoints
    assert checkpoint.expires_at is None
    assert not getattr(checkpoint, "user_metadata", None)
    with pytest.raises(tinker.BadRequestError, match="ttl_seconds is 0"):
        client.save_state("t", ttl_seconds=0).result()


@pytest.mark.parametrize("name", ["../escape", "..", ".", ".hidden", "a/b", "", "a b"])
def test_no_name_leaves_its_folder(service: ServiceClient, tiny: str, name: str, tmp_path: Path) -> None:
    client = service.create_lora_training_client(tiny, rank=2)
    with pytest.raises(tinker.BadRequestError, match="is no name for a checkpoint"):
        client.save_state(name).result()
    (tmp_path / "store" / "weights" / "x").mkdir(parents=True)
    store = Store(tmp_path / "store" / "run")
    with pytest.raises(tinker.NotFoundError):
        store.resolve("tinker://../weights/x")


def test_the_async_forms_answer_the_same(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2)
    rest = service.create_rest_client()

    async def ask() -> list[Any]:
        return [await rest.get_training_run_async(client.model_id), await rest.get_training_run(client.model_id)]

    one, other = asyncio.run(ask())
    assert one == other == rest.get_training_run(client.model_id).result()


def test_what_is_written_is_json(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2)
    client.save_state("s", ttl_seconds=60).result()
    root = service._store.root / client.model_id
    texts: list[Any] = [orjson.loads(file.read_bytes()) for file in root.rglob("*.json")]
    assert len(texts) == 4  # the run, the notes, the adapter's configuration, the optimizer's steps
