"""`tt inspect-api`: what it says without a server, of a server, and what it deletes."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import tinker
from standin import Checkpoint, Model, StandIn

from tinkertools.errors import UsageError
from tinkertools.inspect_api import parse_age
from tinkertools.remote import inspection

Tt = Callable[..., Any]
KEY = "tml-planted-key-1234567890"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    return KEY


def test_without_key_and_server_it_tells_of_the_sdk_and_the_embedded_engine(tt: Tt) -> None:
    found = tt("inspect-api", "--json")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert report["engine"] == "local"
    assert report["sdk"]["version"] == tinker.__version__
    assert not any(report["environment"].values())
    methods = report["sdk"]["methods"]
    public = {n for n, _ in inspect.getmembers(tinker.TrainingClient, callable) if not n.startswith("_")}
    assert set(methods["TrainingClient"]) == public
    assert methods["TrainingClient"]["save_state"].startswith("(name: str, ttl_seconds: int | None = None")
    assert {"ServiceClient", "TrainingClient", "SamplingClient", "RestClient"} == set(methods)
    assert "optim_step" in report["embedded"]["methods"]["TrainingClient"]
    assert "server" not in report


def test_people_see_the_same(tt: Tt) -> None:
    found = tt("inspect-api")
    assert found.code == 0, found.err
    assert "  TINKER_API_KEY: not set" in found.out
    assert "  save_state(name: str" in found.out
    assert "whoami() -> APIFuture[WhoamiResponse]  [not in the embedded engine]" in found.out


def test_a_probe_of_the_embedded_engine(tt: Tt, tiny: str) -> None:
    found = tt("inspect-api", "--probe", "--json", "--base-model", tiny)
    assert found.code == 0, found.err
    rows = json.loads(found.out)["probe"]
    assert [(row["operation"], row["result"]) for row in rows] == [
        (name, "ok")
        for name in (
            "create_model", "forward", "forward_backward", "optim_step", "save_state", "save_weights_for_sampler",
            "sample", "compute_logprobs",
        )
    ]  # fmt: skip


def test_a_server_is_described(tt: Tt, key: str, starter: str) -> None:
    with StandIn([starter]) as server:
        found = tt("inspect-api", "--base-url", server.url, "--json")
        assert found.code == 0, found.err
        report = json.loads(found.out)
        assert report["environment"]["TINKER_API_KEY"] is True
        told = report["server"]
        assert told["address"] == server.url
        assert [model["name"] for model in told["models"]] == [starter]
        assert told["latency_ms"] > 0
        assert told["known_to_work"] is None
        assert told["runs"] == []
        assert told["checkpoints"] == []
        shown = tt("inspect-api", "--base-url", server.url)
        assert (shown.code, key in shown.out + shown.err + found.out + found.err) == (0, False)
        assert f"server: {server.url} (it does not say what it is)" in shown.out


def test_a_probe_of_a_server_leaves_nothing_behind(tt: Tt, key: str, starter: str) -> None:
    with StandIn([starter]) as server:
        found = tt("inspect-api", "--base-url", server.url, "--probe", "--json")
        assert found.code == 0, found.err
        rows = json.loads(found.out)["probe"]
        assert {row["result"] for row in rows} == {"ok"}
        assert [row["operation"] for row in rows][-2:] == ["delete the state", "delete the weights"]
        listed = tt("inspect-api", "--base-url", server.url, "--checkpoints", "--json")
        assert json.loads(listed.out) == []


@pytest.mark.slow
def test_a_server_that_is_not_there(environment: dict[str, str]) -> None:
    # In a process of its own: the SDK goes on trying in the one that gave up.
    command = [sys.executable, "-m", "tinkertools", "inspect-api", "--json", "--timeout", "1"]
    more = {"TINKER_BASE_URL": "http://127.0.0.1:9", "TINKER_API_KEY": KEY}
    found = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    report = json.loads(found.stdout)
    assert report["server"]["latency_ms"] is None
    assert "no connection" in report["server"]["error"]
    assert report["sdk"]["version"] == tinker.__version__
    assert "no connection" in found.stderr
    assert KEY not in found.stdout + found.stderr


def test_old_checkpoints_are_deleted_after_asking(tt: Tt, key: str, starter: str) -> None:
    with StandIn([starter]) as server:
        now = datetime.now(UTC)
        for name, days in (("old", 8), ("new", 1)):
            path = f"tinker://run/weights/{name}"
            server.checkpoints[path] = Checkpoint(path, Model(starter, 1), (), now - timedelta(days=days), None)
        options = ["inspect-api", "--base-url", server.url, "--checkpoints", "--older-than", "7d"]
        listed = tt(*options)
        assert listed.code == 0, listed.err
        assert "tinker://run/weights/old" in listed.out
        assert "tinker://run/weights/new" not in listed.out
        assert "192 h 00 m" in listed.out
        unasked = tt(*options, "--delete")
        assert unasked.code == 1
        assert "nothing was deleted" in unasked.err
        assert len(server.checkpoints) == 2
        deleted = tt(*options, "--delete", "--yes")
        assert deleted.code == 0, deleted.err
        assert list(server.checkpoints) == ["tinker://run/weights/new"]


@pytest.mark.parametrize(
    "arguments",
    [["--delete"], ["--older-than", "7d"], ["--checkpoints", "--delete"], ["--checkpoints", "--older-than", "week"]],
)
def test_wrong_usage(tt: Tt, arguments: list[str]) -> None:
    assert tt("inspect-api", *arguments).code == 2


@pytest.mark.parametrize(
    ("text", "age"),
    [("90s", timedelta(seconds=90)), ("30m", timedelta(minutes=30)), ("7d", timedelta(days=7)), ("2w", timedelta(14))],
)
def test_ages(text: str, age: timedelta) -> None:
    assert parse_age(text) == age
    with pytest.raises(UsageError):
        parse_age(text + "x")


@pytest.mark.parametrize(
    ("kind", "sdk", "works"),
    [
        ("SkyRL", "0.16.1", True),
        ("SkyRL", "0.24.1", True),
        ("SkyRL", "0.25.0", False),
        ("SkyRL", "0.38.0", False),
        ("TuFT", "0.25.0", True),
        ("TuFT", "0.38.0", False),
        ("TuFT", "0.24.1", False),
        (None, "0.38.0", None),
        (None, "0.15.0", False),
    ],
)
def test_known_pairs(monkeypatch: pytest.MonkeyPatch, kind: str | None, sdk: str, works: bool | None) -> None:
    monkeypatch.setattr(inspection, "sdk_version", lambda: sdk)
    found, words = inspection.verdict(kind)
    assert found is works
    assert sdk in words
