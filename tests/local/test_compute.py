"""The arithmetic under the training client: groups of datums, the product with the vocabulary, adapters, memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from tinker import types

from tinkertools.errors import EngineError
from tinkertools.local import ServiceClient, lora, memory, vocabulary
from tinkertools.local import threads as side_by_side
from tinkertools.local.compute import parts
from tinkertools.local.vocabulary import OutputLayer, loss_backward, token_logprobs


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(0, 4000), max_size=120), most=st.integers(1, 9000), side_by_side=st.integers(1, 4))
def test_parts_hold_every_item_once_within_the_budget(lengths: list[int], most: int, side_by_side: int) -> None:
    costs = [float(length) for length in lengths]
    found = parts(lengths, costs, most, side_by_side)
    assert sorted(i for part in found for i in part) == [i for i, length in enumerate(lengths) if length]
    assert all(len(part) == 1 or sum(lengths[i] for i in part) <= most for part in found)
    assert all(part == sorted(part) for part in found)
    # None idles: each of those that compute has work, where there are items enough.
    assert len(found) >= min(side_by_side, sum(length > 0 for length in lengths))


def test_parts_cost_about_the_same() -> None:
    lengths, costs = [100] * 8, [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert parts(lengths, costs, 1000, 2) == [[0], [1, 2, 3, 4, 5, 6, 7]]
    # Two at a time, of at most 400 tokens each: four parts, so that the last two share their time too.
    assert [len(part) for part in parts(lengths, [1.0] * 8, 399, 2)] == [2, 2, 2, 2]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def layer_of(words: int, width: int, rank: int, *, bias: bool, seed: int) -> OutputLayer:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(words, width, generator=random)
    shift = torch.randn(words, generator=random) if bias else None
    if not rank:
        return OutputLayer(weight, shift)
    a = torch.randn(rank, width, generator=random).requires_grad_()
    b = torch.randn(words, rank, generator=random).requires_grad_()
    return OutputLayer(weight, shift, a, b, 0.25)


def check_against_plain_pytorch(layer: OutputLayer, hidden: torch.Tensor, targets: torch.Tensor) -> None:
    """A loss that is not linear in the logprobs, over logits that are all there at once, in float64."""
    weights = torch.linspace(-1, 2, len(targets))
    found = loss_backward(
        layer, hidden, targets, lambda logprobs, rows: weights[rows] * (logprobs - logprobs.exp() ** 2)
    )
    whole = hidden.double().requires_grad_()
    logits = whole @ layer.weight.double().T
    if layer.bias is not None:
        logits = logits + layer.bias.double()
    factors = [factor.detach().double().requires_grad_() for factor in (layer.a, layer.b) if factor is not None]
    if factors:
        logits = logits + layer.scale * (whole @ factors[0].T) @ factors[1].T
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (weights.double() * (expected - expected.exp() ** 2)).sum().backward()
    size = float(logits.detach().abs().max())
    near = 2e-6 * max(1.0, size)

    def check(ours: torch.Tensor | None, theirs: torch.Tensor | None, sums: int = 1) -> None:
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.double(), theirs.detach(), atol=near * sums, rtol=2e-5)

    check(found.logprobs, expected)
    check(token_logprobs(layer, hidden, targets), expected)
    check(found.hidden, whole.grad)
    if factors:
        check(found.a, factors[0].grad, len(targets))
        check(found.b, factors[1].grad, len(targets))


@settings(max_examples=60, deadline=None)
@given(
    words=st.integers(1, 40), width=st.integers(1, 9), rank=st.integers(0, 3), rows=st.integers(1, 30),
    bias=st.booleans(), columns=st.integers(1, 45), size=st.integers(1, 12), seed=st.integers(0, 99),
)  # fmt: skip
def test_tiles_of_any_size_give_what_whole_logits_give(
    words: int, width: int, rank: int, rows: int, bias: bool, columns: int, size: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed + 100)
    hidden, targets = torch.randn(rows, width, generator=random), torch.randint(words, (rows,), generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_COLUMNS", columns)
        patch.setattr(vocabulary, "_ROWS", size)
        check_against_plain_pytorch(layer_of(words, width, rank, bias=bias, seed=seed), hidden, targets)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_large_vocabulary(rank: int, threads: int) -> None:
    torch.manual_seed(0)
    check_against_plain_pytorch(
        layer_of(5000, 32, rank, bias=False, seed=0), torch.randn(700, 32) / 4, torch.randint(5000, (700,))
    )


def test_logits_of_any_size_overflow_nothing() -> None:
    """The largest stands in the first tile, in the last, or in between; exp of it is far beyond float32."""
    words = 3 * vocabulary._COLUMNS
    for at in (0, vocabulary._COLUMNS, words - 1):
        weight = torch.zeros(words, 2)
        weight[at] = torch.tensor([1000.0, 0.0])
        hidden, targets = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([at, at])
        found = loss_backward(OutputLayer(weight), hidden, targets, lambda logprobs, rows: -logprobs)
        assert found.logprobs.tolist() == pytest.approx([0.0, -1000 - torch.tensor(words - 1.0).log().item()])
        assert found.hidden.isfinite().all()


def test_gradients_of_a_trained_output_layer_add_up_to_the_same_bits(threads: int) -> None:
    """Threads finish in any order; sums do not depend on it."""
    torch.manual_seed(1)
    hidden, targets = torch.randn(600, 16), torch.randint(900, (600,))
    layer = layer_of(900, 16, 4, bias=False, seed=2)
    found = [loss_backward(layer, hidden, targets, lambda logprobs, rows: -logprobs) for _ in range(3)]
    for again in found[1:]:
        for name in ("logprobs", "hidden", "a", "b"):
            assert torch.equal(getattr(again, name), getattr(found[0], name))


def test_a_loss_that_fails_fails_the_pass(threads: int) -> None:
    def token_losses(logprobs: torch.Tensor, rows: slice) -> torch.Tensor:
        raise ArithmeticError("not this one")

    with pytest.raises(ArithmeticError, match="not this one"):
        loss_backward(
            layer_of(50, 4, 0, bias=False, seed=0), torch.randn(600, 4), torch.randint(50, (600,)), token_losses
        )


def test_the_budget_fits_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(side_by_side, "count", lambda device: 2)
    budget = memory.TokenBudget(torch.device("cpu"), said.append)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    assert budget.backward(lambda tokens: 1.0) == 1024
    # Measured once: a budget that followed what is free now would make sums depend on it.
    assert budget.backward(lambda tokens: 1e9) == 1024
    scarce = memory.TokenBudget(torch.device("cpu"), said.append)
    assert scarce.backward(lambda tokens: 2e6) == 128
    assert memory.TokenBudget(torch.device("cpu"), said.append).backward(lambda tokens: 1e12) == 64
    assert said == []


def test_out_of_memory_halves_the_budget_repeats_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(side_by_side, "count", lambda device: 2)
    budget = memory.TokenBudget(torch.device("cpu"), said.append)
    tries: list[int] = []

    def run() -> str:
        tries.append(budget.forward)
        if len(tries) < 3:
            torch.empty(1 << 60)  # more than any machine has
        return "done"

    assert budget.within(run) == "done"
    assert tries == [1024, 512, 256]
    assert said == [
        "out of memory: the step is repeated with 512 tokens at once",
        "out of memory: the step is repeated with 256 tokens at once",
    ]

    def never() -> None:
        raise MemoryError

    with pytest.raises(EngineError, match="out of memory with 64 tokens at once") as raised:
        budget.within(never)
    assert "--max-length" in str(raised.value.hint)

    def other() -> None:
        raise RuntimeError("a matrix of the wrong shape")

    with pytest.raises(RuntimeError, match="wrong shape"):
        memory.TokenBudget(torch.device("cpu"), said.append).within(other)


def test_free_memory_heeds_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = memory.free_bytes(torch.device("cpu"))
    assert 0 < free < 1 << 50
    real = Path.read_text

    def read_text(path: Path, *args: object, **kwargs: object) -> str:
        known = {"/sys/fs/cgroup/memory.max": "5000000\n", "/sys/fs/cgroup/memory.current": "1000000\n"}
        return known[str(path)] if str(path) in known else real(path)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert memory.free_bytes(torch.device("cpu")) == 4_000_000


def test_what_a_pass_keeps_is_counted_once() -> None:
    weight = torch.randn(8, 8)
    x = torch.randn(100, 8, requires_grad=True)

    def run() -> torch.Tensor:
        y = x @ weight  # keeps the weight, which is no part of the pass
        return y.exp() * y.sin()  # exp keeps its result, sin its argument, the product both results

    parameters = frozenset([weight.untyped_storage().data_ptr(), x.untyped_storage().data_ptr()])
    assert memory.saved_bytes(run, parameters) == 3 * x.nbytes


def peft_linear(base: torch.nn.Linear, config: LoraConfig) -> Any:
    """PEFT's layer around a frozen one, with a B that is not zero."""
    config.target_modules, config.init_lora_weights = ["0"], False
    inject_adapter_in_model(config, model := torch.nn.Sequential(base), "one")
    return model.eval()[0]


