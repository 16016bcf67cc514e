"""Losses on a server: what is sent for each, in which order, and what is told of those that fail."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from gradients import datum
from standin import Pass, StandIn, refusal
from tinker import types

from tinkertools.errors import EngineError, UsageError
from tinkertools.remote import Downloads, ServiceClient
from tinkertools.remote.clients import TrainingClient
from tinkertools.remote.passes import as_sums

ADAM = types.AdamParams(learning_rate=1e-3)
# The title of SkyRL's description of itself, by which it is known.
SKYRL = "Tinker API Mock"

Loss = Callable[[list[Any], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-planted-key-1234567890")


@contextmanager
def training(server: StandIn) -> Iterator[TrainingClient]:
    """A client of a server; what its making has sent is forgotten."""
    with ServiceClient(server.url, 60, lambda _: None, Downloads(Path(), "base", wanted=False)) as service:
        client = service.create_lora_training_client("base", 4, 1, True, True, False)
        server.passes.clear()
        yield client


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(["base"]) as running:
        yield running


@pytest.fixture
def client(server: StandIn) -> Iterator[TrainingClient]:
    with training(server) as made:
        yield made


# The weights are for the loss to use: the prompt's are zero.
DATA = [datum([1, 2, 3, 4], weights=[0.0, 1.0, 1.0]), datum([5, 6, 7], weights=[0.0, 1.0])]
# What the loss below has as its derivative by each log p, which is -1 at the server.
FACTORS = [[0.5, -1.5, 2.0], [0.0, 4.0]]


def squares(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Σ factor / 2 · (log p)², whose derivative is factor · log p."""
    parts = [(torch.tensor(factors) / 2 * values**2).sum() for factors, values in zip(FACTORS, logprobs, strict=True)]
    return torch.stack(parts).sum(), {"datums": float(len(data))}


def test_a_custom_loss_is_a_forward_and_a_weighted_cross_entropy(server: StandIn, client: TrainingClient) -> None:
    asked = client.forward_backward_custom(DATA, squares)
    step = client.optim_step(ADAM)
    result = asked.result()
    step.result()
    targets: list[dict[str, list[float]]] = [{"target_tokens": [2, 3, 4]}, {"target_tokens": [6, 7]}]
    ones = tuple({**one, "weights": [1.0] * len(one["target_tokens"])} for one in targets)
    # Minus the derivative, which is minus the factor.
    signed = tuple({**one, "weights": factors} for one, factors in zip(targets, FACTORS, strict=True))
    assert server.passes == [
        Pass("forward", "cross_entropy", None, ones),
        Pass("forward_backward", "cross_entropy", None, signed),
        Pass("optim_step"),
    ]
    assert isinstance(result, types.ForwardBackwardOutput)
    assert [record["logprobs"].to_torch().tolist() for record in result.loss_fn_outputs] == [[-1.0] * 3, [-1.0] * 2]
    assert result.metrics == {"datums": 2.0, "loss:sum": 2.5, "surrogate_loss:sum": 5.0}


