"""Losses of preferences: their values and gradients against plain PyTorch and TRL, and the engine's steps with them."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinker import types
from transformers import AutoModelForCausalLM

from tinkertools.chat.datums import to_datum
from tinkertools.chat.examples import Example
from tinkertools.chat.pairs import Pair
from tinkertools.config import TrainConfig
from tinkertools.local import ServiceClient
from tinkertools.methods.dpo import DirectObjective, direct_objective
from tinkertools.methods.preferences import Objective, answer_sums, forward_sums, loss_of, share_right, sides
from tinkertools.methods.reference import Reference
from tinkertools.methods.reward import score_objective
from tinkertools.scoring import LARGEST_LOGPROB, score, score_tensor

BETA, EPSILON = 0.3, 0.1
VALUES = st.lists(st.floats(-60, 0), min_size=4, max_size=4)


def example(tokens: list[int], trained: int) -> Example:
    """The last `trained` tokens have a weight."""
    weights = np.zeros(len(tokens), np.float32)
    weights[-trained:] = 1
    return Example(np.array(tokens, np.int32), weights)


PAIRS = [
    Pair(example([5, 9, 200, 31, 7, 2], 3), example([5, 9, 200, 77, 2], 2), 0.0, 0),
    Pair(example([11, 12, 13, 14], 1), example([11, 12, 13, 15], 1), 0.5, 1),
    Pair(example([700, 2000, 41, 42, 43], 3), example([700, 2000, 1, 2, 3, 4, 5], 5), 0.0, 2),
]


def objective(reference: Reference, **settings: Any) -> DirectObjective:
    config = TrainConfig(method="dpo", beta=BETA, **settings)
    return direct_objective(config, PAIRS, reference)


# TRL's own code is run on given logprobs: a model that "computes" them, in the place of the policy and the reference.


def trl_loss(
    logprobs: tuple[torch.Tensor, torch.Tensor], reference: Reference, kind: str, smoothing: float
) -> torch.Tensor:
    """What `trl.DPOTrainer` makes of the sums of logprobs of the sides of PAIRS."""
    from trl.trainer.dpo_trainer import DPOTrainer

    examples = [pair.chosen for pair in PAIRS] + [pair.rejected for pair in PAIRS]
    longest = max(len(one.tokens) for one in examples)
    ids, mask = torch.zeros(len(examples), longest, dtype=torch.long), torch.zeros(len(examples), longest)
    for row, one in enumerate(examples):
        ids[row, : len(one.tokens)] = torch.from_numpy(one.tokens.astype(np.int64))
        mask[row, : len(one.tokens)] = torch.from_numpy(one.weights)
    sums = torch.cat(logprobs)
    # The sum of an answer, spread over its tokens.
    per_token = mask[:, 1:] * (sums / mask.sum(1))[:, None]
    zeros = torch.zeros_like(per_token)
    outputs = SimpleNamespace(
        log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), logits=None, loss=None
    )
    accelerator = SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x, device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(
        accelerator=accelerator, model=SimpleNamespace(training=True), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=BETA,
        label_smoothing=smoothing, _metrics={"train": _Lists()}, _total_train_tokens=0, _tp_size=1,
        use_weighting=False, tools=None,
    )  # fmt: skip
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask.long(),
        "ref_chosen_logps": torch.tensor(reference.chosen, dtype=torch.float64),
        "ref_rejected_logps": torch.tensor(reference.rejected, dtype=torch.float64),
    }  # fmt: skip
    compute: Any = DPOTrainer._compute_loss
    found: torch.Tensor = compute(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return found


class _Lists(dict[str, list[Any]]):
    def __missing__(self, key: str) -> list[Any]:
        return self.setdefault(key, [])


@pytest.mark.parametrize(("kind", "trls", "smoothing"), [
    ("sigmoid", "sigmoid", 0.0), ("sigmoid", "robust", EPSILON), ("ipo", "ipo", 0.0),
])  # fmt: skip
def test_the_loss_and_its_gradient_are_trls(kind: str, trls: str, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (
        (-20 * torch.rand(3, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(2)
    )
    reference = Reference([-9.0, -4.0, -12.0], [-8.0, -5.0, -11.0])
    ours = objective(reference, preference_loss=kind, label_smoothing=smoothing)
    ours = DirectObjective(**(vars(ours) | {"margins": torch.zeros(3, dtype=torch.float64)}))
    value, figures = ours(chosen, rejected, range(3))
    theirs = trl_loss((chosen, rejected), reference, trls, smoothing)
    if trls == "robust":
        # TRL's smoothed loss is that of Chowdhury et al., a combination of the same two terms with one sign turned.
        delta = BETA * ((chosen - rejected) - (torch.tensor(reference.chosen) - torch.tensor(reference.rejected)))
        flipped = torch.nn.functional.softplus(delta).mean()
        theirs = theirs * (1 - 2 * smoothing) + 2 * smoothing * flipped
    assert float(value.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert figures["loss"] == float(value.detach())
    own = torch.autograd.grad(value, (chosen, rejected))
    trl = torch.autograd.grad(theirs, (chosen, rejected))
    torch.testing.assert_close(own, trl, rtol=1e-5, atol=1e-8)


@given(VALUES, VALUES, st.sampled_from(["sigmoid", "ipo"]))
def test_figures_by_their_definitions(now: list[float], before: list[float], kind: str) -> None:
    reference = Reference([*before[:2], -1.0], [*before[2:], -1.0])
    numbers = [1, 0]  # in another order than the pairs
    chosen, rejected = (torch.tensor(side, dtype=torch.float64) for side in (now[:2], now[2:]))
    _, figures = objective(reference, preference_loss=kind)(chosen, rejected, numbers)
    losses, rewards, kl, right = [], [], [], []
    for place, number in enumerate(numbers):
        good = now[place] - reference.chosen[number]
        bad = now[2 + place] - reference.rejected[number]
        lengths = [PAIRS[number].chosen.trained_tokens, PAIRS[number].rejected.trained_tokens]
        x = BETA * (good - bad) - PAIRS[number].margin
        ipo = (good / lengths[0] - bad / lengths[1] - 1 / (2 * BETA)) ** 2
        losses.append(ipo if kind == "ipo" else max(0, -x) + math.log1p(math.exp(-abs(x))))
        rewards.append((BETA * good, BETA * bad))
        kl.append((good + bad) / sum(lengths))
        right.append(0.5 if good == bad else float(good > bad))
    wanted = {
        "loss": sum(losses) / 2, "accuracy": sum(right) / 2, "margin": sum(a - b for a, b in rewards) / 2,
        "chosen_reward": sum(a for a, _ in rewards) / 2, "rejected_reward": sum(b for _, b in rewards) / 2,
        "kl": sum(kl) / 2,
    }  # fmt: skip
    assert figures == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_ties_count_half() -> None:
    assert share_right(torch.tensor([1.0, 0.0, -1.0, 0.0])) == 0.5
    assert share_right(torch.tensor([2.0, 0.0])) == 0.75


def test_what_has_no_weight_may_be_anything() -> None:
    logprobs = torch.tensor([-math.inf, -2.0, -3.0], requires_grad=True)
    (found,) = answer_sums([torch.tensor([0.0, 1.0, 1.0])], [logprobs])
    assert found.tolist() == -5
    assert torch.autograd.grad(found, logprobs)[0].tolist() == [0, 1, 1]


# Scores.


@given(st.floats(-80, -1e-9))
def test_a_score_is_the_logit(logprob: float) -> None:
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    kept = Decimal(min(logprob, LARGEST_LOGPROB))
    wanted = float(kept - (1 - kept.exp()).ln())
    assert score(logprob) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert float(score_tensor(torch.tensor([logprob], dtype=torch.float64))) == pytest.approx(
        wanted, rel=1e-9, abs=1e-12
    )


def test_scores_end_where_float32_does_and_so_do_their_gradients() -> None:
    x = torch.tensor([0.0, -1e-12, -1.0, -math.log(2)], dtype=torch.float64, requires_grad=True)
    found = score_tensor(x)
    assert found[:2].tolist() == pytest.approx([24 * math.log(2)] * 2, rel=1e-6)
    assert float(found[3].detach()) == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.tolist() == pytest.approx([2.0**24, 2.0**24, 1 / (1 - math.exp(-1)), 2], rel=1e-6)


def test_the_reward_models_loss() -> None:
    chosen, rejected = torch.tensor([-0.5, -3.0]).double(), torch.tensor([-2.0, -1.0]).double()
    for tensor in (chosen, rejected):
        tensor.requires_grad_()
    value, figures = score_objective(EPSILON, PAIRS)(chosen, rejected, [0, 1])
    first, second = torch.logit(chosen.exp()), torch.logit(rejected.exp())
    x = first - second - torch.tensor([0.0, 0.5])
    wanted = ((1 - EPSILON) * torch.nn.functional.softplus(-x) + EPSILON * torch.nn.functional.softplus(x)).mean()
    assert float(value) == pytest.approx(float(wanted), rel=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(value, (chosen, rejected)), torch.autograd.grad(wanted, (chosen, rejected))
    )
    assert figures == pytest.approx({
        "loss": float(wanted), "accuracy": 0.5, "margin": float((first - second).mean()),
        "chosen_reward": float(first.mean()), "rejected_reward": float(second.mean()),
    })  # fmt: skip


# The engine's step with these losses against autograd over the whole model.


def plain_logprobs(model: Any, weights: dict[str, torch.Tensor], one: Example) -> torch.Tensor:
    ids = torch.from_numpy(one.tokens.astype(np.int64))[None]
    logits = torch.func.functional_call(model, weights, (ids[:, :-1],), tie_weights=False).logits[0]
    found: torch.Tensor = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return found


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "reward"])
def test_a_step_is_plain_pytorchs(service: ServiceClient, untied: str, kind: str) -> None:
    client = service.create_lora_training_client(untied, 4, seed=3)
    sums = [float(value) for _, part in forward_sums(client, PAIRS, 2) for value in part]
    reference = Reference(sums[0::2], sums[1::2])
    wanted: Objective
    if kind == "reward":
        last = [Pair(example(p.chosen.tokens.tolist(), 1), example(p.rejected.tokens.tolist(), 1), p.margin, p.origin)
                for p in PAIRS]  # fmt: skip
        pairs, wanted = last, score_objective(EPSILON, last)
    else:
        pairs, wanted = PAIRS, objective(reference, preference_loss=kind, label_smoothing=EPSILON * (kind == "sigmoid"))
    data = [to_datum(one) for one in sides(pairs)]
    # B is zero at first, and A has no gradient then: one step of something else before it.
    client.forward_backward(data, "cross_entropy").result()
    client.optim_step(types.AdamParams(learning_rate=5e-2)).result()
    state = {name: value.clone() for name, value in client._trainer.base.adapter_state(client._adapter).items()}
    output = client.forward_backward_custom(data, loss_of(wanted, range(3))).result()
    ours = {
        f"base_model.model.{name.replace(f'.{client._adapter}', '')}": parameter.grad
        for name, parameter in client._trainer.parameters.items()
    }

    model = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32)
    model.requires_grad_(False)
    factors = {name: value.clone().requires_grad_() for name, value in state.items()}
    merged = {}
    for name, a in factors.items():
        if ".lora_A." in name:
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            b = factors[name.replace("lora_A", "lora_B")]
            merged[target] = model.get_parameter(target) + 32 / a.shape[0] * b @ a
    found = [plain_logprobs(model, merged, one) for one in sides(pairs)]
    totals = [lp[torch.from_numpy(one.weights[1:]) != 0].sum() for lp, one in zip(found, sides(pairs), strict=True)]
    losses = []
    for i, pair in enumerate(pairs):
        good, bad = totals[2 * i], totals[2 * i + 1]
        if kind == "ipo":
            gains = [(good - reference.chosen[i]) / pair.chosen.trained_tokens,
                     (bad - reference.rejected[i]) / pair.rejected.trained_tokens]  # fmt: skip
            losses.append((gains[0] - gains[1] - 1 / (2 * BETA)) ** 2)
            continue
        x = (
            torch.logit(good.exp()) - torch.logit(bad.exp())
            if kind == "reward"
            else BETA * (good - reference.chosen[i] - bad + reference.rejected[i])
        ) - pair.margin
        losses.append(-(1 - EPSILON) * torch.log(torch.sigmoid(x)) - EPSILON * torch.log(torch.sigmoid(-x)))
    loss = torch.stack(losses).mean()
    loss.backward()
    assert output.metrics["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert ours.keys() == factors.keys()
    for name, value in ours.items():
        assert value is not None
        assert float(value.abs().max()) > 0
        torch.testing.assert_close(value, factors[name].grad, rtol=2e-3, atol=2e-5)
