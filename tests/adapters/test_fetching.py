"""Adapters on a Hub: what is no name is not asked for, what is no adapter is refused, and no token is told."""

from pathlib import Path

import pytest
from hub_fixtures import TOKEN
from model_hub import ModelHub

from tinkertools.adapters.fetching import fetch_adapter
from tinkertools.adapters.hub import push
from tinkertools.errors import ModelError, RunError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))


def put(folder: Path, **files: bytes) -> None:
    """A repository `me/it` with these files."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    push(folder, sorted(p.name for p in folder.iterdir()), "me/it", private=True, notify=lambda text: None)


def test_only_the_adapter_of_a_repository_is_fetched(hub: ModelHub, tmp_path: Path) -> None:
    weights = (2).to_bytes(8, "little") + b"{}"
    put(tmp_path / "a", adapter_config__json=b"{}", adapter_model__safetensors=weights, training_data__jsonl=b"much\n")
    found = fetch_adapter("me/it")
    assert found is not None
    assert sorted(path.name for path in found.iterdir()) == [CONFIG, WEIGHTS]
    assert (found / WEIGHTS).read_bytes() == weights


@pytest.mark.parametrize("name", ["", "it", "a/b/c", "./it", "../it", "/abs/it", "me/", "me/it/", "me/it me", "-me/it"])
def test_what_is_no_name_is_not_asked_for(hub: ModelHub, name: str) -> None:
    assert fetch_adapter(name) is None
    assert hub.requests == []


def test_a_repository_that_holds_no_adapter(hub: ModelHub, tmp_path: Path) -> None:
    put(tmp_path / "a", adapter_config__json=b"{}", README__md=b"hello\n")
    with pytest.raises(RunError, match=f"me/it on the Hub is no adapter: it has no {WEIGHTS}"):
        fetch_adapter("me/it")


def test_a_repository_that_is_not_there(hub: ModelHub) -> None:
    with pytest.raises(ModelError, match="no adapter at me/other, and the Hub does not give it: ") as caught:
        fetch_adapter("me/other")
    assert caught.value.hint
    assert TOKEN not in caught.value.message + caught.value.hint


def test_a_hub_that_refuses(hub: ModelHub) -> None:
    hub.faults["info"] = (403, "not for you")
    with pytest.raises(ModelError, match="no adapter at me/it") as caught:
        fetch_adapter("me/it")
    assert TOKEN not in caught.value.message
