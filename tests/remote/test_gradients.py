"""Custom losses and policy losses on a real server, against the embedded engine with the same adapter.

SkyRL tells the norm of the gradient that it steps with: the mean over datums of what it was sent.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from servers import NEWEST, ROOT, SkyRL, Start, ended

# A minute, most of it for the server: too long for every change.
pytestmark = [pytest.mark.timeout(1500), pytest.mark.long]

SCRIPT = ROOT / "tests" / "remote" / "gradients.py"
QUESTION = "What is 2 plus 3?"
# Of different lengths: a gradient that was divided by the length of its datum would be another one.
ANSWERS = (
    "It is 5.", "I am not sure, but it could be seven or eight, who knows.", "Five.", "Nobody can tell you that.",
)  # fmt: skip
THRESHOLDS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
STEPS = 3

# The server computes in bfloat16. Norms of gradients were 0.2 % to 1.9 % apart, most where a threshold decides, losses
# as much, and losses of the steps after it 2 %. A mean in the place of a sum would be off by a factor of five or more.
SAME = 0.05


@pytest.fixture(scope="module")
def found(start: Start, skyrl: SkyRL, served: str, workplace: Path) -> dict[str, Any]:
    """What both engines find."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(served)
    batch = []
    for answer in ANSWERS:
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
        tokens = tokenizer.apply_chat_template(messages, return_dict=False)
        prompt = len(tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False))
        batch.append((tokens, [0.0] * (prompt - 1) + [1.0] * (len(tokens) - prompt)))
    asked = {
        "base_url": skyrl.url, "base_model": served, "rank": 8, "batch": batch, "thresholds": THRESHOLDS,
        "learning_rate": 5e-3, "steps": STEPS,
    }  # fmt: skip
    (workplace / "gradients.json").write_text(json.dumps(asked))
    ran = ended(start(NEWEST, SCRIPT, "gradients.json", "found_gradients.json"))
    assert ran.code == 0, ran.err
    read: dict[str, Any] = json.loads((workplace / "found_gradients.json").read_text())
    return read


@pytest.mark.parametrize("loss", ["preference", "squares", "importance_sampling", "ppo", "cispo"])
def test_losses_and_gradients_are_those_of_the_embedded_engine(found: dict[str, Any], loss: str) -> None:
    here, there = found["here"][loss], found["there"][loss]
    assert there["metrics"].keys() == here["metrics"].keys()
    for name, value in here["metrics"].items():
        assert there["metrics"][name] == pytest.approx(value, rel=SAME)
    norm = there["step"]["skyrl.ai/grad_norm"] * len(ANSWERS)
    assert norm == pytest.approx(here["step"]["grad_norm"], rel=SAME)


def test_steps_with_a_custom_loss_go_the_same_way(found: dict[str, Any]) -> None:
    here, there = found["here"]["steps"], found["there"]["steps"]
    assert there == pytest.approx(here, rel=SAME)
    assert len(set(here)) == STEPS


def test_a_loss_that_it_does_not_have_is_named(found: dict[str, Any]) -> None:
    assert "does not take the loss dro (HTTP 422)" in found["dro"]
    assert "'importance_sampling', 'ppo', 'cispo'" in found["dro"]
