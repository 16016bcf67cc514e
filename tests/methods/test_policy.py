"""Datums and losses of what a model sampled, against Transformers' own logprobs and the published formulas."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from tinker import types
from transformers import AutoModelForCausalLM

from tinkertools import local
from tinkertools.chat.examples import IMAGE_TOKEN, Image, Prompt
from tinkertools.config import PolicyLoss
from tinkertools.methods.policy import policy_datum, policy_loss, policy_loss_config

PROMPT = Prompt(np.array([5, 6, 7], np.int32))


def test_an_answer_is_shifted_once_and_its_prompt_counts_for_nothing() -> None:
    datum = policy_datum(PROMPT, [8, 9], [-0.5, -1.25], [2.0, -0.25])
    assert datum.model_input.to_ints() == [5, 6, 7, 8]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [6, 7, 8, 9]
    assert datum.loss_fn_inputs["target_tokens"].dtype == "int64"
    assert datum.loss_fn_inputs["logprobs"].tolist() == [0, 0, -0.5, -1.25]
    assert datum.loss_fn_inputs["advantages"].tolist() == [0, 0, 2.0, -0.25]
    assert datum.loss_fn_inputs["advantages"].dtype == datum.loss_fn_inputs["logprobs"].dtype == "float32"


def test_a_prompt_of_one_token_and_an_answer_of_one() -> None:
    datum = policy_datum(Prompt(np.array([5], np.int32)), [8], [-0.5], [1.0])
    assert datum.model_input.to_ints() == [5]
    assert [datum.loss_fn_inputs[name].tolist() for name in ("target_tokens", "logprobs", "advantages")] == [
        [8], [-0.5], [1.0],
    ]  # fmt: skip


def test_an_image_stays_in_its_place_and_is_no_target() -> None:
    tokens = np.array([5, IMAGE_TOKEN, IMAGE_TOKEN, 7], np.int32)
    datum = policy_datum(Prompt(tokens, (Image(1, 2, b"png", "png"),)), [8], [-0.5], [1.0])
    assert [chunk.length for chunk in datum.model_input.chunks] == [1, 2, 1]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [0, 0, 7, 8]


@pytest.mark.parametrize(
    ("logprobs", "advantages"), [([-1.0], [1.0, 1.0]), ([-1.0, -1.0], [1.0]), ([-1.0, -1.0, 0.0], [1.0, 1.0])]
)
def test_an_answer_with_other_numbers_than_tokens_is_a_mistake(logprobs: list[float], advantages: list[float]) -> None:
    with pytest.raises(ValueError, match="2 tokens"):
        policy_datum(PROMPT, [8, 9], logprobs, advantages)
    with pytest.raises(ValueError, match="0 tokens"):
        policy_datum(PROMPT, [], [], [])


def own_logprobs(model: str, tokens: list[int]) -> torch.Tensor:
    """log p of each token but the first, by Transformers."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = loaded(torch.tensor([tokens])).logits[0].double()
    return torch.log_softmax(logits[:-1], -1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]


def by_formula(loss: str, ratio: float, logprob: float, advantage: float) -> float:
    """The loss of a token: https://tinker-docs.thinkingmachines.ai/tinker/losses."""
    if loss == "importance_sampling":
        return -ratio * advantage
    if loss == "ppo":
        return -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    return -min(max(ratio, 0.0), 4.0) * logprob * advantage


@pytest.mark.parametrize("loss", get_args(PolicyLoss))
def test_the_loss_is_that_of_the_published_formula(loss: PolicyLoss, untied: str, tmp_path: Path) -> None:
    answers = [[8, 9, 2], [11, 2]]
    advantages = [[0.75, 0.0, -0.5], [-2.0, 1.5]]
    shifts = [[0.4, 1.0, -0.1], [0.5, -0.6]]  # the sampler was another than what is trained
    logprobs = [own_logprobs(untied, [5, 6, 7, *answer])[2:].tolist() for answer in answers]
    datums = [
        policy_datum(PROMPT, answer, [p - shift for p, shift in zip(own, shifted, strict=True)], advantage)
        for answer, own, shifted, advantage in zip(answers, logprobs, shifts, advantages, strict=True)
    ]
    expected = sum(
        by_formula(loss, math.exp(shift), p, advantage)
        for rows in zip(logprobs, shifts, advantages, strict=True)
        for p, shift, advantage in zip(*rows, strict=True)
    )
    with local.ServiceClient(store=tmp_path) as service:
        client = service.create_lora_training_client(untied, rank=4, seed=0)
        output = client.forward_backward(datums, loss, policy_loss_config(loss)).result()
        # Chunks of a step add up to it.
        parts = [client.forward([datum], loss, policy_loss_config(loss)).result() for datum in datums]
    assert policy_loss(loss, datums, output) == pytest.approx(expected, rel=1e-4)
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4)
    assert sum(policy_loss(loss, [d], part) for d, part in zip(datums, parts, strict=True)) == pytest.approx(
        expected, rel=1e-4
    )


def test_thresholds_are_said_and_none_where_there_are_none() -> None:
    assert policy_loss_config("importance_sampling") is None
    assert policy_loss_config("ppo") == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert policy_loss_config("cispo") == {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}


def test_tokens_without_an_advantage_cost_nothing_whatever_an_engine_says_of_them() -> None:
    datum = policy_datum(PROMPT, [8, 9], [-0.5, -1.25], [0.0, 1.0])
    told = types.TensorData.from_torch(torch.tensor([0.0, -700.0, 0.0, -1.25]))
    output = types.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=[{"logprobs": told}], metrics={}
    )
    assert policy_loss("importance_sampling", [datum], output) == pytest.approx(-1.0)