@settings(max_examples=40, deadline=None)
@given(
    inward=st.integers(1, 7), outward=st.integers(1, 7), rank=st.integers(1, 3), rows=st.integers(1, 5),
    bias=st.booleans(), frozen=st.booleans(),
)  # fmt: skip
def test_an_adapter_in_one_step_is_what_peft_computes(
    inward: int, outward: int, rank: int, rows: int, bias: bool, frozen: bool
) -> None:
    torch.manual_seed(rows)
    layer = peft_linear(torch.nn.Linear(inward, outward, bias=bias), LoraConfig(r=rank, lora_alpha=3))
    found: list[list[torch.Tensor]] = []
    for forward in (layer.forward, lora._Forward(layer)):
        x = torch.arange(2 * rows * inward, dtype=torch.float32).view(2, rows, inward).sin().requires_grad_(not frozen)
        layer.zero_grad()
        out = forward(x)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        found.append([out, *(p.grad for p in layer.parameters() if p.requires_grad and p.grad is not None)])
        found[-1] += [] if x.grad is None else [x.grad]
    assert len(found[0]) == (3 if frozen else 4)
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}], ids=str)
def test_what_is_more_than_plain_lora_is_left_to_peft(more: dict[str, Any]) -> None:
    layer = peft_linear(torch.nn.Linear(3, 4), LoraConfig(r=2, lora_alpha=3, **more))
    x = torch.randn(5, 3)
    assert not lora.is_plain(layer, "one")
    torch.testing.assert_close(lora._Forward(layer)(x), layer(x))


