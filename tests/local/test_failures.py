"""What goes wrong: which errors it gives, that they reach those who wait, that nothing of a failed request stays."""

import asyncio
import concurrent.futures
import gc
import math
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from tinker import types

from tinkertools.errors import EngineError, ModelError, TinkertoolsError
from tinkertools.local import ServiceClient, compute, failures
from tinkertools.local.training import TrainingClient
from tinkertools.local.worker import Worker


def datum(tokens: list[int], **inputs: Any) -> types.Datum:
    tensors = {"target_tokens": torch.tensor(tokens[1:]), **{k: torch.as_tensor(v) for k, v in inputs.items()}}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={name: types.TensorData.from_torch(tensor) for name, tensor in tensors.items()},
    )


BATCH = [datum([5, 9, 200, 31, 7], weights=[0.0, 1, 1, 1]), datum([11, 12, 13]), datum([3, 1999])]
ADAM = types.AdamParams(learning_rate=1e-3)


@pytest.fixture
def client(service: ServiceClient, tiny: str) -> TrainingClient:
    return service.create_lora_training_client(tiny, rank=2, seed=2)


def gradients(client: TrainingClient) -> dict[str, torch.Tensor | None]:
    client._base.worker.submit(lambda: None).result()
    return {name: None if p.grad is None else p.grad.clone() for name, p in client._trainer.parameters.items()}


def same(one: dict[str, torch.Tensor | None], other: dict[str, torch.Tensor | None]) -> bool:
    return all(
        (a is None) is (b is None) and (a is None or b is None or torch.equal(a, b))
        for a, b in ((one[name], other[name]) for name in one | other)
    )


WRONG: list[tuple[Callable[[TrainingClient], Any], str]] = [
    (lambda c: c.forward_backward([], "cross_entropy"), "No data provided"),
    (lambda c: c.forward_backward([datum([4, 5, 6], weights=[1.0])], "cross_entropy"), r"weights of shape \[1\]"),
    (lambda c: c.forward_backward([BATCH[0], datum([4, 2048])], "cross_entropy"), r"data\[1\]: target_tokens has ids"),
    (lambda c: c.forward_backward([datum([4, 5, 6], weights=[math.nan, 1])], "cross_entropy"), "but is nan at 0"),
    (lambda c: c.forward([datum([1] * 200)], "cross_entropy"), "has 199 tokens; the model takes 128"),
    (lambda c: c.forward_backward(BATCH, "nothing"), "the loss 'nothing' is not in the embedded engine"),
    (lambda c: c.forward_backward(BATCH, "ppo"), r"data\[0\] has no logprobs among its loss_fn_inputs"),
    (
        lambda c: c.forward_backward([datum([4, 5], logprobs=[0.0], advantages=[1.0], mask=[1.0])], "ppo"),
        "does not take mask among its loss_fn_inputs",
    ),
    (
        lambda c: c.forward_backward([datum([4, 5], logprobs=[-300.0], advantages=[1.0])], "importance_sampling"),
        r"data\[0\]: the loss or its gradient is not finite at token 0",
    ),
    (
        lambda c: c.forward_backward([datum([4, 5, 6], target_tokens=[[5, 6], [6, 7]])], "cross_entropy"),
        "several targets",
    ),
    (lambda c: c.optim_step(types.AdamParams(learning_rate=math.nan)), "learning rate is nan"),
    (lambda c: c.optim_step(types.AdamParams(learning_rate=-1e-3)), "learning rate is -0.001"),
    (lambda c: c.optim_step(types.AdamParams(beta2=1.0)), "beta2 is 1.0, but must be .* less than 1"),
    (lambda c: c.optim_step(types.AdamParams(grad_clip_norm=-1)), "grad_clip_norm is -1"),
    (lambda c: c.forward_backward_custom(BATCH, lambda data, logprobs: (1.0, {})), "must be a tensor of one number"),
    (lambda c: c.forward_backward_custom(BATCH, lambda data, p: (p[0].sum(), {})), "does not use that of data.1."),
    (lambda c: c.forward_backward_custom(BATCH, lambda d, p: (sum(x.sum() for x in p) * math.inf, {})), "not finite"),
    (lambda c: c.save_weights_and_get_sampling_client(kind="inflight"), "kind 'inflight'"),
]


