"""The embedded engine's sampling against transformers' own generation."""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinker import types
from transformers import AutoModelForCausalLM

from tinkertools.errors import EngineError
from tinkertools.local import ServiceClient
from tinkertools.local.sampling import SamplingClient
from tinkertools.local.selection import Choice, choose

PROMPTS = [[5, 9, 200, 31, 7], [11, 12], [700], [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [1999, 3, 1]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceClient]:
    with ServiceClient(store=tmp_path_factory.mktemp("store"), device="cpu") as client:
        yield client


@pytest.fixture(scope="module")
def sampler(service: ServiceClient, untied: str) -> SamplingClient:
    return service.create_sampling_client(base_model=untied)


@pytest.fixture(scope="module")
def plain(untied: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32).requires_grad_(requires_grad=False)


def ask(sampler: SamplingClient, prompts: list[list[int]], n: int = 1, **params: Any) -> list[types.SampleResponse]:
    futures = [
        sampler.sample(types.ModelInput.from_ints(p), n, types.SamplingParams(**params), include_prompt_logprobs=True)
        for p in prompts
    ]
    return [future.result() for future in futures]


def greedy(plain: Any, prompt: list[int], length: int, stop: list[int]) -> list[int]:
    """One token at a time over the whole sequence: no cache, no padding, no batch."""
    ids = list(prompt)
    while len(ids) < len(prompt) + length:
        with torch.no_grad():
            ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


def test_greedy_answers_are_those_of_the_plain_model(sampler: SamplingClient, plain: Any) -> None:
    first = greedy(plain, PROMPTS[0], 12, [])
    assert len(set(first)) > 8
    stop = [first[4]]
    found = ask(sampler, PROMPTS, temperature=0, max_tokens=12, stop=stop)
    for prompt, response in zip(PROMPTS, found, strict=True):
        sequence = response.sequences[0]
        expected = greedy(plain, prompt, 12, stop)
        assert sequence.tokens == expected
        assert sequence.stop_reason == ("stop" if expected[-1] in stop else "length")
        logprobs = plain(torch.tensor([prompt + expected])).logits[0].log_softmax(-1)
        wanted = [float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(expected)]
        assert sequence.logprobs == pytest.approx(wanted, abs=1e-4)
        prompt_wanted = [float(logprobs[i, token]) for i, token in enumerate(prompt[1:])]
        assert response.prompt_logprobs is not None
        assert response.prompt_logprobs[0] is None
        assert response.prompt_logprobs[1:] == pytest.approx(prompt_wanted, abs=1e-4)
    assert found[0].sequences[0].tokens == first[:5]


def test_an_answer_does_not_depend_on_its_neighbours(sampler: SamplingClient) -> None:
    params = {"temperature": 0.8, "max_tokens": 10, "seed": 11}
    together = ask(sampler, PROMPTS, n=3, **params)
    alone = [ask(sampler, [prompt], n=3, **params)[0] for prompt in PROMPTS]
    for a, b in zip(together, alone, strict=True):
        assert [s.tokens for s in a.sequences] == [s.tokens for s in b.sequences]
        assert len({tuple(s.tokens) for s in a.sequences}) == 3  # each sample has a seed of its own


def test_prompts_share_a_batch_and_each_token_is_computed_once(
    sampler: SamplingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    hidden_states = sampler._base.hidden_states

    def recorded(tokens_N: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(len(tokens_N))
        return hidden_states(tokens_N, *others)

    monkeypatch.setattr(sampler._base, "hidden_states", recorded)
    gate = threading.Event()
    sampler._base.worker.submit(gate.wait)  # all requests wait in the queue before the first is looked at
    futures = [
        sampler.sample(types.ModelInput.from_ints(p), 1, types.SamplingParams(max_tokens=4, temperature=0, stop=[]))
        for p in PROMPTS
    ]
    gate.set()
    assert [len(future.result().sequences[0].tokens) for future in futures] == [4] * 5
    assert sizes == [sum(map(len, PROMPTS)), 5, 5, 5]


def test_many_prompts_fill_several_batches(sampler: SamplingClient, plain: Any) -> None:
    prompts = [[i + 4, i + 5] for i in range(150)]
    found = ask(sampler, prompts, temperature=0, max_tokens=2)
    for i in (0, 63, 64, 149):
        assert found[i].sequences[0].tokens == greedy(plain, prompts[i], 2, [2])


def test_seeds_decide_and_no_seed_is_random(sampler: SamplingClient) -> None:
    def draw(**params: Any) -> list[list[int]]:
        return [s.tokens for s in ask(sampler, [[5, 6]], n=4, temperature=1.0, max_tokens=8, **params)[0].sequences]

    assert draw(seed=1) == draw(seed=1)
    assert draw(seed=1) != draw(seed=2)
    assert draw() != draw()


def test_text_stops(sampler: SamplingClient, service: ServiceClient, untied: str) -> None:
    tokenizer = sampler.get_tokenizer()
    answer = ask(sampler, [PROMPTS[0]], temperature=0, max_tokens=12)[0].sequences[0].tokens
    texts = [str(tokenizer.decode(answer[: i + 1])) for i in range(len(answer))]
    stop = texts[3][len(texts[1]) :]
    found = ask(sampler, [PROMPTS[0]], temperature=0, max_tokens=12, stop=[stop])[0].sequences[0]
    expected = next(i for i, text in enumerate(texts) if stop in text) + 1
    assert (found.tokens, found.stop_reason) == (answer[:expected], "stop")


def test_an_answer_ends_at_the_models_limit(sampler: SamplingClient) -> None:
    found = ask(sampler, [[7] * 120], temperature=1.0, seed=0, stop=[])[0].sequences[0]
    assert (len(found.tokens), found.stop_reason) == (8, "length")


def test_adapter_and_base_answer_from_one_copy(service: ServiceClient, sampler: SamplingClient, untied: str) -> None:
    client = service.create_lora_training_client(untied, rank=4, seed=0)
    data = types.Datum(
        model_input=types.ModelInput.from_ints([5, 6, 7]),
        loss_fn_inputs={"target_tokens": types.TensorData.from_torch(torch.tensor([6, 7, 1234]))},
    )
    before = ask(sampler, PROMPTS, temperature=0, max_tokens=6)
    for _ in range(40):
        client.forward_backward([data], "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=1e-2))
    tuned = client.save_weights_and_get_sampling_client()
    assert tuned._base is sampler._base
    assert ask(tuned, [[5, 6, 7]], temperature=0, max_tokens=1)[0].sequences[0].tokens == [1234]
    after = ask(sampler, PROMPTS, temperature=0, max_tokens=6)
    assert [r.sequences[0].tokens for r in after] == [r.sequences[0].tokens for r in before]


@pytest.mark.parametrize(
    ("prompt", "n", "params", "words"),
    [
        ([], 1, {}, "the prompt is empty"),
        ([4, 2048], 1, {}, "outside the vocabulary of 2048"),
        ([4] * 128, 1, {}, "leaves no room to answer"),
        ([4], 0, {}, "num_samples is 0"),
        ([4], 1, {"temperature": -1.0}, "temperature is -1.0"),
        ([4], 1, {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_a_bad_request_fails_alone(
    sampler: SamplingClient, prompt: list[int], n: int, params: dict[str, Any], words: str
) -> None:
    good = sampler.sample(types.ModelInput.from_ints([4, 5]), 1, types.SamplingParams(max_tokens=2))
    bad = sampler.sample(types.ModelInput.from_ints(prompt), n, types.SamplingParams(**{"max_tokens": 2, **params}))
    with pytest.raises(EngineError, match=words):
        bad.result()
    assert len(good.result().sequences[0].tokens) in (1, 2)


def test_logprobs_of_a_bad_sequence(sampler: SamplingClient) -> None:
    with pytest.raises(EngineError, match="a sequence of 129 tokens; the model takes 128"):
        sampler.compute_logprobs(types.ModelInput.from_ints([4] * 129)).result()


def _draws(logits: torch.Tensor, count: int, temperature: float, top_k: int, top_p: float) -> Counter[int]:
    choice = Choice(temperature, top_k, top_p, torch.Generator().manual_seed(0))
    return Counter(int(choose(logits[None], [choice])[0]) for _ in range(count))


@settings(max_examples=20)
@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=8),
    st.floats(0.3, 2.0),
    st.sampled_from([-1, 1, 2, 3]),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_draws_follow_temperature_top_k_and_top_p(
    values: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.tensor(values)
    probabilities = torch.softmax(logits / temperature, -1).double()
    order = sorted(range(len(values)), key=lambda i: (-float(probabilities[i]), i))
    kept = order if top_k <= 0 else order[:top_k]
    total = sum(float(probabilities[i]) for i in kept)
    nucleus, reached = [], 0.0
    for i in kept:
        nucleus.append(i)
        reached += float(probabilities[i]) / total
        if reached >= top_p - 1e-9:
            break
    found = _draws(logits, 600, temperature=temperature, top_k=top_k, top_p=top_p)
    mass = sum(float(probabilities[i]) for i in nucleus)
    assert set(found) <= {*nucleus, *kept[: len(nucleus) + 1]}  # a tie at the border may fall either way
    for i in nucleus:
        share = float(probabilities[i]) / mass
        assert abs(found[i] / 600 - share) < 5 * (share * (1 - share) / 600) ** 0.5 + 0.01