def test_pieces_come_in_order_and_nothing_runs_on_after_a_failure(threads: int) -> None:
    running: set[int] = set()

    def compute(piece: int) -> int:
        # Within a piece torch has one thread; the library that multiplies matrices too.
        assert torch.get_num_threads() == 1
        running.add(piece)
        try:
            torch.randn(300, 300) @ torch.randn(300, 300)
            if piece == 5:
                raise ArithmeticError("the fifth")
            return piece * piece
        finally:
            running.discard(piece)

    cpu = torch.device("cpu")
    assert list(side_by_side.each(compute, range(5), cpu)) == [0, 1, 4, 9, 16]
    assert torch.get_num_threads() == threads
    with pytest.raises(ArithmeticError, match="the fifth"):
        list(side_by_side.each(compute, range(100), cpu))
    assert not running
    assert torch.get_num_threads() == threads
    # A single piece is not worth another thread, and has all of torch's.
    assert list(side_by_side.each(lambda piece: torch.get_num_threads(), [0], cpu)) == [threads]


def gradients(service: ServiceClient, base_model: str, threads: int, budget: int) -> dict[str, torch.Tensor]:
    """Of one request of twelve sequences, computed with so many threads and so many tokens at once."""
    client: Any = service.create_lora_training_client(base_model, 4, 0)
    base = client._base
    random = torch.Generator().manual_seed(0)
    data = []
    for length in (3, 40, 17, 64, 5, 33, 60, 2, 21, 48, 9, 30):
        tokens = torch.randint(4, base.vocabulary, (length + 1,), generator=random)
        weights = (torch.rand(length, generator=random) > 0.5).float() / 8
        inputs: Any = {"target_tokens": tokens[1:], "weights": weights}
        tensors = {name: types.TensorData.from_torch(values) for name, values in inputs.items()}
        data.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1].tolist()), loss_fn_inputs=tensors))

    def limit() -> int:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        base.budget._tokens = budget
        return before

    before = base.worker.submit(limit).result()
    try:
        client.forward_backward(data, "cross_entropy").result()  # a step, so that B is not zero
        client.optim_step(types.AdamParams(learning_rate=0.01)).result()
        client.forward_backward(data, "cross_entropy").result()
        parameters = base.adapter_parameters(client._adapter)
        return {name.replace(client._adapter, ""): p.grad.clone() for name, p in parameters.items()}
    finally:
        base.worker.submit(lambda: torch.set_num_threads(before)).result()


def test_gradients_do_not_depend_on_threads_and_parts_but_for_rounding(tiny: str) -> None:
    with ServiceClient(device="cpu") as service:
        alone = gradients(service, tiny, threads=1, budget=100_000)
        for threads, budget in ((1, 50), (2, 100_000), (2, 100), (3, 60)):
            found = gradients(service, tiny, threads, budget)
            assert found.keys() == alone.keys()
            assert len(alone) > 10
            for name, gradient in alone.items():
                torch.testing.assert_close(found[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-3)
        # With the same, to the bit.
        again = gradients(service, tiny, threads=2, budget=100)
        once = gradients(service, tiny, threads=2, budget=100)
        assert all(torch.equal(again[name], gradient) for name, gradient in once.items())
