"""How fast answers come, beside transformers' own generation of the same prompts in batches padded on the left."""

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tinker import types
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from tinkertools.local import ServiceClient, generation
from tinkertools.shipped import STARTER_MODEL

SLOTS, PROMPTS = 8, 32
TURNS = {"starter": 5, "39 M": 3}
# Answers' lengths from 8 to 256 in equal ratios.
WIDE = [round(8 * 32 ** (i / (PROMPTS - 1))) for i in range(PROMPTS)]
LENGTHS = {"equal lengths": [32] * PROMPTS, "8 to 256 tokens": WIDE}
AT_LEAST = {"equal lengths": 1.0, "8 to 256 tokens": 2.0}


def medium(folder: Path) -> str:
    """A Qwen3 of 39 million parameters and a small vocabulary."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096, hidden_size=512, intermediate_size=1536, num_hidden_layers=11, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=2048, tie_word_embeddings=False, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER_MODEL).save_pretrained(folder)
    return str(folder)


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", ["starter", "39 M"])
@pytest.mark.parametrize("kind", list(LENGTHS))
def test_sampling_speed(which: str, kind: str, starter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_SLOTS", SLOTS)
    path = starter if which == "starter" else medium(tmp_path / "medium")
    plain: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(4, plain.config.vocab_size, (n,), generator=random).tolist()
        for n in torch.randint(8, 64, (PROMPTS,), generator=random).tolist()
    ]
    # In no order, as they come.
    limits = [LENGTHS[kind][i] for i in torch.randperm(PROMPTS, generator=random).tolist()]

    def theirs() -> list[list[int]]:
        answers = []
        for start in range(0, PROMPTS, SLOTS):
            batch, wanted = prompts[start : start + SLOTS], limits[start : start + SLOTS]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
            found = plain.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max(wanted), do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
            answers += [row[width : width + n].tolist() for row, n in zip(found, wanted, strict=True)]
        return answers

    with ServiceClient(store=tmp_path / "store", device="cpu") as service:
        sampler = service.create_sampling_client(base_model=path)

        def ours() -> list[list[int]]:
            gate = threading.Event()
            sampler._base.worker.submit(gate.wait)
            futures = [
                sampler.sample(
                    types.ModelInput.from_ints(prompt), 1, types.SamplingParams(max_tokens=n, temperature=0, stop=[])
                )
                for prompt, n in zip(prompts, limits, strict=True)
            ]
            gate.set()
            return [list(future.result().sequences[0].tokens) for future in futures]

        def seconds(run: Callable[[], list[list[int]]]) -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        same = sum(a == b for a, b in zip(theirs(), ours(), strict=True))
        # Others use the machine: turns that alternate, and the middle of the ratios.
        turns = [(seconds(theirs), seconds(ours)) for _ in range(TURNS[which])]
    tokens = sum(limits)
    ratio = statistics.median(a / b for a, b in turns)
    for name, times in zip(("transformers", "tt"), zip(*turns, strict=True), strict=True):
        middle = statistics.median(times)
        print(f"\n{which}, {kind}: {name:12} {middle:6.2f} s {tokens / middle:8,.0f} tokens/s", end="")
    print(f"; {ratio:.2f} times as fast; {same} of {PROMPTS} answers are the same", flush=True)
    # A random model has close calls, which the order of a sum decides.
    assert same >= 0.9 * PROMPTS
    assert ratio >= AT_LEAST[kind]