def test_the_loss_is_handed_the_datums_with_all_they_bring(client: TrainingClient) -> None:
    data = [datum([1, 2, 3], advantages=[1.0, 2.0], mask=[0.0, 1.0])] if _takes_any() else [datum([1, 2, 3])]
    seen: list[Any] = []

    def loss(given: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        seen.extend(given)
        return -logprobs[0].sum(), {}

    assert client.forward_backward_custom(data, loss).result().metrics["loss:sum"] == 2.0
    assert seen == data


def _takes_any() -> bool:
    """Whether the SDK knows the type of inputs that are not Tinker's own."""
    try:
        datum([1, 2], mask=[1.0])
    except KeyError:
        return False
    return True


def test_where_a_server_takes_means_the_gradient_is_the_same() -> None:
    with StandIn(["base"], title=SKYRL) as server, training(server) as client:
        client.forward_backward_custom(DATA, squares).result()
        client.optim_step(ADAM).result()
        forward, backward, step = server.passes
    assert (forward.kind, step.kind) == ("forward", "optim_step")
    # Σ ratio · log p · advantage · weight / Σ weight, with a ratio of 1.
    assert (backward.loss_fn, backward.config) == ("cispo", {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0})
    for inputs, factors in zip(backward.inputs, FACTORS, strict=True):
        assert sum(inputs["weights"]) == pytest.approx(1.0, rel=1e-6)
        assert inputs["logprobs"] == [-1.0] * len(factors)
        products = [
            weight * advantage for weight, advantage in zip(inputs["weights"], inputs["advantages"], strict=True)
        ]
        assert products == pytest.approx(factors, rel=1e-6)


@pytest.mark.parametrize("weights", [None, [0.0, 1.0, 3.0]])
def test_policy_losses_are_sums_where_a_server_takes_means(weights: list[float] | None) -> None:
    advantages = [0.0, -1.5, 2.0]
    inputs = {"logprobs": [-0.5, -1.0, -2.0], "advantages": advantages} | ({"weights": weights} if weights else {})
    [made], loss_fn, config = as_sums([datum([1, 2, 3, 4], **inputs)], "cispo", {"clip_high_threshold": 2.0})
    # The threshold that is left out is the one that the embedded engine takes, which is not that of SkyRL.
    assert (loss_fn, config) == ("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 2.0})
    sent = {name: tensor.to_torch() for name, tensor in made.loss_fn_inputs.items()}
    assert float(sent["weights"].sum()) == pytest.approx(1.0, rel=1e-6)
    expected = torch.tensor(advantages) * torch.tensor(weights or [1.0] * 3)
    torch.testing.assert_close(sent["weights"] * sent["advantages"], expected)
    assert sent["logprobs"].tolist() == inputs["logprobs"]


def test_policy_losses_go_as_they_are_elsewhere(server: StandIn, client: TrainingClient) -> None:
    inputs = {"logprobs": [-0.5, -1.0], "advantages": [1.0, -1.0]}
    config = {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}
    client.forward([datum([1, 2, 3], **inputs)], "ppo", config).result()
    client.forward_backward([datum([1, 2, 3], **inputs)], "importance_sampling").result()
    targets: dict[str, list[float]] = {"target_tokens": [2, 3]}
    sent = (targets | inputs,)
    assert server.passes == [
        Pass("forward", "ppo", config, sent),
        Pass("forward_backward", "importance_sampling", None, sent),
    ]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"logprobs": [-1.0]}, r"data\[1\] has no advantages .* importance_sampling"),
        ({"advantages": [1.0]}, r"data\[1\] has no logprobs"),
        ({"logprobs": [-1.0], "advantages": [1.0, 2.0]}, r"1 target_tokens and advantages of shape \[2\]"),
        ({"logprobs": [-1.0], "advantages": [1.0], "weights": [-1.0]}, "weights below 0"),
    ],
)
def test_what_skyrl_would_take_for_zeros_is_refused(inputs: dict[str, list[float]], words: str) -> None:
    good = datum([1, 2], logprobs=[-1.0], advantages=[1.0])
    with pytest.raises(EngineError, match=words):
        as_sums([good, datum([1, 2], **inputs)], "importance_sampling", None)


