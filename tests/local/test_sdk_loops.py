"""Loops as the SDK's documentation has them, on the embedded engine: only the line that installs it is ours.

After https://tinker-docs.thinkingmachines.ai (quickstart, losses, async and futures), with `.result()` and without.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from tinkertools import local
from tinkertools.shipped import STARTER_MODEL

BASE_MODEL = "Qwen/Qwen3-8B"
EXAMPLES = [
    {"input": "banana split", "output": "anana-bay plit-say"},
    {"input": "quantum physics", "output": "uantum-qay ysics-phay"},
    {"input": "donut shop", "output": "onut-day op-shay"},
]


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    with local.install({BASE_MODEL: STARTER_MODEL}, store=tmp_path, device="cpu"):
        yield


def process_example(example: dict[str, str], tokenizer: Any) -> types.Datum:
    prompt = f"English: {example['input']}\nPig Latin:"
    prompt_tokens = tokenizer.encode(prompt, add_special_tokens=True)
    prompt_weights = [0] * len(prompt_tokens)
    completion_tokens = tokenizer.encode(f" {example['output']}\n\n", add_special_tokens=False)
    completion_weights = [1] * len(completion_tokens)
    tokens = prompt_tokens + completion_tokens
    weights = prompt_weights + completion_weights
    inputs: Any = {"weights": weights[1:], "target_tokens": tokens[1:]}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens=tokens[:-1]), loss_fn_inputs=inputs)


def mean_loss(output: Any, data: list[types.Datum]) -> float:
    logprobs = np.concatenate([out["logprobs"].to_numpy() for out in output.loss_fn_outputs])
    weights = np.concatenate([datum.loss_fn_inputs["weights"].to_numpy() for datum in data])
    return float(-np.dot(logprobs, weights) / weights.sum())


def itself(client: Any) -> Any:
    """How code for SDKs to 0.33 takes a client."""
    return client


def waited_for(client: Any) -> Any:
    """How code for newer ones does."""
    return client.result()


@pytest.mark.parametrize("taken", [itself, waited_for])
def test_supervised_learning(taken: Callable[[Any], Any]) -> None:
    service_client = tinker.ServiceClient()
    training_client = taken(service_client.create_lora_training_client(base_model=BASE_MODEL, rank=8, seed=1))
    tokenizer = training_client.get_tokenizer()
    data = [process_example(example, tokenizer) for example in EXAMPLES]
    losses = []
    for _ in range(12):
        fwdbwd_future = training_client.forward_backward(data, "cross_entropy")
        optim_future = training_client.optim_step(types.AdamParams(learning_rate=5e-3))
        losses.append(mean_loss(fwdbwd_future.result(), data))
        optim_future.result()
    assert losses[-1] < losses[0] / 3
    sampling_client = taken(training_client.save_weights_and_get_sampling_client())
    prompt = types.ModelInput.from_ints(tokenizer.encode("English: banana split\nPig Latin:"))
    params = types.SamplingParams(max_tokens=20, temperature=0.0, stop=["\n"])
    result = sampling_client.sample(prompt=prompt, sampling_params=params, num_samples=2).result()
    assert [len(sequence.tokens) > 0 for sequence in result.sequences] == [True, True]
    path = training_client.save_state("final").result().path
    resumed = taken(service_client.create_training_client_from_state(path))
    assert mean_loss(resumed.forward(data, "cross_entropy").result(), data) == pytest.approx(
        mean_loss(training_client.forward(data, "cross_entropy").result(), data)
    )
    sampler_path = training_client.save_weights_for_sampler(name="final").result().path
    from_file = taken(service_client.create_sampling_client(model_path=sampler_path))
    again = from_file.sample(prompt=prompt, sampling_params=params, num_samples=1).result()
    assert list(again.sequences[0].tokens) == list(result.sequences[0].tokens)


def test_supervised_learning_async() -> None:
    async def main() -> list[float]:
        service_client = tinker.ServiceClient()
        training_client = await service_client.create_lora_training_client_async(base_model=BASE_MODEL, rank=8, seed=1)
        tokenizer = training_client.get_tokenizer()
        data = [process_example(example, tokenizer) for example in EXAMPLES]
        losses = []
        for _ in range(6):
            fwd_bwd_future = await training_client.forward_backward_async(data, "cross_entropy")
            optim_future = await training_client.optim_step_async(types.AdamParams(learning_rate=5e-3))
            fwd_bwd_result = await fwd_bwd_future
            await optim_future.result_async()
            losses.append(mean_loss(fwd_bwd_result, data))
        sampling_client = await training_client.save_weights_and_get_sampling_client_async()
        prompt = types.ModelInput.from_ints(tokenizer.encode("English: banana split\nPig Latin:"))
        params = types.SamplingParams(max_tokens=5, temperature=1.0, seed=1)
        answers = await asyncio.gather(*(sampling_client.sample_async(prompt, 1, params) for _ in range(4)))
        assert len({tuple(answer.sequences[0].tokens) for answer in answers}) == 1
        saved = await (await training_client.save_state_async("s"))
        resumed = await service_client.create_training_client_from_state_with_optimizer_async(saved.path)
        assert (await resumed.get_info_async()).lora_rank == 8
        return losses

    losses = asyncio.run(main())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("loss_fn", "config"), [("importance_sampling", None), ("ppo", None), ("dro", {"beta": 0.05})])
def test_reinforcement_learning(loss_fn: Any, config: Any) -> None:
    """Answers that begin with one of half of the tokens are rewarded; they become more."""
    service_client = tinker.ServiceClient()
    training_client: Any = service_client.create_lora_training_client(base_model=BASE_MODEL, rank=8, seed=1)
    tokenizer = training_client.get_tokenizer()
    prompt = types.ModelInput.from_ints(tokenizer.encode("Hello"))
    rewards = []
    for step in range(6):
        sampling_client: Any = training_client.save_weights_and_get_sampling_client()
        params = types.SamplingParams(max_tokens=4, temperature=1.0, seed=1000 * step)
        sequences = sampling_client.sample(prompt=prompt, num_samples=32, sampling_params=params).result().sequences
        reward = np.array([float(sequence.tokens[0] % 2 == 0) for sequence in sequences])
        advantages = reward - reward.mean()
        rewards.append(reward.mean())
        data = []
        for sequence, advantage in zip(sequences, advantages, strict=True):
            tokens = prompt.to_ints() + list(sequence.tokens)
            ob_len = prompt.length - 1
            data.append(
                types.Datum(
                    model_input=types.ModelInput.from_ints(tokens=tokens[:-1]),
                    loss_fn_inputs={
                        "target_tokens": types.TensorData.from_torch(torch.tensor(tokens[1:])),
                        "logprobs": types.TensorData.from_torch(
                            torch.tensor([0.0] * ob_len + list(sequence.logprobs or []))
                        ),
                        "advantages": types.TensorData.from_torch(
                            torch.tensor([0.0] * ob_len + [float(advantage)] * len(sequence.tokens))
                        ),
                    },
                )
            )
        fwd_bwd_future = training_client.forward_backward(data, loss_fn=loss_fn, loss_fn_config=config)
        optim_step_future = training_client.optim_step(types.AdamParams(learning_rate=2e-3))
        output = fwd_bwd_future.result()
        optim_step_future.result()
        for datum, found in zip(data, output.loss_fn_outputs, strict=True):
            # The sampler's and the learner's logprobs of what was sampled are the same.
            mask = datum.loss_fn_inputs["advantages"].to_torch() != 0
            torch.testing.assert_close(
                found["logprobs"].to_torch()[mask], datum.loss_fn_inputs["logprobs"].to_torch()[mask],
                atol=1e-4, rtol=1e-4,
            )  # fmt: skip
    assert rewards[-1] > rewards[0] + 0.2


def test_a_custom_loss_has_the_gradient_of_the_built_in_one() -> None:
    service_client = tinker.ServiceClient()
    clients: list[Any] = [service_client.create_lora_training_client(BASE_MODEL, 4, seed=3) for _ in range(2)]
    data = [process_example(example, clients[0].get_tokenizer()) for example in EXAMPLES]

    def cross_entropy(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        weights = [datum.loss_fn_inputs["weights"].to_torch() for datum in data]
        loss = sum((-(lp * w).sum() for lp, w in zip(logprobs, weights, strict=True)), torch.tensor(0.0))
        return loss, {"mine": loss.item()}

    for _ in range(3):
        built_in = clients[0].forward_backward(data, "cross_entropy")
        custom = clients[1].forward_backward_custom(data, cross_entropy)
        steps = [client.optim_step(types.AdamParams(learning_rate=1e-3)) for client in clients]
        expected, found = built_in.result().metrics["loss:sum"], custom.result().metrics
        assert found["loss:sum"] == found["mine"] == pytest.approx(expected, rel=1e-5)
        assert {"surrogate_loss:sum"} <= found.keys()
        for step in steps:
            step.result()
    for one, other in zip(*(client._base.adapter_state(client._adapter).values() for client in clients), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_custom_loss_over_pairs() -> None:
    """DPO: the gradient of a loss over several datums at once, against its formula."""
    client: Any = tinker.ServiceClient().create_lora_training_client(BASE_MODEL, 4, seed=3)
    data = [process_example(example, client.get_tokenizer()) for example in EXAMPLES[:2]]

    def preference(_: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        loss = -torch.nn.functional.logsigmoid(0.1 * (logprobs[0].sum() - logprobs[1].sum()))
        return loss, {"dpo_loss": loss.item()}

    losses = []
    for _ in range(4):
        losses.append(client.forward_backward_custom(data, preference).result().metrics["dpo_loss"])
        client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
