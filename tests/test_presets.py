"""Presets write down a start, whatever is given beside them wins, and runs that go on do not mind them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import sums, write_rows

from tinkertools.config import FALLBACK_LEARNING_RATE, MethodName, PresetName, TrainConfig
from tinkertools.presets import PRESETS, with_preset
from tinkertools.schedules import auto_learning_rate, of_method
from tinkertools.settings.given import Given
from tinkertools.settings.reading import from_options

Tt = Callable[..., Any]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
NAMES: tuple[PresetName, ...] = get_args(PresetName)
# What a method needs beside a preset.
NEEDED: dict[MethodName, dict[str, Any]] = {"rl": {"reward": "math"}, "selfplay": {"max_steps": 3}}


@pytest.fixture
def train(tt: Tt, tiny: str, tmp_path: Path) -> Tt:
    """Train the tiny model on a few rows, one step."""
    write_rows(tmp_path / "d.jsonl", sums(12))
    return lambda *more: tt("train", "--base-model", tiny, "--data", "d.jsonl", "--max-steps", 2, *more)


def config_in(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path("checkpoints") / run / "config.json").read_text())["config"]
    return found


def test_each_method_has_each_preset() -> None:
    assert {method: tuple(presets) for method, presets in PRESETS.items()} == dict.fromkeys(METHODS, NAMES)
    for method, presets in PRESETS.items():
        assert [values["rank"] for values in presets.values()] == [8, 32, 64]
        batches = [values["batch"] for values in presets.values()]
        assert batches == sorted(batches)
        for name, values in presets.items():
            config = TrainConfig(method=method, preset=name, **values, **NEEDED.get(method, {}))
            assert {key: getattr(config, key) for key in values} == values
    assert PRESETS["sft"]["quick"] == {"rank": 8, "learning_rate": 1e-4, "batch": 8}
    assert PRESETS["rl"]["quick"] == {"rank": 8, "learning_rate": 1e-5, "batch": 8, "group_size": 4}
    assert PRESETS["dpo"]["quality"] == {"rank": 64, "learning_rate": 5e-6, "batch": 256}


BESIDE: dict[str, st.SearchStrategy[Any]] = {
    "rank": st.integers(1, 99),
    "learning_rate": st.floats(1e-6, 1) | st.just("auto"),
    "batch": st.integers(1, 99),
    "group_size": st.integers(2, 99),
    "seed": st.integers(0, 9),
}


@given(
    st.sampled_from(METHODS), st.sampled_from(NAMES), st.fixed_dictionaries({}, optional=BESIDE),
    st.fixed_dictionaries({}, optional={name: st.lists(kind, min_size=1) for name, kind in BESIDE.items()}),
)  # fmt: skip
def test_what_is_given_beside_a_preset_wins(
    method: MethodName, name: PresetName, beside: dict[str, Any], grid: dict[str, list[Any]]
) -> None:
    values = {"method": method, "preset": name, **{key: value for key, value in beside.items() if key not in grid}}
    places = {key: f"the place of {key}" for key in values | grid}
    found, words = with_preset(Given(values, places, grid))
    preset = PRESETS[method][name]
    assert found.grid == grid
    assert found.values == {key: value for key, value in preset.items() if key not in grid} | values
    assert {key: found.places[key] for key in places} == places
    for key, value in preset.items():
        if key in values or key in grid:
            assert not words or f"the place of {key}" in words.partition("; ")[2]
        else:
            assert f"{key.replace('_', ' ')} {value}" in words.partition("; ")[0]
    assert with_preset(found) == (found, "")


def test_it_is_said_what_a_preset_sets() -> None:
    def said(**options: str) -> str:
        return with_preset(from_options(options))[1]

    assert said(rank="3") == ""
    assert said(preset="quick") == "preset quick: rank 8, learning rate 0.0001, batch 8"
    assert said(preset="quick", rank="4") == "preset quick: learning rate 0.0001, batch 8; --rank given wins"
    assert said(preset="standard", method="rl", rank="4,8", batch="2") == (
        "preset standard: learning rate 1e-05, group size 8; --rank and --batch given win"
    )
    # Weights to start from have their rank.
    assert said(preset="quick", load_checkpoint_path="a") == "preset quick: learning rate 0.0001, batch 8"


def test_runs_and_files_hold_plain_values_and_runs_go_on_as_they_were_started(train: Tt, tt: Tt) -> None:
    Path("run.yaml").write_text("preset: quick\nmodel: {lora_rank: 2}\n")
    printed = train("--config", "run.yaml", "--print-config")
    said = "preset quick: learning rate 0.0001, batch 8; run.yaml:2: model.lora_rank given wins"
    assert said in printed.err
    Path("printed.yaml").write_text(printed.out)
    first = train("--config", "run.yaml", "--run-name", "first")
    assert first.code == 0, first.err
    second = train("--config", "printed.yaml", "--run-name", "second")
    assert second.code == 0, second.err
    assert "preset quick:" not in second.err  # all of it is in the file
    found = config_in("first")
    assert [found[name] for name in ("preset", "rank", "learning_rate", "batch")] == ["quick", 2, 1e-4, 8]
    assert config_in("second") | {"run_name": "first"} == found

    # --rank and the like of the preset are not asked for when the run goes on.
    again = tt("train", "--resume", "checkpoints/first", "--preset", "quick", "--max-steps", 3)
    assert (again.code, "is finished, with its learning rate" in again.err) == (2, True), again.err
    again = tt("train", "--resume", "checkpoints/first", "--preset", "quick")
    assert (again.code, "preset quick" in again.err) == (0, False), again.err
    behavior = ["--behavior-if-log-dir-exists", "resume", "--run-name", "first"]
    assert train("--preset", "quick", *behavior).code == 0
    other = tt("train", "--resume", "checkpoints/first", "--preset", "quality")
    assert other.code == 2
    assert "--preset quality: the run was started with quick" in other.err


def test_a_sweep_takes_a_preset_for_what_it_does_not_vary(train: Tt) -> None:
    found = train("--preset", "quick", "--rank", "2,3", "--run-name", "s", "--val-fraction", 0.2, "--dry-run")
    assert found.code == 0, found.err
    assert "preset quick: learning rate 0.0001, batch 8; --rank given wins" in found.err
    assert "batch_size: 8" in found.err


@pytest.mark.parametrize(
    ("method", "family", "hidden", "recipe"),
    [
        ("dpo", "llama", 2048, 1e-5), ("reward", "llama", 3072, 3e-4), ("rl", "qwen3", 4096, 2e-5),
        ("distill", "qwen3", 4096, 1e-4), ("selfplay", "qwen3", 2560, 3e-5),
    ],
)  # fmt: skip
def test_the_learning_rate_of_a_method_is_near_to_the_recipe_it_comes_from(
    method: MethodName, family: str, hidden: int, recipe: float
) -> None:
    rate, why = of_method(*auto_learning_rate(family, hidden), method)
    assert recipe / 1.3 < rate < recipe * 1.3
    assert (f"for --method {method}" in why) is (method != "reward")


def test_the_learning_rate_of_sft_is_the_published_one() -> None:
    assert of_method(*auto_learning_rate("qwen3", 4096), "sft") == auto_learning_rate("qwen3", 4096)
    assert of_method(*auto_learning_rate("gpt2", 768), "rl")[0] == pytest.approx(FALLBACK_LEARNING_RATE / 20)
