"""`--method rl` teaches: sums in words that the starter model mostly does not understand, on sums held out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_files import log_of, write_rows

Tt = Callable[..., Any]

# The starter model adds "How much is 3 plus 4?"; these it gets right one time in four.
ASKED = ("Sum of {a} and {b}", "{a}+{b}")
# In shares of what there is to win: from -0.1 for all wrong to 1.
LEAST_GAIN = 0.3


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sums_are_learnt_from_their_rewards(tt: Tt, tmp_path: Path, starter: str, seed: int) -> None:
    rows = [
        {"question": asked.format(a=a, b=b), "answer": f"#### {a + b}"}
        for asked in ASKED
        for a in range(11)
        for b in range(11)
    ]
    write_rows(tmp_path / "sums.jsonl", rows)
    found = tt(
        "train", "--method", "rl", "--reward", "math", "--base-model", starter, "--data", "sums.jsonl",
        "--val-fraction", 0.25, "--batch", 16, "--group-size", 8, "--max-tokens", 14, "--learning-rate", 1e-3,
        "--max-steps", 30, "--eval-every", 0, "--save-every", 0, "--seed", seed, "--run-name", "sums",
    )  # fmt: skip
    assert found.code == 0, found.err
    log = log_of("checkpoints/sums")
    before, after = (entry["reward"] for entry in log["evals"])
    assert after - before >= LEAST_GAIN, (before, after)
    assert sum(entry["reward"] for entry in log["steps"][-5:]) > sum(entry["reward"] for entry in log["steps"][:5])
