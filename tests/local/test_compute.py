"""The arithmetic under the training client: groups of datums, and the product with the vocabulary in chunks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkertools.local import vocabulary
from tinkertools.local.compute import Item, parts


@settings(max_examples=100)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=120))
def test_groups_hold_every_item_once_within_the_budget(lengths: list[int]) -> None:
    empty = torch.zeros(0)
    items = [Item(torch.zeros(n, dtype=torch.long), empty, {}) for n in lengths]
    groups = parts(items)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 8192


def test_logits_exist_for_one_chunk_at_a_time() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 8)
    hidden, targets, weights = torch.randn(23, 8), torch.randint(0, 50, (23,)), torch.rand(23)
    shapes: list[tuple[int, ...]] = []

    def logits(rows_N_D: torch.Tensor) -> torch.Tensor:
        found = rows_N_D @ weight.T
        shapes.append(tuple(found.shape))
        return found

    logprobs, gradient = vocabulary.loss_backward(
        logits, hidden, targets, lambda found, rows: -found * weights[rows], chunk=5
    )
    assert shapes == [(5, 50)] * 4 + [(3, 50)]
    whole = hidden.clone().requires_grad_()
    expected = (whole @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (-(expected * weights).sum()).backward()
    torch.testing.assert_close(logprobs, expected.detach(), atol=1e-5, rtol=1e-5)
    assert whole.grad is not None
    torch.testing.assert_close(gradient, whole.grad, atol=1e-5, rtol=1e-5)
    assert vocabulary.chunk_rows(151_936) * 151_936 * 4 <= 64 * 2**20
