"""The embedded engine's sampling against transformers' own generation."""

import asyncio
import inspect
import math
import threading
from collections import Counter
from typing import Any

import pytest
import tinker
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tinker import types
from transformers import AutoModelForCausalLM

from tinkertools.errors import EngineError
from tinkertools.local import ServiceClient, selection
from tinkertools.local import generation as generation_module
from tinkertools.local.generation import Generation, Row
from tinkertools.local.sampling import SamplingClient
from tinkertools.local.selection import Choice, choose
from tinkertools.local.stops import TextStops

GREEDY: dict[str, Any] = {"temperature": 0, "stop": []}
PROMPTS = [[5, 9, 200, 31, 7], [11, 12], [700], [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [1999, 3, 1]]


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


def _sizes(sampler: SamplingClient, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass of the model reads, from now on."""
    sizes: list[int] = []
    hidden_states = sampler._base.hidden_states

    def recorded(tokens_N: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(len(tokens_N))
        return hidden_states(tokens_N, *others)

    monkeypatch.setattr(sampler._base, "hidden_states", recorded)
    return sizes


def test_prompts_share_a_batch_and_each_token_is_computed_once(
    sampler: SamplingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = _sizes(sampler, monkeypatch)
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
        ([4], 1, {"top_p": 0.0}, "top_p is 0.0"),
        ([4], 1, {"stop": ["a", ""]}, "a stop is an empty text"),
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


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Mistral", "Gemma2", "GptOss"])
def test_greedy_answers_of_every_family_are_those_of_generate(
    service: ServiceClient, family_model: Any, family_folder: Any, family: str
) -> None:
    model = family_model(family)
    prompts = [*PROMPTS, [3, 7] * 9]
    found = ask(service.create_sampling_client(base_model=family_folder(family)), prompts, **GREEDY, max_tokens=14)
    _check_greedy(model, prompts, found, 14)


def test_greedy_answers_of_the_starter_model_are_those_of_generate(service: ServiceClient, starter: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(starter, dtype=torch.float32)
    sampler = service.create_sampling_client(base_model=starter)
    tokenizer = sampler.get_tokenizer()
    prompts = [tokenizer.encode(text) for text in ("Once upon a time", "The capital of France is", "1 2 3 4")]
    _check_greedy(model, prompts, ask(sampler, prompts, **GREEDY, max_tokens=24), 24)


def _check_greedy(model: Any, prompts: list[list[int]], found: list[types.SampleResponse], length: int) -> None:
    for prompt, response in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        sequence = response.sequences[0]
        assert sequence.tokens == whole[0, len(prompt) :].tolist()
        with torch.no_grad():
            logprobs = model(whole).logits[0, :-1].log_softmax(-1).gather(-1, whole[0, 1:, None])[:, 0].tolist()
        assert sequence.logprobs == pytest.approx(logprobs[len(prompt) - 1 :], abs=1e-5, rel=1e-5)
        assert response.prompt_logprobs is not None
        assert response.prompt_logprobs[1:] == pytest.approx(logprobs[: len(prompt) - 1], abs=1e-5, rel=1e-5)


ROWS = st.lists(
    st.tuples(
        st.integers(0, 6),  # which prompt: some are equal
        st.integers(1, 12),  # max_tokens
        st.sampled_from([0.0, 0.7, 1.3]),
        st.sampled_from([(-1, 1.0), (5, 1.0), (-1, 0.8), (20, 0.9)]),
    ),
    min_size=1,
    max_size=10,
)


@pytest.mark.slow
@settings(max_examples=25)
@given(rows=ROWS, slots=st.integers(1, 5), pass_tokens=st.integers(1, 40), room=st.integers(20, 200))
def test_an_answer_is_the_same_whatever_runs_beside_it(
    sampler: SamplingClient, rows: list[Any], slots: int, pass_tokens: int, room: int
) -> None:
    base = sampler._base
    prompts = [
        torch.randint(4, 2048, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(1, 36, 5)
    ]

    def made() -> list[Row]:
        return [
            Row(prompts[i], limit, Choice(temperature, top_k, top_p, torch.Generator().manual_seed(k)))
            for k, (i, limit, temperature, (top_k, top_p)) in enumerate(rows)
        ]

    def run(together: list[Row], slots: int, pass_tokens: int = 1000) -> None:
        generation = Generation(base, slots, pass_tokens)
        generation.add(together)
        ended = []
        with base.using(None):
            while generation.busy:
                ended += generation.step()
        assert set(ended) == set(together)
        assert len(ended) == len(together)

    alone, beside = made(), made()
    for row in alone:
        run([row], 1)
    with pytest.MonkeyPatch.context() as patch:
        # So little memory that rows are put back and read again.
        patch.setattr(generation_module, "free_bytes", lambda _: 2 * room * base.cache_bytes_per_token)
        run(beside, slots, pass_tokens)
    for a, b in zip(alone, beside, strict=True):
        assert (a.tokens, a.stop_reason) == (b.tokens, b.stop_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_out_of_memory_halves_the_slots_and_fails_what_cannot_run_alone(
    sampler: SamplingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_states = sampler._base.hidden_states

    def scarce(tokens_N: torch.Tensor, *others: Any) -> torch.Tensor:
        if len(tokens_N) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden_states(tokens_N, *others)

    expected = ask(sampler, PROMPTS * 2, **GREEDY, max_tokens=4)
    monkeypatch.setattr(sampler._base, "hidden_states", scarce)
    params = types.SamplingParams(**GREEDY, max_tokens=4)
    futures = [sampler.sample(types.ModelInput.from_ints(p), 1, params) for p in [*PROMPTS, [9] * 41, *PROMPTS]]
    with pytest.raises(EngineError, match="too little memory"):
        futures.pop(len(PROMPTS)).result()
    assert [f.result().sequences[0].tokens for f in futures] == [r.sequences[0].tokens for r in expected]


def test_a_prompt_is_read_once_for_all_its_answers(sampler: SamplingClient, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = _sizes(sampler, monkeypatch)
    prompt = types.ModelInput.from_ints([8, 9] * 10)
    found = sampler.sample(prompt, 4, types.SamplingParams(max_tokens=3, seed=1, stop=[])).result()
    assert [len(s.tokens) for s in found.sequences] == [3] * 4
    # The first reads the prompt, the others its last token again, from which they go ways of their own.
    assert sizes == [20, 4, 4, 3]


def test_requests_join_those_that_run(sampler: SamplingClient, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    joined: list[Any] = []
    hidden_states = sampler._base.hidden_states

    def recorded(tokens_N: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(len(tokens_N))
        if len(sizes) == 3:
            joined.append(
                sampler.sample(types.ModelInput.from_ints([5, 6]), 1, types.SamplingParams(**GREEDY, max_tokens=2))
            )
        if len(sizes) == 6:
            assert joined[0].done()
        return hidden_states(tokens_N, *others)

    monkeypatch.setattr(sampler._base, "hidden_states", recorded)
    first = sampler.sample(types.ModelInput.from_ints([7, 8, 9]), 1, types.SamplingParams(**GREEDY, max_tokens=8))
    assert len(first.result().sequences[0].tokens) == 8
    assert len(joined[0].result().sequences[0].tokens) == 2
    assert sizes == [3, 1, 1, 3, 2, 1, 1, 1]


def test_nobody_is_overtaken(sampler: SamplingClient, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    worker = sampler._base.worker
    worker.submit(gate.wait)
    done: list[str] = []
    params = types.SamplingParams(**GREEDY, max_tokens=3)
    first = sampler.sample(types.ModelInput.from_ints([5]), 1, params)
    other = worker.submit(lambda: done.append("other"))
    last = sampler.sample(types.ModelInput.from_ints([5]), 1, params)
    for name, future in (("first", first), ("last", last)):
        future.add_done_callback(lambda _, name=name: done.append(name))  # type: ignore[misc]
    gate.set()
    last.result()
    other.result()
    assert done == ["first", "other", "last"]


def test_what_is_told_of_prompt_and_answer(sampler: SamplingClient, plain: Any) -> None:
    prompt = [5, 9, 200, 31, 7]
    asked: dict[str, Any] = {"include_prompt_logprobs": True, "topk_prompt_logprobs": 3, "topk_sample_logprobs": 2}
    params = types.SamplingParams(**GREEDY, max_tokens=4)
    found = sampler.sample(types.ModelInput.from_ints(prompt), 1, params, **asked).result()
    sequence = found.sequences[0]
    with torch.no_grad():
        logprobs = plain(torch.tensor([prompt + sequence.tokens])).logits[0].log_softmax(-1)
    tops = found.topk_prompt_logprobs
    assert tops is not None
    assert tops[0] is None
    for i, top in enumerate(tops[1:]):
        values, ids = logprobs[i].topk(3)
        assert top is not None
        assert [token for token, _ in top] == ids.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-4)
    if hasattr(sequence, "topk_logprobs"):
        assert sequence.topk_logprobs is not None
        for i, top in enumerate(sequence.topk_logprobs):
            values, ids = logprobs[len(prompt) - 1 + i].topk(2)
            assert top is not None
            assert [token for token, _ in top] == ids.tolist()
            assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.skipif(not hasattr(types, "PromptAltTokens"), reason="an older SDK")
def test_targets_draws_and_the_last_of_a_prompt(sampler: SamplingClient, plain: Any) -> None:
    prompt = [5, 9, 200, 31, 7]
    with torch.no_grad():
        logprobs = plain(torch.tensor([prompt])).logits[0].log_softmax(-1)
    ids = torch.tensor([[3, -1], [-1, -1], [-1, 70], [12, 13]])
    wanted = logprobs[:-1].gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, 0.0)
    for target in (types.TensorData.from_torch(ids), types.TensorData.from_torch_sparse(ids, pad_value=-1)):
        found = sampler.sample(
            types.ModelInput.from_ints(prompt), 1, types.SamplingParams(max_tokens=1, seed=3),
            include_prompt_logprobs=True, topk_prompt_logprobs=1, target_prompt_logprobs=target,
            prompt_alt_tokens_k=400, prompt_logprobs_last_n=2,
        ).result()  # fmt: skip
        assert found.target_prompt_logprobs is not None
        assert found.target_prompt_logprobs.sparse_crow_indices == target.sparse_crow_indices
        torch.testing.assert_close(found.target_prompt_logprobs.to_torch(), wanted, atol=1e-4, rtol=1e-4)
        assert found.prompt_logprobs is not None
        assert found.prompt_logprobs[:3] == [None] * 3
        assert found.prompt_logprobs[3:] == pytest.approx([float(logprobs[2, 31]), float(logprobs[3, 7])], abs=1e-4)
        assert found.topk_prompt_logprobs is not None
        assert [top is None for top in found.topk_prompt_logprobs] == [True] * 3 + [False] * 2
        assert found.prompt_alt_tokens is not None
        drawn = found.prompt_alt_tokens.tokens.to_torch()
        assert drawn.shape == (4, 400)
        values = found.prompt_alt_tokens.logprobs.to_torch()
        torch.testing.assert_close(values, logprobs[:-1].gather(-1, drawn), atol=1e-4, rtol=1e-4)
        for i in range(4):
            likeliest = int(logprobs[i].argmax())
            share = float(logprobs[i, likeliest].exp())
            assert abs(int((drawn[i] == likeliest).sum()) / 400 - share) < 5 * (share * (1 - share) / 400) ** 0.5 + 0.01


def test_the_last_logprobs_of_a_sequence(sampler: SamplingClient) -> None:
    prompt = types.ModelInput.from_ints([5, 9, 200, 31, 7])
    whole = sampler.compute_logprobs(prompt).result()
    assert sampler.compute_logprobs(prompt, 2).result() == pytest.approx([None, None, None, *whole[3:]], abs=1e-6)
    with pytest.raises(ValueError, match="must be less than the prompt's 5 tokens"):
        sampler.compute_logprobs(prompt, 5).result()
    with pytest.raises(ValueError, match="must be 1 or greater, got 0"):
        sampler.compute_logprobs(prompt, 0)


def test_methods_for_async_code(sampler: SamplingClient, untied: str) -> None:
    async def ask_all() -> Any:
        prompt = types.ModelInput.from_ints([5, 9])
        answer = await sampler.sample_async(prompt, 1, types.SamplingParams(**GREEDY, max_tokens=2))
        return answer, await sampler.compute_logprobs_async(prompt), await sampler.get_base_model_async()

    answer, logprobs, name = asyncio.run(ask_all())
    assert len(answer.sequences[0].tokens) == 2
    assert logprobs[0] is None
    assert name == sampler.get_base_model() == untied


def test_the_interface_is_the_sdks() -> None:
    absent = {
        "create", "get_telemetry", "on_queue_state_change", "get_sampler_handle", "from_sampler_handle",
    }  # fmt: skip
    for name, method in vars(tinker.SamplingClient).items():
        if name.startswith("_") or name in absent or not callable(method):
            continue
        theirs = [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
        mine = inspect.signature(getattr(SamplingClient, name)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in mine][: len(theirs)] == theirs, name


TEXTS = st.text(st.sampled_from("ab \n.:üß€漢😀👍"), min_size=1, max_size=12)


@settings(max_examples=200)
@given(
    text=st.text(st.sampled_from("ab \n.:üß€漢😀👍"), max_size=60),
    noise=st.lists(st.integers(0, 2047), max_size=30),
    stops=st.lists(TEXTS, min_size=1, max_size=3),
)
def test_text_stops_are_found_where_the_whole_text_first_holds_them(
    sampler: SamplingClient, text: str, noise: list[int], stops: list[str]
) -> None:
    tokenizer = sampler.get_tokenizer()
    tokens = [*noise, *tokenizer.encode(text, add_special_tokens=False)]
    watched = TextStops(tokenizer, stops)
    for i in range(1, len(tokens) + 1):
        expected = any(stop in str(tokenizer.decode(tokens[:i])) for stop in stops)
        assert watched.end(tokens[:i]) is expected
        if expected:
            break


def test_a_text_stop_costs_the_same_however_long_the_answer_is() -> None:
    longest = 0

    class Tokenizer:
        def decode(self, tokens: list[int]) -> str:
            nonlocal longest
            longest = max(longest, len(tokens))
            return "x" * len(tokens)

    watched = TextStops(Tokenizer(), ["\nUser:"])  # type: ignore[arg-type]
    assert not any(watched.end([1] * i) for i in range(1, 500))
    assert longest < 40


@settings(max_examples=100)
@given(
    values=st.lists(st.integers(-12, 12), min_size=1, max_size=30),
    temperature=st.floats(0.3, 2.0),
    top_k=st.integers(-1, 12),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.99, 1.0]),
)
def test_every_point_draws_the_token_whose_share_holds_it(
    values: list[int], temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.tensor(values) / 4
    exps = [math.exp((value - max(values)) / 4 / temperature) for value in values]
    probabilities = [e / sum(exps) for e in exps]
    order = sorted(range(len(values)), key=lambda i: (-probabilities[i], i))
    kept = order[:top_k] if top_k > 0 else order
    total, reached, nucleus = sum(probabilities[i] for i in kept), 0.0, []
    for i in kept:
        nucleus.append(i)
        reached += probabilities[i] / total
        assume(abs(reached - top_p) > 1e-5)
        if reached >= top_p:
            break
    if top_p == 1:
        nucleus = kept
    if top_k <= 0 and top_p == 1:
        nucleus = sorted(nucleus)  # nothing is cut off: the shares are in the order of the ids
    mass = sum(probabilities[i] for i in nucleus)
    points, begin = [], 0.0
    for i in nucleus:
        points += [begin + probabilities[i] / mass * at for at in (0.001, 0.5, 0.999)]
        begin += probabilities[i] / mass
    expected = [i for i in nucleus for _ in range(3)]
    choices = [Choice(temperature, top_k, top_p, torch.Generator())] * len(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_points", lambda _: torch.tensor(points, dtype=torch.float64)[:, None])
        patch.setattr(selection, "_CANDIDATES", 3)  # so that wider looks are needed
        patch.setattr(selection, "_MORE", 2)
        tokens, logprobs = choose(logits.expand(len(points), -1), choices)
    assert tokens.tolist() == expected
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[tokens])


def test_one_batch_mixes_all_ways_to_choose() -> None:
    logits = torch.randn(4, 600, generator=torch.Generator().manual_seed(0))
    ways = [(0.0, -1, 1.0), (1.0, -1, 1.0), (0.5, 7, 1.0), (1.5, -1, 0.9)]

    def choices() -> list[Choice]:
        return [Choice(*way, torch.Generator().manual_seed(i)) for i, way in enumerate(ways)]

    together = choose(logits, choices())[0].tolist()
    assert together == [int(choose(logits[i : i + 1], [choice])[0]) for i, choice in enumerate(choices())]
    assert together[0] == int(logits[0].argmax())


def _draws(logits: torch.Tensor, count: int, temperature: float, top_k: int, top_p: float) -> Counter[int]:
    choices = [Choice(temperature, top_k, top_p, torch.Generator().manual_seed(i)) for i in range(count)]
    return Counter(choose(logits.expand(count, -1), choices)[0].tolist())


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
