"""Learning rates against closed forms and published values, and in the logs of real runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupting import interrupted_at
from run_files import log_of, sums, write_rows

from tinkertools.config import MOST, Schedule
from tinkertools.schedules import auto_learning_rate, learning_rate_at

Tt = Callable[..., Any]
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "constant")
PEAKS = st.floats(1e-8, 10)


def rates_of(total: int, peak: float, schedule: Schedule, warmup: int) -> np.ndarray:
    return np.array([learning_rate_at(step, total, peak, schedule, warmup) for step in range(1, total + 1)])


def closed_form(total: int, peak: float, schedule: Schedule, warmup: int) -> np.ndarray:
    """All steps at once: up to the peak in `warmup` equal parts, then down the rest, each step a part of it."""
    up = np.linspace(0, peak, warmup + 1)[1:][:total] if warmup else np.zeros(0)
    left = max(0, total - warmup)
    share = np.linspace(0, 1, left + 1)[:-1]
    down = {
        "linear": peak - peak * share,
        "cosine": peak * np.cos(np.pi * share / 2) ** 2,
        "constant": peak + 0 * share,
    }
    return np.concatenate([up, down[schedule]])


@pytest.mark.parametrize(
    ("model", "model_type", "hidden", "published"),
    [
        ("Llama-3.2-1B", "llama", 2048, 4.91e-4),
        ("Llama-3.1-8B", "llama", 4096, 2.86e-4),
        ("Llama-3.1-70B", "llama", 8192, 1.66e-4),
        ("Qwen3-8B", "qwen3", 4096, 4.73e-4),
    ],
)
def test_published_learning_rates(model: str, model_type: str, hidden: int, published: float) -> None:
    rate, why = auto_learning_rate(model_type, hidden)
    assert float(f"{rate:.3g}") == pytest.approx(published, abs=1.1e-6), model
    assert why == f"published formula for {'Llama' if model_type == 'llama' else 'Qwen'}, hidden size {hidden}"


def test_families_without_a_formula() -> None:
    rate, why = auto_learning_rate("gemma3_text", 2560)
    assert rate == 1e-4
    assert why == "no published formula for 'gemma3_text' models"


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(st.integers(1, 500), st.integers(0, 600), PEAKS)
def test_schedules_have_their_closed_forms(schedule: Schedule, total: int, warmup: int, peak: float) -> None:
    rates = rates_of(total, peak, schedule, warmup)
    np.testing.assert_allclose(rates, closed_form(total, peak, schedule, warmup), rtol=1e-9, atol=1e-12 * peak)
    assert (rates > 0).all()
    assert (rates <= peak).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(st.integers(2, 500), st.integers(1, 500), PEAKS)
def test_a_warm_up_rises_to_the_peak_and_a_schedule_falls_from_it(
    schedule: Schedule, total: int, warmup: int, peak: float
) -> None:
    rates = rates_of(total, peak, schedule, warmup)
    assert (np.diff(rates[:warmup]) > 0).all()
    falling = np.diff(rates[warmup:])
    assert (falling == 0).all() if schedule == "constant" else (falling < 0).all()
    if warmup < total:
        assert rates[warmup - 1] == rates[warmup] == peak == rates.max()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_as_long_as_the_run_or_longer_only_rises(schedule: Schedule) -> None:
    assert rates_of(4, 1.0, schedule, 4).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert rates_of(4, 1.0, schedule, 8).tolist() == [0.125, 0.25, 0.375, 0.5]
    assert rates_of(1, 1.0, schedule, 1).tolist() == [1.0]
    assert rates_of(1, 1.0, schedule, 0).tolist() == [1.0]
    assert 0 < rates_of(1, 1.0, schedule, MOST)[0] < 1e-18


def test_rates_of_four_steps_by_hand() -> None:
    assert rates_of(4, 1.0, "linear", 0).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert rates_of(4, 1.0, "cosine", 0) == pytest.approx([1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    assert rates_of(4, 1.0, "constant", 0).tolist() == [1.0] * 4
    assert rates_of(4, 1.0, "linear", 2).tolist() == [0.5, 1.0, 1.0, 0.5]


# In real runs.

PEAK, WARMUP, STEPS, STOPPED_AFTER = 1e-3, 2, 7, 4
WEIGHTS = "final_lora_weights/adapter_model.safetensors"


@pytest.fixture
def start(tt: Tt, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start a run on twelve conversations; curves take most of its time."""
    monkeypatch.setattr("tinkertools.runs.plots.write_plots", lambda *_: None)
    write_rows(tmp_path / "data.jsonl", sums(12))
    return lambda name, *more: tt(
        "train", "--base-model", tiny, "--data", "data.jsonl", "--batch", 4, "--rank", 2, "--learning-rate", PEAK,
        "--warmup-steps", WARMUP, "--max-steps", STEPS, "--run-name", name, *more,
    )  # fmt: skip


def logged(name: str) -> list[float]:
    steps = log_of(Path("checkpoints") / name)["steps"]
    assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1))
    return [entry["learning_rate"] for entry in steps]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_log_has_the_rates_of_every_step_also_of_a_run_that_was_interrupted(
    tt: Tt, start: Callable[..., Any], schedule: Schedule
) -> None:
    assert start("whole", "--lr-schedule", schedule).code == 0
    np.testing.assert_allclose(logged("whole"), closed_form(STEPS, PEAK, schedule, WARMUP))
    with interrupted_at(STOPPED_AFTER - 1):
        assert start("stopped", "--lr-schedule", schedule).code == 130
    assert len(logged("stopped")) == STOPPED_AFTER
    assert tt("train", "--resume", "stopped").code == 0
    assert logged("stopped") == logged("whole")
    assert Path("checkpoints/stopped", WEIGHTS).read_bytes() == Path("checkpoints/whole", WEIGHTS).read_bytes()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_made_longer_follows_the_new_number_of_steps_from_then_on(
    tt: Tt, start: Callable[..., Any], schedule: Schedule
) -> None:
    with interrupted_at(STOPPED_AFTER - 1):
        assert start("run", "--lr-schedule", schedule).code == 130
    longer = STEPS + 4
    assert tt("train", "--resume", "run", "--max-steps", longer).code == 0
    before = closed_form(STEPS, PEAK, schedule, WARMUP)[:STOPPED_AFTER]
    after = closed_form(longer, PEAK, schedule, WARMUP)[STOPPED_AFTER:]
    np.testing.assert_allclose(logged("run"), np.concatenate([before, after]))


def test_a_run_shorter_than_its_warm_up_only_rises(start: Callable[..., Any]) -> None:
    assert start("run", "--warmup-steps", 6, "--max-steps", 3, "--lr-schedule", "cosine").code == 0
    np.testing.assert_allclose(logged("run"), [PEAK / 6, PEAK / 3, PEAK / 2])


def test_auto_is_said_and_is_where_a_run_starts(start: Callable[..., Any], tiny: str) -> None:
    hidden = json.loads((Path(tiny) / "config.json").read_text())["hidden_size"]
    found = start("run", "--learning-rate", "auto", "--warmup-steps", 0, "--max-steps", 1)
    assert found.code == 0, found.err
    rate = 5e-4 * (2000 / hidden) ** 0.0775
    assert f"learning rate: {rate:.3g} (published formula for Qwen, hidden size {hidden})" in found.err
    assert logged("run") == [pytest.approx(rate)]
