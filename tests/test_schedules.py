"""Learning rates against closed forms and published values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.schedules import auto_learning_rate, learning_rate_at


@pytest.mark.parametrize(
    ("model_type", "hidden", "published"),
    [("llama", 2048, 4.91e-4), ("llama", 4096, 2.86e-4), ("llama", 8192, 1.66e-4), ("qwen3", 4096, 4.73e-4)],
)
def test_published_learning_rates(model_type: str, hidden: int, published: float) -> None:
    rate, why = auto_learning_rate(model_type, hidden)
    assert rate == pytest.approx(published, rel=5e-3)
    assert "published formula" in why


def test_families_without_a_formula() -> None:
    rate, why = auto_learning_rate("gemma3_text", 2560)
    assert rate == 1e-4
    assert why == "no published formula for 'gemma3_text' models"


@given(st.integers(1, 500), st.integers(0, 50), st.floats(1e-6, 1e-2))
def test_schedules_have_their_closed_forms(total: int, warmup: int, peak: float) -> None:
    for step in range(1, total + 1):
        rates = {s: learning_rate_at(step, total, peak, s, warmup) for s in ("linear", "cosine", "constant")}
        if step <= warmup:
            assert set(rates.values()) == {peak * step / warmup}
            continue
        share = (step - 1 - warmup) / (total - warmup)
        assert rates["constant"] == peak
        assert rates["linear"] == pytest.approx(peak * (1 - share))
        assert rates["cosine"] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * share)))
        assert 0 < rates["linear"] <= peak
