"""Where a command computes."""

from pathlib import Path

import pytest

from tinkertools.config import Engine, ServerSettings
from tinkertools.engines import choose
from tinkertools.errors import UsageError
from tinkertools.shipped import STARTER_MODEL

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