@pytest.mark.parametrize(("ask", "words"), WRONG)
def test_bad_requests_are_errors_of_the_sdk_and_ours(client: TrainingClient, ask: Any, words: str) -> None:
    client.forward_backward(BATCH, "cross_entropy").result()
    before = gradients(client)
    for kind in (tinker.BadRequestError, tinker.RequestFailedError, tinker.TinkerError, ValueError, EngineError):
        with pytest.raises(kind, match=words):
            ask(client).result()
    assert same(gradients(client), before)
    assert client.optim_step(ADAM).result().metrics


def test_what_is_not_there_is_not_found(client: TrainingClient, service: ServiceClient, tiny: str) -> None:
    for ask in (client.load_state, client.load_state_with_optimizer):
        with pytest.raises(tinker.NotFoundError, match="no checkpoint at tinker://nobody/weights/x"):
            ask("tinker://nobody/weights/x").result()
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client("tinker://nobody/sampler_weights/x")
    with pytest.raises(tinker.BadRequestError) as caught:
        service.create_lora_training_client("/no/such/model")
    assert isinstance(caught.value, ModelError)
    with pytest.raises(TypeError, match="optim_step takes AdamParams"):
        client.optim_step({"learning_rate": 1.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Either model_path or base_model"):
        service.create_sampling_client()


def test_a_state_of_another_base_model_is_refused(service: ServiceClient, tiny: str, untied: str) -> None:
    path = service.create_lora_training_client(untied, rank=2).save_state("s").result().path
    client = service.create_lora_training_client(tiny, rank=2)
    with pytest.raises(tinker.BadRequestError, match=r"was trained on .*untied, and this client trains .*tiny"):
        client.load_state(path).result()
    # Asked for by name, it is taken: the layers are the same.
    assert service.create_training_client_from_state_with_optimizer(path, tiny).get_info().model_name == tiny
    sampler = client.save_weights_for_sampler("w").result().path
    with pytest.raises(tinker.BadRequestError, match="holds no optimizer state"):
        client.load_state_with_optimizer(sampler).result()


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x")])
@pytest.mark.parametrize("accumulated", [True, False])
def test_what_fails_in_the_middle_leaves_no_part_of_its_gradient(
    client: TrainingClient, monkeypatch: pytest.MonkeyPatch, error: Any, accumulated: bool
) -> None:
    if accumulated:
        client.forward_backward(BATCH[:1], "cross_entropy").result()
    before = gradients(client)
    whole = compute.backward

    def broken(base: Any, adapter: Any, items: Any, *rest: Any) -> Any:
        whole(base, adapter, items[:1], *rest)
        raise error

    monkeypatch.setattr(compute, "backward", broken)
    asks: list[Callable[[], Any]] = [
        lambda: client.forward_backward(BATCH, "cross_entropy"),
        lambda: client.forward_backward_custom(BATCH, lambda data, p: (sum(x.sum() for x in p), {})),
    ]
    for ask in asks:
        with pytest.raises(BaseException) as caught:
            ask().result()
        if isinstance(error, torch.OutOfMemoryError):
            assert isinstance(caught.value, tinker.InternalServerError) and isinstance(caught.value, EngineError)
            assert "smaller base model" in str(caught.value.hint)
    assert same(gradients(client), before)
    monkeypatch.undo()
    alone = client.forward_backward(BATCH, "cross_entropy").result()
    assert alone.metrics["loss:sum"] > 0
    assert client.optim_step(ADAM).result().metrics


def test_a_users_error_in_a_custom_loss_reaches_the_user(client: TrainingClient) -> None:
    class MyError(Exception):
        pass

    def fails(data: Any, logprobs: Any) -> Any:
        raise MyError("mine")

    with pytest.raises(MyError, match="mine"):
        client.forward_backward_custom(BATCH, fails).result()
    assert all(gradient is None for gradient in gradients(client).values())

    def waits(data: Any, logprobs: Any) -> Any:
        return client.forward(BATCH, "cross_entropy").result(), {}

    with pytest.raises(RuntimeError, match="on the engine's own thread"):
        client.forward_backward_custom(BATCH, waits).result()
    assert client.forward(BATCH, "cross_entropy").result().metrics


def test_a_gradient_that_overflows_is_dropped(client: TrainingClient) -> None:
    huge = datum([4, 5, 6], weights=[1e37, 1e37])
    weights = {name: p.detach().clone() for name, p in client._trainer.parameters.items()}
    client.forward_backward([huge, huge, datum([7, 8], weights=[1e37])], "cross_entropy").result()
    with pytest.raises(tinker.BadRequestError, match="norm of the gradient is"):
        client.optim_step(ADAM).result()
    assert all(torch.equal(weights[name], p) for name, p in client._trainer.parameters.items())
    client.forward_backward(BATCH, "cross_entropy").result()
    assert client.optim_step(ADAM).result().metrics


def test_a_learning_rate_of_zero_moves_nothing(client: TrainingClient) -> None:
    client.forward_backward(BATCH, "cross_entropy").result()
    before = {name: p.detach().clone() for name, p in client._trainer.parameters.items()}
    client.optim_step(types.AdamParams(learning_rate=0.0)).result()
    assert all(torch.equal(before[name], p) for name, p in client._trainer.parameters.items())


def test_close_in_the_middle(tmp_path: Path, tiny: str) -> None:
    service = ServiceClient(store=tmp_path, device="cpu")
    client = service.create_lora_training_client(tiny, rank=2)
    gate = threading.Event()
    client._base.worker.submit(gate.wait)
    waiting = client.forward_backward(BATCH, "cross_entropy")
    threading.Timer(0.1, gate.set).start()
    service.close(cancel=True).result()
    with pytest.raises(EngineError, match="was closed before the request was done"):
        waiting.result()
    for ask in (lambda: client.optim_step(ADAM), lambda: service.create_sampling_client(base_model=tiny)):
        with pytest.raises(RuntimeError, match="closed"):
            ask()
    with pytest.raises(EngineError), service:
        pass


def test_errors_can_be_pickled_and_made_again_with_other_words() -> None:
    for kind in (failures.BadRequest, failures.NotFound, failures.Conflict, failures.OutOfMemory, failures.BadModel):
        error = kind("what", hint="what to do")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.message, again.hint, str(again)) == (kind, "what", "what to do", "what")
        assert isinstance(error, tinker.APIStatusError) and error.response.status_code == error.status_code
        assert isinstance(error, TinkertoolsError) and error.__notes__ == ["what to do"]


def test_futures_work_in_any_loop_and_with_the_standard_library(client: TrainingClient) -> None:
    async def many() -> list[Any]:
        futures = [client.forward(BATCH, "cross_entropy") for _ in range(20)]
        found = await asyncio.gather(*futures)
        return list(found)

    results = [asyncio.run(many()) for _ in range(2)]
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(many()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    losses = {output.metrics["loss:sum"] for outputs in (*results, *found) for output in outputs}
    assert len(losses) == 1 and sum(map(len, found)) == 60

    async def failing() -> list[Any]:
        futures = [client.forward(BATCH, "cross_entropy"), client.forward(BATCH, "nothing")]
        return list(await asyncio.gather(*futures, return_exceptions=True))

    good, bad = asyncio.run(failing())
    assert good.metrics["loss:sum"] in losses and isinstance(bad, tinker.BadRequestError)
    futures = [client.forward(BATCH, "cross_entropy") for _ in range(3)]
    assert len(concurrent.futures.wait(futures, timeout=60).done) == 3

    async def wrapped() -> Any:
        return await asyncio.wrap_future(client.forward(BATCH, "cross_entropy"))

    assert asyncio.run(wrapped()).metrics["loss:sum"] in losses


def test_the_worker_survives_whatever_a_job_does() -> None:
    worker = Worker("test")

    def leaves() -> None:
        raise SystemExit(3)

    assert isinstance(worker.submit(leaves).exception(10), SystemExit)
    assert worker.submit(lambda: 4).result(10) == 4
    worker.close()


def test_adapters_go_with_their_clients(client: TrainingClient) -> None:
    def installed() -> int:
        gc.collect()
        count: int = client._base.worker.submit(lambda: len(client._base._peft.peft_config)).result()  # type: ignore[union-attr]
        return count

    installed()
    before = [installed() for _ in range(3)][-1]
    for _ in range(12):  # from the eleventh on, names begin with those of others
        sampler = client.save_weights_and_get_sampling_client()
        sampler.compute_logprobs(types.ModelInput.from_ints([1, 2, 3])).result()
    del sampler
    # The worker remembers its last job until the next one.
    assert [installed() for _ in range(3)][-1] == before
    assert len(client._base.adapter_state(client._adapter)) == len(client._trainer.parameters)
