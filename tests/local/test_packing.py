"""Sequences side by side in one row, and answers that grow in a cache, against each sequence alone."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkertools.errors import ModelError
from tinkertools.local.cache import Cache, Part
from tinkertools.local.model import BaseModel
from tinkertools.local.packing import Attention, Packed, attending, install

Make = Callable[[str], Any]
FAMILIES = ["Qwen3", "Llama", "Mistral", "Gemma2", "GptOss"]


@pytest.fixture(scope="module")
def pair(family_model: Make) -> Callable[[str], tuple[Any, Any]]:
    """A model as it is, and the same with the engine's attention."""

    @cache
    def made(family: str) -> tuple[Any, Any]:
        plain, packed = family_model(family), family_model(family)
        install(packed)
        for model in (plain, packed):
            for weight in watched(model):
                weight.requires_grad_()
        return plain, packed

    return made


def watched(model: Any) -> list[Any]:
    """Weights whose gradients pass through both layers' attention."""
    attention = model.get_decoder().layers[0].self_attn
    return [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]


def row(model: Any, tokens: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
    with attending(attention):
        found = model.get_decoder()(input_ids=tokens[None], position_ids=positions[None], use_cache=False)
    return found.last_hidden_state[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_row_of_sequences_is_each_of_them_alone(
    pair: Callable[[str], tuple[Any, Any]], family: str, lengths: list[int], seed: int
) -> None:
    plain, packed = pair(family)
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(0, 2048, (n,), generator=generator) for n in lengths]
    weights = torch.randn(sum(lengths), 32, generator=generator)
    alone = torch.cat([plain.get_decoder()(input_ids=s[None], use_cache=False).last_hidden_state[0] for s in sequences])
    together = row(packed, torch.cat(sequences), torch.cat([torch.arange(n) for n in lengths]), Packed(lengths))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    gradients = []
    for model, hidden in ((plain, alone), (packed, together)):
        gradients.append(torch.cat(torch.autograd.grad((hidden * weights).sum(), watched(model))))
    scale = float(gradients[0].abs().max())
    torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(
    cuts=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_a_cache_reads_sequences_in_any_pieces_beside_each_other(
    pair: Callable[[str], tuple[Any, Any]], family: str, cuts: list[list[int]], order: Any
) -> None:
    plain, packed = pair(family)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 2048, (sum(pieces),), generator=generator).tolist() for pieces in cuts]
    with torch.no_grad():
        alone = [
            plain.get_decoder()(input_ids=torch.tensor([s]), use_cache=False).last_hidden_state[0] for s in sequences
        ]
        held = Cache(lambda *row_of: row(packed, *row_of), torch.device("cpu"))
        read = [0] * len(cuts)
        left = [list(pieces) for pieces in cuts]
        while any(left):
            slots = [slot for slot, pieces in enumerate(left) if pieces]
            slots = order.sample(slots, order.randint(1, len(slots)))
            parts = []
            for slot in slots:
                size = left[slot].pop(0)
                parts.append(Part(slot, read[slot], sequences[slot][read[slot] : read[slot] + size]))
                read[slot] += size
            held.reserve(len(cuts), max(read))
            for part, hidden in zip(parts, held.read(parts), strict=True):
                torch.testing.assert_close(hidden, alone[part.slot][part.end - 1], atol=1e-5, rtol=1e-5)


def test_a_slot_is_copied(pair: Callable[[str], tuple[Any, Any]]) -> None:
    _, packed = pair("Llama")
    held = Cache(lambda *row_of: row(packed, *row_of), torch.device("cpu"))
    with torch.no_grad():
        held.reserve(1, 4)
        held.read([Part(0, 0, [5, 6, 7, 8])])
        held.reserve(3, 9)
        held.copy(0, 2, 3)
        first, second = held.read([Part(0, 4, [9, 10]), Part(2, 3, [8, 9, 10])])
    torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["Bloom", "Mamba", "Qwen3Next"])
def test_models_that_mix_tokens_elsewhere_are_refused(family_model: Make, family: str) -> None:
    with pytest.raises(ModelError, match=f"a {family}ForCausalLM cannot keep sequences apart"):
        install(family_model(family))


@pytest.mark.parametrize("family", ["Bloom", "Mamba", "Qwen3Next", "Lfm2"])
def test_the_engine_loads_no_model_that_it_would_compute_wrongly(
    family_folder: Callable[[str], str], family: str
) -> None:
    with pytest.raises(ModelError, match=r"cannot keep sequences apart|keep more of a sequence than the keys"):
        BaseModel(family_folder(family), device="cpu")


def test_pieces_of_one_length_attend_as_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinkertools.local import packing

    shapes: list[tuple[int, ...]] = []
    attention = packing.causal_attention

    def recorded(q: torch.Tensor, *others: Any) -> torch.Tensor:
        shapes.append(tuple(q.shape))
        return attention(q, *others)

    monkeypatch.setattr(packing, "causal_attention", recorded)
    x = torch.randn(2, 11, 8)
    Packed([3, 3, 5]).attend(0, x, x, x, packing.Rules(1.0))
    assert shapes == [(2, 2, 3, 8), (1, 2, 5, 8)]
