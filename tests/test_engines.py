"""Where a command computes."""

from pathlib import Path

import pytest

from tinkertools.config import Engine, ServerSettings, without_password
from tinkertools.engines import choose, choose_for_weights
from tinkertools.errors import UsageError
from tinkertools.runs.directory import Weights
from tinkertools.shipped import STARTER_MODEL

HERE = Weights(Path("here"), "m", "here")
THERE = Weights(None, None, "there", server_path="tinker://run/sampler_weights/final")
BOTH = Weights(Path("both"), "m", "both", server_path="tinker://run/sampler_weights/final")
NONE = ServerSettings(None, has_key=False)
KEY = ServerSettings(None, has_key=True)
URL = ServerSettings("http://127.0.0.1:10610", has_key=False)
STARTER = str(STARTER_MODEL)


@pytest.mark.parametrize(
    ("engine", "base_model", "server", "expected"),
    [
        ("auto", None, NONE, ("local", STARTER)),
        ("auto", "FOLDER", NONE, ("local", "FOLDER")),
        ("auto", "Qwen/Qwen3-8B", KEY, ("tinker", "Qwen/Qwen3-8B")),
        ("auto", "Qwen/Qwen3-8B", URL, ("tinker", "Qwen/Qwen3-8B")),
        ("auto", "FOLDER", KEY, ("tinker", "FOLDER")),
        ("tinker", "Qwen/Qwen3-8B", NONE, ("tinker", "Qwen/Qwen3-8B")),
        ("local", None, KEY, ("local", STARTER)),
        ("local", "Qwen/Qwen3-8B", URL, ("local", "Qwen/Qwen3-8B")),
    ],
)
def test_the_engine_that_is_chosen(
    tmp_path: Path, engine: Engine, base_model: str | None, server: ServerSettings, expected: tuple[str, str]
) -> None:
    def real(name: str | None) -> str | None:
        return str(tmp_path) if name == "FOLDER" else name

    choice = choose(engine, real(base_model), server)
    assert (choice.engine, choice.base_model) == (expected[0], real(expected[1]))
    assert choice.reason


@pytest.mark.parametrize(("engine", "base_model"), [("auto", "Qwen/Qwen3-8B"), ("tinker", None)])
def test_what_cannot_be_chosen_offers_both_ways_on(engine: Engine, base_model: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        choose(engine, base_model, NONE)
    assert "--engine local" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("engine", "server", "weights", "expected"),
    [
        ("auto", NONE, [THERE], ("tinker", "")),
        ("auto", KEY, [THERE], ("tinker", "")),
        ("auto", KEY, [HERE], ("local", "m")),
        ("auto", URL, [HERE], ("tinker", "m")),
        ("auto", KEY, [BOTH], ("tinker", "m")),
        ("local", KEY, [BOTH], ("local", "m")),
        ("auto", KEY, [BOTH, HERE], ("local", "m")),
    ],
)
def test_adapters_are_used_where_they_are(
    engine: Engine, server: ServerSettings, weights: list[Weights], expected: tuple[str, str]
) -> None:
    choice = choose_for_weights(engine, weights[0].base_model, server, weights)
    assert (choice.engine, choice.base_model) == expected


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "no address"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no address of a server"):
        ServerSettings.from_environment(url)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://host:1/path", "http://host:1/path"),
        ("https://me:secret@host:1/p?q", "https://host:1/p?q"),
    ],
)
def test_no_password_in_an_address_is_kept(url: str, kept: str) -> None:
    assert without_password(url) == kept


def test_the_environment_and_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServerSettings.from_environment() == NONE
    monkeypatch.setenv("TINKER_API_BASE", "http://base")
    assert ServerSettings.from_environment().base_url == "http://base"
    monkeypatch.setenv("TINKER_BASE_URL", "http://url")
    assert ServerSettings.from_environment().base_url == "http://url"
    assert ServerSettings.from_environment("http://option").base_url == "http://option"
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    settings = ServerSettings.from_environment()
    assert settings.has_key
    assert "tml-secret" not in repr(settings)
