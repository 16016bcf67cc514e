"""The losses against their published formulas in float64: values, gradients, settings, and what overflows."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tinkertools.local.failures import BadRequest
from tinkertools.local.losses import LOSSES, Inputs, settings_of, total

SETTINGS: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
}


def ppo(p: torch.Tensor, q: torch.Tensor, a: torch.Tensor, low: float, high: float) -> torch.Tensor:
    ratio = torch.exp(p - q)
    return -torch.min(ratio * a, torch.clamp(ratio, low, high) * a)


def cispo(p: torch.Tensor, q: torch.Tensor, a: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return -(torch.clamp(torch.exp(p - q), low, high).detach() * p * a)


PUBLISHED: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": lambda p, q, a, s: -p,
    "importance_sampling": lambda p, q, a, s: -(torch.exp(p - q) * a),
    "ppo": lambda p, q, a, s: ppo(p, q, a, s["clip_low_threshold"], s["clip_high_threshold"]),
    "cispo": lambda p, q, a, s: cispo(p, q, a, s["clip_low_threshold"], s["clip_high_threshold"]),
    "dro": lambda p, q, a, s: -(p * a - 0.5 * s["beta"] * (p - q) ** 2),
}

logprob = st.floats(-12, 0, width=32)
token = st.tuples(
    logprob, logprob, st.sampled_from([0.0, 1.0, -1.0, 0.3, -2.5]), st.sampled_from([0.0, 0.0, 1.0, 0.125])
)


def tensors(rows: list[tuple[float, float, float, float]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The learner's logprobs (T,), and the inputs of any loss."""
    p, q, a, w = torch.tensor(rows, dtype=torch.float32).T
    return p.contiguous(), {"logprobs": q, "advantages": a, "weights": w}


def inputs_of(name: str, given_: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: given_[key] for key in LOSSES[name].inputs}


@pytest.mark.parametrize("name", LOSSES)
@given(rows=st.lists(token, min_size=1, max_size=12), low=st.floats(0, 2), width=st.floats(0, 3))
def test_values_and_gradients_are_those_of_the_formula(name: str, rows: list[Any], low: float, width: float) -> None:
    loss, settings = LOSSES[name], SETTINGS[name]
    if name in ("ppo", "cispo"):
        settings = {"clip_low_threshold": low, "clip_high_threshold": low + width}
    logprobs, given_ = tensors(rows)
    if name == "ppo":
        # At a threshold itself, where the gradient jumps, rounding says on which side of it a token is.
        ratios = torch.exp(logprobs - given_["logprobs"])
        assume(not any(torch.isclose(ratios, torch.tensor(each), rtol=1e-5).any() for each in settings.values()))
    ours = logprobs.clone().requires_grad_()
    wanted = loss.wanted(inputs_of(name, given_))
    values = loss.token_losses(ours, inputs_of(name, given_), settings)
    torch.where(wanted, values, 0.0).sum().backward()
    plain = logprobs.double().requires_grad_()
    q, a, w = (given_[key].double() for key in ("logprobs", "advantages", "weights"))
    expected = PUBLISHED[name](plain, q, a, settings) * w
    expected.sum().backward()
    assert ours.grad is not None and plain.grad is not None
    torch.testing.assert_close(values.detach().double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-4, atol=1e-5)
    # What is not wanted is not computed: it may matter neither to the loss nor to the gradient.
    assert not (expected.detach()[~wanted] != 0).any() and not (plain.grad[~wanted] != 0).any()
    several = [inputs_of(name, given_)] * 2
    found = total(loss, settings, [logprobs, logprobs], several)
    assert found == pytest.approx(2 * float(expected.detach().sum()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_without_weights_there_is_no_loss_whatever_else_is_sent(name: str) -> None:
    rows = [(0.0, -1e4, 1.0, 0.0), (-500.0, 3e38, -1e30, 0.0)]
    logprobs, given_ = tensors(rows)
    inputs = inputs_of(name, given_)
    assert not LOSSES[name].wanted(inputs).any()
    assert total(LOSSES[name], SETTINGS[name], [logprobs], [inputs]) == 0.0


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("cross_entropy", (-3e38, 0.0, 0.0, 1e3)),
        ("importance_sampling", (-1.0, -200.0, 1.0, 1.0)),
        ("ppo", (-1.0, -200.0, -1.0, 1.0)),  # the unclipped objective is the smaller one
        ("cispo", (-3e38, -3e38, 1e4, 1.0)),
        ("dro", (-1e30, 0.0, 0.0, 1.0)),
    ],
)
def test_what_overflows_is_refused_by_datum_and_token(name: str, row: tuple[float, ...]) -> None:
    fine = (-1.0, -1.0, 1.0, 1.0)
    one, two = tensors([fine, fine]), tensors([fine, (-1.0, 0.0, 0.0, 0.0), row])  # type: ignore[list-item]
    inputs: list[Inputs] = [inputs_of(name, one[1]), inputs_of(name, two[1])]
    with pytest.raises(BadRequest, match=r"data\[1\]: the loss or its gradient is not finite at token 2 \(log p"):
        total(LOSSES[name], SETTINGS[name], [one[0], two[0]], inputs)


def test_a_clipped_ratio_may_be_as_large_as_it_likes() -> None:
    logprobs, given_ = tensors([(-1.0, -200.0, 2.0, 1.0), (-200.0, -1.0, -1.0, 1.0)])
    ours = logprobs.clone().requires_grad_()
    values = LOSSES["ppo"].token_losses(ours, given_, SETTINGS["ppo"])
    values.sum().backward()
    assert values.tolist() == pytest.approx([-1.2 * 2, 0.8])
    assert ours.grad is not None and ours.grad.tolist() == [0.0, 0.0]
    assert total(LOSSES["cispo"], SETTINGS["cispo"], [logprobs], [given_]) == pytest.approx(4.0 * 2.0)


@pytest.mark.parametrize("name", ["ppo", "cispo"])
def test_settings_have_the_published_defaults(name: str) -> None:
    assert settings_of(name, None) == SETTINGS[name]
    assert settings_of(name, {"clip_high_threshold": 5}) == {**SETTINGS[name], "clip_high_threshold": 5.0}


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("gspo", {}, "the loss 'gspo' is not in the embedded engine"),
        ("cross_entropy", {"beta": 1.0}, "loss_fn_config of cross_entropy: beta is unknown"),
        ("ppo", {"clip_low": 0.8, "epsilon": 1}, "clip_low, epsilon is unknown"),
        ("ppo", {"clip_low_threshold": "0.8"}, "clip_low_threshold is '0.8', but must be a number"),
        ("ppo", {"clip_low_threshold": True}, "clip_low_threshold is True, but must be a number"),
        ("cispo", {"clip_high_threshold": math.inf}, "clip_high_threshold is inf"),
        ("cispo", {"clip_low_threshold": -0.1}, "clip_low_threshold is -0.1"),
        ("ppo", {"clip_low_threshold": 1.3}, "clip_low_threshold 1.3 is above clip_high_threshold 1.2"),
        ("dro", None, "dro needs beta"),
        ("dro", {"beta": math.nan}, "beta is nan"),
    ],
)
def test_wrong_settings_are_refused_by_name(name: str, config: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        settings_of(name, config)
