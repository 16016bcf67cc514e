"""A Hub for the client of this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from model_hub import Account, ModelHub

TOKEN = "hf_PlantedTokenOfTheUser0123456789"  # not a real one


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    """An empty Hub that this process's client goes to, as `me`."""
    with ModelHub({TOKEN: Account("me")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub
