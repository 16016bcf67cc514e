"""How fast conversations become tokens and weights: beside bare encoding, and on two cores beside one."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.rendering import load_renderer, render_all
from tinkertools.chat.templates import ChatTemplateRenderer
from tinkertools.shipped import STARTER_MODEL

# The best of so many turns, taken in alternation: what else the machine does slows both.
TURNS = 7
# Enough work for two processes to make up for their start.
VENDOR_REPEATS = 16


def gsm8k(shared_data: Path) -> list[Conversation]:
    rows = map(json.loads, (shared_data / "gsm8k_train.jsonl").read_text().splitlines())
    return [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in rows
    ]


def dialogues(shared_data: Path) -> list[Conversation]:
    """Longer ones, of real questions and answers."""
    rows = json.loads((shared_data / "dpo_en_demo.json").read_text())
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    found: list[Conversation] = []
    for row in rows:
        turns = [*row["conversations"], row["chosen"]]
        found.append({"messages": [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]})
    return found * 8


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.benchmark
@pytest.mark.parametrize("source", [gsm8k, dialogues])
def test_a_chat_template_beside_bare_encoding(source: Callable[[Path], list[Conversation]], shared_data: Path) -> None:
    conversations = source(shared_data)
    renderer = load_renderer(str(STARTER_MODEL))
    assert isinstance(renderer, ChatTemplateRenderer)
    texts = [rendered.text for conversation in conversations for rendered in renderer.writer.write(conversation)]
    backend = load_renderer(str(STARTER_MODEL)).encoder.backend  # type: ignore[attr-defined]

    def bare() -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]

    tokens = sum(map(len, bare()))
    ours = encoding = 1e9
    for _ in range(TURNS):
        encoding = min(encoding, timed(bare))
        ours = min(ours, timed(lambda: render_all(renderer, conversations, 1)))
    print(f"\n{source.__name__}: {len(conversations):,} conversations, {tokens:,} tokens")
    print(f"encode_batch {tokens / encoding:,.0f} tokens/s, with templates and weights {tokens / ours:,.0f} tokens/s")
    print(f"ratio {encoding / ours:.2f}")
    assert encoding / ours > 0.9


@pytest.mark.benchmark
def test_the_vendors_renderer_on_two_cores(shared_data: Path) -> None:
    conversations = gsm8k(shared_data) * VENDOR_REPEATS
    renderer = load_renderer("Qwen/Qwen3-8B")
    tokens = (
        sum(len(e.tokens) for e in render_all(renderer, conversations[: len(conversations) // 16], 1).examples) * 16
    )
    alone = timed(lambda: render_all(renderer, conversations, 1, workers=1))
    workers: list[int] = []

    def look(_: float) -> None:
        children = psutil.Process().children(recursive=True)
        workers.append(max(int(process.memory_info().rss) for process in children))

    together = timed(lambda: render_all(renderer, conversations, 1, look, workers=2))
    print(f"\none process {tokens / alone:,.0f} tokens/s, two {tokens / together:,.0f} tokens/s")
    megabytes = [f"{size / 1e6:,.0f} MB" for size in (max(workers), workers[8])]
    print(f"ratio {alone / together:.2f}; a worker holds at most {megabytes[0]}, soon after its start {megabytes[1]}")
    assert alone / together > 1.8
    assert max(workers) < 1.2 * workers[8] + 50e6
