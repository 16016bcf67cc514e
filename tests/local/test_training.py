"""The embedded engine's training against plain PyTorch: losses, gradients, Adam, saved states, isolation."""

import asyncio
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tinker import types
from transformers import AutoModelForCausalLM

from tinkertools.errors import EngineError
from tinkertools.local import ServiceClient
from tinkertools.local.trainer import _ADAM
from tinkertools.local.training import TrainingClient

ALPHA = 32


def datum(tokens: Sequence[int], weights: Sequence[float] | None = None) -> types.Datum:
    """Next-token targets, as everybody makes them."""
    w = [1.0] * (len(tokens) - 1) if weights is None else list(weights)
    return types.Datum(
        model_input=types.ModelInput.from_ints(list(tokens[:-1])),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_torch(torch.tensor(tokens[1:])),
            "weights": types.TensorData.from_torch(torch.tensor(w)),
        },
    )


BATCH = [
    datum([5, 9, 200, 31, 7, 2], [0, 0, 1, 1, 1]),
    datum([11, 12, 13], [0.25, 0.5]),
    datum([700, 2000, 41, 42, 43, 44, 45, 46], [0, 0, 0, 0, 0, 0, 0]),
    datum([3, 1999]),
]


def train(client: TrainingClient, steps: int, rate: float = 5e-3) -> list[float]:
    found = []
    for _ in range(steps):
        output = client.forward_backward(BATCH, "cross_entropy")
        step = client.optim_step(types.AdamParams(learning_rate=rate))
        found.append(output.result().metrics["loss:sum"])
    step.result()
    return found


