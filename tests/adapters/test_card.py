"""The model card says how the model was trained, by whichever method."""

from pathlib import Path
from typing import Any

import pytest

from tinkertools.adapters.card import Facts, model_card
from tinkertools.adapters.export import Served
from tinkertools.config import TrainConfig
from tinkertools.space import Needs


def card(run: dict[str, Any], steps: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("tinkertools.adapters.card._loading", lambda _: "")
    served = Served.__new__(Served)
    for name, value in {"name": "first", "base_model": "a/b", "merged": False}.items():
        object.__setattr__(served, name, value)
    return model_card(Facts(None, served, run=run, steps=steps))


def test_a_card_says_the_method_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(method="rl", reward="/home/me/rewards.py:length", data="/home/me/p.jsonl", batch=4)
    steps: list[dict[str, Any]] = [
        {"loss": 0.0, "reward": None, "trained_tokens": 0}, {"loss": -0.5, "reward": 0.25, "trained_tokens": 7},
        {"loss": -1.0, "reward": 0.5, "trained_tokens": 8},
    ]  # fmt: skip
    text = card({"config": config.to_json(), "data": {"prompts": 12}, "renderer": "r"}, steps, monkeypatch)
    for row in (
        "| method | reinforcement learning (`--method rl`) |", "| data | p.jsonl (12 prompts) |",
        "| prompts a step | 4 |", "| reward | rewards.py:length |", "| group size | 8 |", "| kl penalty | 0.0 |",
        "| loss | 0.0000 at the start, -1.0000 at the end |", "| reward | 0.2500 at the start, 0.5000 at the end |",
        "| trained tokens | 15 |",
    ):  # fmt: skip
        assert row in text
    for other in ("/home/me", "beta", "trained on", "mean NLL"):
        assert other not in text


def test_a_card_of_conversations_has_no_setting_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(data=str(Path("c.jsonl")), batch=4)
    steps = [{"loss": 2.0, "trained_tokens": 5}, {"loss": 1.0, "trained_tokens": 5}]
    text = card({"config": config.to_json(), "data": {"conversations": 3}, "renderer": "r"}, steps, monkeypatch)
    for row in (
        "| method | supervised fine-tuning (`--method sft`) |", "| data | c.jsonl (3 conversations) |",
        "| conversations a step | 4 |", "| loss (mean NLL) | 2.0000 at the start, 1.0000 at the end |",
        "| trained on | ALL_ASSISTANT_MESSAGES |",
    ):  # fmt: skip
        assert row in text
    assert "group size" not in text
    assert "beta" not in text


def test_a_second_adapter_takes_space() -> None:
    """Final weights and states are of both, checkpoints of the run's own; a state is three times an adapter."""
    assert Needs(100, 2, 3, 10).total == 100 * (2 + 1 + 9) + 10
    assert Needs(100, 2, 3, 10, adapters=2).total == 100 * (2 + 2 + 18) + 10
    assert str(Needs(10**6, 0, 3, 0, adapters=2)) == (
        "the final weights of 1.0 MB, of 2 adapters, 3 states of 6.0 MB while one is replaced"
    )