def fails(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    return logprobs[0].sum() * (1 // 0), {}


def refuses(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    raise UsageError("no pairs", hint="--pairs FILE")


HERE = re.escape(__file__)
WRONG: list[tuple[Any, str]] = [
    (fails, rf"the custom loss failed at {HERE}:\d+: ZeroDivisionError: integer division or modulo by zero"),
    (lambda data, logprobs: (logprobs[0].sum(), {}), r"does not use that of data\[1\]"),
    (lambda data, logprobs: (torch.stack([x.sum() for x in logprobs]).sum() * torch.inf, {}), "not finite"),
    (lambda data, logprobs: (torch.tensor(1.0), {}), "must be a tensor of one number"),
    (lambda data, logprobs: logprobs[0].sum(), "must return the loss and a dict of metrics"),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "words"), WRONG)
def test_a_loss_that_fails_is_told_and_no_step_is_taken(
    server: StandIn, client: TrainingClient, loss: Loss, words: str
) -> None:
    asked = client.forward_backward_custom(DATA, loss)
    step = client.optim_step(ADAM)
    for pending in (asked, step):
        with pytest.raises(EngineError, match=words):
            pending.result()
    assert [one.kind for one in server.passes] == ["forward"]
    # The client goes on.
    client.forward_backward_custom(DATA, squares).result()
    client.optim_step(ADAM).result()
    assert [one.kind for one in server.passes[1:]] == ["forward", "forward_backward", "optim_step"]


def test_an_error_of_ours_in_a_loss_stays_what_it_is(client: TrainingClient) -> None:
    with pytest.raises(UsageError, match="no pairs") as caught:
        client.forward_backward_custom(DATA, refuses).result()
    assert caught.value.hint == "--pairs FILE"


def test_what_can_be_known_before_is_told_at_once(server: StandIn, client: TrainingClient) -> None:
    with pytest.raises(EngineError, match="No data provided"):
        client.forward_backward_custom([], squares)
    with pytest.raises(EngineError, match="is a str, but must be a function"):
        client.forward_backward_custom(DATA, "dpo")  # type: ignore[arg-type]
    assert server.passes == []


@pytest.mark.parametrize(("refused", "asked_for"), [("forward", 0), ("forward_backward", 1)])
def test_an_error_of_the_server_is_told_by_the_result(refused: str, asked_for: int) -> None:
    class Refusing(StandIn):
        """Does not do one kind of pass, once there is a model."""

        refuses = False

        def _pass(self, given: dict[str, Any], model: Any) -> Any:
            if self.refuses and refused == ("forward" if model is None else "forward_backward"):
                return refusal(400, "the sequence is too long")
            return super()._pass(given, model)

    with Refusing(["base"]) as server, training(server) as client:
        server.refuses = True
        asked = client.forward_backward_custom(DATA, squares)
        with pytest.raises(EngineError, match="the sequence is too long") as caught:
            asked.result()
    assert "--max-length" in str(caught.value.hint)
    assert [one.kind for one in server.passes] == ["forward"] * asked_for


def test_a_loss_that_the_server_does_not_have_is_named() -> None:
    with (
        StandIn(["base"], losses=("cross_entropy", "importance_sampling", "ppo")) as server,
        training(server) as client,
    ):
        data = [datum([1, 2], logprobs=[-1.0], advantages=[1.0])]
        asks = (client.forward, client.forward_backward)
        for ask in asks:
            with pytest.raises(EngineError) as caught:
                ask(data, "dro", {"beta": 0.1}).result()
            assert caught.value.message.startswith(f"{server.url} does not take the loss dro (HTTP 422): ")
            assert "'cross_entropy', 'importance_sampling', 'ppo'" in caught.value.message
            assert "forward_backward_custom" in str(caught.value.hint)
        assert client.forward(data, "ppo").result().loss_fn_outputs


def test_samples_have_tokens_and_logprobs(server: StandIn) -> None:
    with ServiceClient(server.url, 60, lambda _: None, Downloads(Path(), "base", wanted=False)) as service:
        sampler = service.create_sampling_client(base_model="base")
        prompt = types.ModelInput.from_ints([1, 2, 3])
        answer = sampler.sample(prompt, 2, tinker.SamplingParams(max_tokens=8, temperature=1.0)).result()
        assert [list(one.tokens) for one in answer.sequences] == [[5, 6, 7], [5, 6, 7] * 2]
        assert [list(one.logprobs) for one in answer.sequences] == [[-1.0] * 3, [-1.0] * 6]
        assert sampler.compute_logprobs(prompt).result() == [None, -1.0, -1.0]