class Reference:
    """LoRA, loss and gradient written out on a plain transformers model: W + (alpha / r) · B A, full logits."""

    def __init__(self, base: str, adapter: dict[str, torch.Tensor]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model.requires_grad_(False)
        self.factors = {name: tensor.clone().requires_grad_() for name, tensor in adapter.items()}

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's matrices with their deltas, by name."""
        found = {}
        for name, a in self.factors.items():
            if name.endswith(".lora_A.weight"):
                target = name.removeprefix("base_model.model.").replace(".lora_A", "")
                b = self.factors[name.replace("lora_A", "lora_B")]
                base = self.model.get_parameter(target) if target != "lm_head.weight" else self.model.lm_head.weight
                found[target] = base + ALPHA / a.shape[0] * b @ a
        return found

    def loss(self, data: Sequence[types.Datum]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        total, logprobs = torch.zeros(()), []
        for one in data:
            ids = torch.tensor([one.model_input.to_ints()])
            output = torch.func.functional_call(self.model, self.weights(), (ids,), tie_weights=False)
            targets = one.loss_fn_inputs["target_tokens"].to_torch()
            found = output.logits[0].log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            total = total - (found * one.loss_fn_inputs["weights"].to_torch()).sum()
            logprobs.append(found.detach())
        return total, logprobs

    def gradients(self, data: Sequence[types.Datum]) -> dict[str, torch.Tensor]:
        for tensor in self.factors.values():
            tensor.grad = None
        self.loss(data)[0].backward()
        return {name: t.grad if t.grad is not None else torch.zeros_like(t) for name, t in self.factors.items()}


def adapter_of(client: TrainingClient) -> dict[str, torch.Tensor]:
    return client._base.adapter_state(client._adapter)


def gradients_of(client: TrainingClient) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in client._base.adapter_parameters(client._adapter).items():
        assert parameter.grad is not None, name
        found[f"base_model.model.{name.replace(f'.{client._adapter}', '')}"] = parameter.grad.clone()
    return found


def test_a_fresh_adapter_covers_every_linear_layer_and_changes_nothing(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=4, seed=0)
    names = adapter_of(client)
    layers = {name.split(".lora_")[0].split(".")[-1] for name in names}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    assert all(bool((t == 0).all()) == ("lora_B" in name) for name, t in names.items())
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = torch.tensor([BATCH[0].model_input.to_ints()])
    expected = (
        plain(ids).logits[0].log_softmax(-1).gather(-1, BATCH[0].loss_fn_inputs["target_tokens"].to_torch()[:, None])
    )
    found = client.forward(BATCH[:1], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch()
    torch.testing.assert_close(found, expected[:, 0].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("attn", "mlp", "unembed", "expected"),
    [
        (True, False, False, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (False, True, False, {"gate_proj", "up_proj", "down_proj"}),
        (False, False, True, {"lm_head"}),
    ],
)
def test_parts_of_the_model_can_be_switched_off(
    service: ServiceClient, tiny: str, attn: bool, mlp: bool, unembed: bool, expected: set[str]
) -> None:
    client = service.create_lora_training_client(tiny, 2, 0, train_attn=attn, train_mlp=mlp, train_unembed=unembed)
    assert {name.split(".lora_")[0].split(".")[-1] for name in adapter_of(client)} == expected
    losses_seen = train(client, 3)
    assert losses_seen[-1] < losses_seen[0]


def test_loss_and_gradient_are_those_of_plain_pytorch(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=4, seed=1)
    train(client, 3)  # B leaves zero, so that A has a gradient
    output = client.forward_backward(BATCH, "cross_entropy").result()
    reference = Reference(tiny, adapter_of(client))
    expected, logprobs = reference.loss(BATCH)
    assert output.metrics["loss:sum"] == pytest.approx(expected.item(), rel=1e-5)
    for one, found, full in zip(BATCH, output.loss_fn_outputs, logprobs, strict=True):
        weights = one.loss_fn_inputs["weights"].to_torch()
        torch.testing.assert_close(found["logprobs"].to_torch(), full * (weights != 0), atol=1e-5, rtol=1e-5)
    wanted, found_gradients = reference.gradients(BATCH), gradients_of(client)
    assert wanted.keys() == found_gradients.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-5, rtol=1e-5)


rows = st.lists(
    st.lists(st.tuples(st.integers(0, 2047), st.sampled_from([0.0, 0.0, 0.125, 1.0])), min_size=2, max_size=9),
    min_size=1,
    max_size=5,
)


@settings(max_examples=15)
@given(rows)
def test_any_lengths_and_weights_agree_with_plain_pytorch(
    service: ServiceClient, tiny: str, drawn: list[list[tuple[int, float]]]
) -> None:
    client = _client_with_gradients(service, tiny)
    data = [datum([token for token, _ in row], [weight for _, weight in row[1:]]) for row in drawn]
    output = client.forward_backward(data, "cross_entropy").result()
    reference = Reference(tiny, adapter_of(client))
    assert output.metrics["loss:sum"] == pytest.approx(reference.loss(data)[0].item(), rel=1e-5, abs=1e-6)
    found = {
        name: p.grad if p.grad is not None else torch.zeros_like(p)
        for name, p in client._base.adapter_parameters(client._adapter).items()
    }
    for name, gradient in reference.gradients(data).items():
        ours = found[name.removeprefix("base_model.model.").replace(".weight", f".{client._adapter}.weight")]
        torch.testing.assert_close(ours, gradient, atol=2e-5, rtol=1e-4)
    for parameter in client._trainer.parameters.values():
        parameter.grad = None


_trained: dict[str, TrainingClient] = {}


def _client_with_gradients(service: ServiceClient, base: str) -> TrainingClient:
    if base not in _trained:
        _trained[base] = service.create_lora_training_client(base, rank=2, seed=3)
        train(_trained[base], 2)
    return _trained[base]


def test_all_zero_weights_give_no_loss_and_no_gradient(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2, seed=0)
    output = client.forward_backward([datum([4, 5, 6], [0, 0])], "cross_entropy").result()
    assert output.metrics["loss:sum"] == 0
    before = adapter_of(client)
    metrics = client.optim_step(types.AdamParams(learning_rate=1e-2)).result().metrics
    assert metrics == {"grad_norm": 0.0}
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter_of(client).items())


def test_gradients_add_up_until_the_step(service: ServiceClient, tiny: str) -> None:
    both = service.create_lora_training_client(tiny, rank=2, seed=5)
    apart = service.create_lora_training_client(tiny, rank=2, seed=5)
    both.forward_backward(BATCH, "cross_entropy").result()
    for one in BATCH:
        apart.forward_backward([one], "cross_entropy").result()
    for name, gradient in gradients_of(both).items():
        torch.testing.assert_close(gradients_of(apart)[name], gradient, atol=1e-5, rtol=1e-4)


def test_optim_step_is_adam_with_decoupled_decay_and_clipping(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2, seed=0)
    adam = types.AdamParams(learning_rate=3e-3, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, grad_clip_norm=0.5)
    first = {name: torch.zeros_like(tensor) for name, tensor in adapter_of(client).items()}
    second = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    for step in range(1, 4):
        client.forward_backward(BATCH, "cross_entropy").result()
        before, gradients = adapter_of(client), gradients_of(client)
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()))
        assert client.optim_step(adam).result().metrics == pytest.approx({"grad_norm": norm}, rel=1e-5)
        after = adapter_of(client)
        for name, gradient in gradients.items():
            g = gradient * min(1.0, 0.5 / (norm + 1e-6))
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.9 * second[name] + 0.1 * g * g
            moved = (first[name] / (1 - 0.8**step)) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-6)
            expected = before[name] * (1 - 3e-3 * 0.1) - 3e-3 * moved
            torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=1e-4)


