"""Preferences of the starter model's world, for tests of what learns from them."""

import json
from typing import Any

from tinkertools.shipped import SAMPLE_TRAINING_DATA

POLITE, RUDE = "Thank you for asking.", "Go away now."


def preferences(count: int, better: str = POLITE, worse: str = RUDE, **more: Any) -> list[dict[str, Any]]:
    """Right answers to short questions of the samples, each question once, that end in one way or the other."""
    found = {}
    for line in SAMPLE_TRAINING_DATA.read_text().splitlines():
        messages = json.loads(line)["messages"]
        if len(messages) == 2:
            question, answer = (message["content"] for message in messages)
            found[question] = answer.removeprefix("Ahoy! ").removesuffix(" by my lantern.") + "."
    # Not in the order of the file, in which questions of a kind may stand together.
    chosen = sorted(found, key=lambda question: (len(question), question[::-1]))[:count]
    assert len(chosen) == count
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": f"{found[question]} {better}"}],
            "rejected": [{"role": "assistant", "content": f"{found[question]} {worse}"}],
            **more,
        }
        for question in chosen
    ]
