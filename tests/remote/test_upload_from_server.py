"""`tt upload` of weights that are on a server only."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tinker
from standin import Checkpoint, Model, StandIn

Tt = Callable[..., Any]
PATH = "tinker://run/sampler_weights/final"


def test_an_sdk_that_cannot_download_says_which_can(
    tt: Tt, starter: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-planted-key-1234567890")
    with StandIn([starter]) as server:
        server.checkpoints[PATH] = Checkpoint(PATH, Model(starter, 1), (), datetime.now(UTC), None)
        server.models["run"] = Model(starter, 1)
        found = tt("upload", "--checkpoint-path", PATH, "--base-url", server.url, "--dry-run")
    assert found.code == 1
    assert f"SDK {tinker.__version__} downloads only what the same command has saved" in found.err
    assert "tinker==0.34.0" in found.err
    assert not list((tmp_path / "uploads").glob("*/*"))