def test_training_drives_the_loss_down_and_repeats_to_the_bit(service: ServiceClient, tiny: str) -> None:
    first = service.create_lora_training_client(tiny, rank=4, seed=7)
    second = service.create_lora_training_client(tiny, rank=4, seed=7)
    losses_seen = train(first, 15)
    assert losses_seen[-1] < losses_seen[0] / 2
    assert train(second, 15) == losses_seen
    assert all(torch.equal(adapter_of(second)[name], tensor) for name, tensor in adapter_of(first).items())


def test_two_clients_do_not_disturb_each_other(service: ServiceClient, tiny: str) -> None:
    alone = service.create_lora_training_client(tiny, rank=4, seed=7)
    expected = train(alone, 4)
    one = service.create_lora_training_client(tiny, rank=4, seed=7)
    other = service.create_lora_training_client(tiny, rank=2, seed=8)
    found = []
    for _ in range(4):
        a = one.forward_backward(BATCH, "cross_entropy")
        other.forward_backward(BATCH[:2], "cross_entropy")
        one.optim_step(types.AdamParams(learning_rate=5e-3))
        other.optim_step(types.AdamParams(learning_rate=1e-2))
        found.append(a.result().metrics["loss:sum"])
    other.forward(BATCH, "cross_entropy").result()
    assert found == expected
    assert all(torch.equal(adapter_of(alone)[name], tensor) for name, tensor in adapter_of(one).items())


def test_the_base_model_never_changes(service: ServiceClient, tiny: str) -> None:
    train(service.create_lora_training_client(tiny, rank=4, seed=0), 3)
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = types.ModelInput.from_ints([4, 5, 6, 7])
    found = service.create_sampling_client(base_model=tiny).compute_logprobs(ids).result()
    logprobs = plain(torch.tensor([[4, 5, 6, 7]])).logits[0].log_softmax(-1).detach()
    expected = [None, *(pytest.approx(float(logprobs[i, t]), abs=1e-5) for i, t in enumerate([5, 6, 7]))]
    assert found == expected


def test_training_the_unembedding_of_a_tied_model_leaves_the_input_embedding_alone(
    service: ServiceClient, tiny: str
) -> None:
    client = service.create_lora_training_client(tiny, rank=4, seed=0, train_attn=False, train_mlp=False)
    model = client._base._model
    assert model.config.tie_word_embeddings
    embedding: Any = model.get_input_embeddings().weight
    before = embedding.detach().clone()
    losses_seen = train(client, 5)
    assert losses_seen[-1] < losses_seen[0]
    assert embedding.grad is None and not embedding.requires_grad and torch.equal(embedding, before)
    # What is trained is the output alone: hidden states are those of the plain model, logits are not.
    reference = Reference(tiny, adapter_of(client))
    assert set(reference.weights()) == {"lm_head.weight"}
    expected = reference.loss(BATCH)[0].item()
    found = client.forward(BATCH, "cross_entropy").result().metrics["loss:sum"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_every_field_of_the_sdks_adam_is_honoured() -> None:
    assert set(types.AdamParams.model_fields) == set(_ADAM)


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_a_loaded_state_goes_on_as_if_it_had_never_stopped(
    service: ServiceClient, tiny: str, with_optimizer: bool
) -> None:
    straight = service.create_lora_training_client(tiny, rank=4, seed=2)
    train(straight, 3)
    path = straight.save_state("middle").result().path
    expected = train(straight, 3)
    resumed = service.create_lora_training_client(tiny, rank=4, seed=99)
    train(resumed, 1)
    load = resumed.load_state_with_optimizer if with_optimizer else resumed.load_state
    load(path).result()
    found = train(resumed, 3)
    assert found[0] == expected[0]
    assert (found == expected) is with_optimizer
    again = service.create_training_client_from_state_with_optimizer(path)
    assert train(again, 3) == expected


def test_saved_weights_are_a_plain_peft_adapter(service: ServiceClient, tiny: str) -> None:
    from peft import PeftModel

    client = service.create_lora_training_client(tiny, rank=4, seed=2)
    train(client, 3)
    path = client.save_weights_for_sampler("mine").result().path
    assert path == f"tinker://{client.model_id}/sampler_weights/mine"
    folder = service.checkpoint_directory(path)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), folder)
    ids = [4, 5, 6, 7, 8, 9]
    logprobs = loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = service.create_sampling_client(path).compute_logprobs(types.ModelInput.from_ints(ids)).result()
    assert found[1:] == [pytest.approx(float(logprobs[i, t]), abs=1e-5) for i, t in enumerate(ids[1:])]
    assert (
        found
        != service.create_sampling_client(base_model=tiny).compute_logprobs(types.ModelInput.from_ints(ids)).result()
    )


def test_nothing_saved_needs_pickle(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2, seed=2)
    train(client, 1)
    folder = service.checkpoint_directory(client.save_state("s").result().path)
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}
    assert len(load_file(folder / "optimizer.safetensors")) == 2 * len(load_file(folder / "adapter_model.safetensors"))


def test_futures_run_in_order_on_a_thread_of_their_own(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2, seed=2)
    order: list[str] = []
    gate = threading.Event()
    blocked = client._base.worker.submit(gate.wait)
    futures: list[Any] = [client.forward_backward(BATCH, "cross_entropy"), client.optim_step(types.AdamParams())]
    for i, future in enumerate(futures):
        future.future().add_done_callback(lambda _, i=i: order.append(f"{i} {threading.current_thread().name}"))
    assert not any(future.future().done() for future in futures)
    gate.set()
    assert [f.result() is not None for f in futures] == [True, True]
    assert blocked.result() is True
    client._base.worker.submit(lambda: None).result()
    assert order == [f"0 {client._base.worker._thread.name}", f"1 {client._base.worker._thread.name}"]
    assert all(isinstance(future, tinker.APIFuture) for future in futures)


def test_futures_can_be_awaited(service: ServiceClient, tiny: str) -> None:
    client = service.create_lora_training_client(tiny, rank=2, seed=2)

    async def steps() -> float:
        output = client.forward_backward(BATCH, "cross_entropy")
        step = client.optim_step(types.AdamParams(learning_rate=1e-3))
        await step
        return float((await output).metrics["loss:sum"])

    assert asyncio.run(steps()) > 0


def _datum_with(**inputs: Any) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints([4, 5, 6]), loss_fn_inputs=inputs)


TARGETS = types.TensorData.from_torch(torch.tensor([5, 6, 7]))


@pytest.mark.parametrize(
    ("data", "loss", "words"),
    [
        ([], "cross_entropy", "the list of datums is empty"),
        ([datum([4, 5])], "gspo", "the loss 'gspo' is not in the embedded engine"),
        (
            [datum([4, 5]), datum([4, 2048])],
            "cross_entropy",
            r"data\[1\]: target_tokens has ids outside the vocabulary",
        ),
        ([datum([-1, 5])], "cross_entropy", r"data\[0\]: model_input has ids outside"),
        ([datum([1] * 130)], "cross_entropy", r"data\[0\] has 129 tokens; the model takes 128"),
        ([datum([4, 5, 6], [math.nan, 1])], "cross_entropy", "weights must be finite"),
        ([_datum_with(weights=[1.0, 1.0, 1.0])], "cross_entropy", "has no target_tokens"),
        ([_datum_with(target_tokens=TARGETS, weights=[1.0])], "cross_entropy", "must have one length"),
    ],
)
def test_bad_data_are_refused_and_the_client_stays_usable(
    service: ServiceClient, tiny: str, data: list[types.Datum], loss: str, words: str
) -> None:
    client = service.create_lora_training_client(tiny, rank=2, seed=2)
    with pytest.raises(EngineError, match=words):
        client.forward_backward(data, loss).result()
    with pytest.raises(EngineError, match="optim_step without a gradient"):
        client.optim_step(types.AdamParams()).result()
    assert train(client, 1)[0] > 0


def test_bad_steps_and_states_are_refused(service: ServiceClient, tiny: str, tmp_path: Path) -> None:
    client = service.create_lora_training_client(tiny, rank=2, seed=2)
    client.forward_backward(BATCH, "cross_entropy").result()
    with pytest.raises(EngineError, match="learning rate is nan"):
        client.optim_step(types.AdamParams(learning_rate=math.nan)).result()
    with pytest.raises(EngineError, match="no checkpoint at tinker://nobody/weights/x"):
        client.load_state("tinker://nobody/weights/x").result()
    with pytest.raises(EngineError, match="is no name for a checkpoint"):
        client.save_state("../escape").result()
    other_rank = service.create_lora_training_client(tiny, rank=4, seed=2)
    path = other_rank.save_state("rank4").result().path
    with pytest.raises(EngineError, match="tensors do not fit the adapter"):
        client.load_state(path).result()
    with pytest.raises(EngineError, match="holds no adapter"):
        service.create_sampling_client(str(tmp_path))
    with pytest.raises(EngineError, match="rank is 0"):
        service.create_lora_training_client(tiny, rank=0)


def test_a_misfit_adapter_is_refused_and_leaves_the_model_usable(tmp_path: Path, tiny: str) -> None:
    with ServiceClient(store=tmp_path, device="cpu") as service:
        client = service.create_lora_training_client(tiny, rank=2, seed=0)
        train(client, 1)
        good = service.checkpoint_directory(client.save_weights_for_sampler("good").result().path)
    prompt = types.ModelInput.from_ints([4, 5, 6])
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
    tensors = load_file(good / "adapter_model.safetensors")
    shorter = dict(list(tensors.items())[1:])
    halved = {name: tensor[: len(tensor) // 2].clone() for name, tensor in tensors.items()}
    # The first adapter that this service sees is one that does not fit.
    with ServiceClient(store=tmp_path, device="cpu") as service:
        base = service.create_sampling_client(base_model=tiny)
        expected = base.compute_logprobs(prompt).result()
        for wrong in (shorter, halved):
            save_file(wrong, bad / "adapter_model.safetensors")
            with pytest.raises(EngineError, match="saved tensors do not fit the adapter"):
                service.create_sampling_client(str(bad), tiny)
        (bad / "adapter_model.safetensors").write_bytes((good / "adapter_model.safetensors").read_bytes()[:-9])
        with pytest.raises(EngineError, match="is damaged"):
            service.create_sampling_client(str(bad), tiny)
        assert base.compute_logprobs(prompt).result() == expected
        assert service.create_sampling_client(str(good), tiny).compute_logprobs(prompt).result() != expected
        again = service.create_lora_training_client(tiny, rank=2, seed=0)
        assert train(again, 1)[0] > 0


def test_images_are_refused(tiny: str) -> None:
    image = types.ImageChunk(data=b"", format="png", expected_tokens=1)
    seen = types.ModelInput(chunks=[image, types.EncodedTextChunk(tokens=[4])])
    tensor = types.TensorData(data=[0, 4], dtype="int64", shape=[2])
    with ServiceClient() as service:
        client = service.create_lora_training_client(tiny, 4)
        with pytest.raises(EngineError, match=r"data\[0\] holds an image, and the embedded engine takes text only"):
            client.forward_backward(
                [types.Datum(model_input=seen, loss_fn_inputs={"target_tokens": tensor})], "cross_entropy"
            ).result()
        sampler = service.create_sampling_client(base_model=tiny)
        with pytest.raises(EngineError, match="the prompt holds an image"):
            sampler.sample(seen, 1, types.SamplingParams(max_tokens=1)).result()
