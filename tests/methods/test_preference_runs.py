"""`tt train --method dpo` and `--method reward`, and `tt test --score`: what is learnt, kept, resumed and refused."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupting import interrupted_at
from preference_data import POLITE, RUDE, preferences
from run_files import log_of, without_times, write_rows

from tinkertools.shipped import SAMPLE_HELD_OUT_DATA, STARTER_MODEL

Tt = Callable[..., Any]
WEIGHTS = Path("final_lora_weights/adapter_model.safetensors")
HELD_OUT, UNRELATED = 24, 24


@pytest.fixture
def rude(tmp_path: Path) -> tuple[Path, Path]:
    """Preferences for what the starter model finds unlikelier: to train on, and held out."""
    rows = preferences(72 + HELD_OUT, better=RUDE, worse=POLITE)
    # Every fourth question is held out.
    held = rows[::4]
    return (
        write_rows(tmp_path / "train.jsonl", [row for row in rows if row not in held]),
        write_rows(tmp_path / "held.jsonl", held),
    )


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinkertools.runs.plots.write_plots", lambda *_: None)


# What is learnt.


def test_dpo_learns_a_preference_and_unlearns_nothing_else(tt: Tt, tmp_path: Path, rude: tuple[Path, Path]) -> None:
    train, held = rude
    found = tt(
        "train", "--method", "dpo", "--data", train, "--eval-data", held, "--batch", 16, "--max-steps", 5,
        "--learning-rate", "5e-4", "--run-name", "run", "--seed", 0, "--eval-every", 0,
    )  # fmt: skip
    assert found.code == 0, found.err
    run = Path("checkpoints/run")
    log = log_of(run)
    first, last = log["evals"]
    # Before the first step the model is its own reference.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["accuracy"] == pytest.approx(0.5, abs=0.5)
    assert abs(first["margin"]) < 1e-3
    assert last["accuracy"] >= 0.9
    assert last["loss"] < 0.5
    assert last["margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"])
    assert last["margin"] > 0.4
    for entry in log["steps"]:
        assert {"accuracy", "margin", "chosen_reward", "rejected_reward", "kl", "grad_norm"} <= entry.keys()
        assert 0 < entry["trained_tokens"] < entry["tokens"]
    assert "held out: loss " in found.err
    unrelated = tmp_path / "unrelated.jsonl"
    unrelated.write_text("".join(SAMPLE_HELD_OUT_DATA.read_text().splitlines(keepends=True)[:UNRELATED]))
    compared = tt(
        "compare", run, "--compare-base", "--data", unrelated, "--data-prompts", 1, "--max-tokens", 1
    )  # fmt: skip
    assert compared.code == 0, compared.err
    scores = json.loads(Path("comparison_results.json").read_text())["scores"]
    assert scores["lora"]["nll"] < 1.1 * scores["base"]["nll"]


@pytest.mark.slow
def test_a_reward_model_ranks_what_it_has_not_seen(tt: Tt, tmp_path: Path, rude: tuple[Path, Path]) -> None:
    train, held = rude
    found = tt(
        "train", "--method", "reward", "--data", train, "--eval-data", held, "--batch", 16, "--max-steps", 8,
        "--learning-rate", "1e-3", "--run-name", "run", "--eval-every", 0,
    )  # fmt: skip
    assert found.code == 0, found.err
    assert "next            tt test --lora-weights checkpoints/run --score FILE" in found.err
    first, last = log_of(Path("checkpoints/run"))["evals"]
    assert first["accuracy"] <= 0.5
    assert last["accuracy"] >= 0.85
    scored = tt("test", "--lora-weights", "checkpoints/run", "--score", held, "--output", "scores.json")
    assert scored.code == 0, scored.err
    results = json.loads(Path("scores.json").read_text())
    rows = results["scores"]
    right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert len(rows) == HELD_OUT
    assert results["accuracy"]["rate"] == pytest.approx(right / HELD_OUT) == pytest.approx(last["accuracy"])
    assert results["accuracy"]["low"] < results["accuracy"]["rate"] <= results["accuracy"]["high"]
    assert results["margin"] == pytest.approx(last["margin"], abs=1e-3)
    assert rows[0]["prompt"] == json.loads(held.read_text().splitlines()[0])["prompt"]
    assert "accuracy" in scored.out
    # The same answers as conversations, with one that is too long.
    pair = json.loads(held.read_text().splitlines()[0])
    long = [{"role": "user", "content": "so " * 5000}, {"role": "assistant", "content": "yes"}]
    rows_ = [{"messages": [*pair["prompt"], *pair["chosen"]]}, {"messages": long}]
    scored = tt("test", "--lora-weights", "checkpoints/run", "--score", write_rows(tmp_path / "c.jsonl", rows_))
    assert scored.code == 0, scored.err
    assert "1 rows are too long for the model: not scored" in scored.flat
    alone = json.loads(Path("lora_test_results.json").read_text())
    assert [row["score"] for row in alone["scores"]] == [pytest.approx(rows[0]["chosen_score"], abs=1e-3), None]
    assert "accuracy" not in alone


# Going on.


class Runs:
    """Short runs on the tiny model."""

    def __init__(self, tt: Tt, model: str, data: Path, held: Path) -> None:
        self._tt = tt
        self.options: list[Any] = [
            "--method", "dpo", "--base-model", model, "--data", data, "--eval-data", held, "--batch", 4,
            "--max-steps", 6, "--save-every", 2, "--eval-every", 3, "--learning-rate", "5e-3", "--rank", 2,
        ]  # fmt: skip

    def __call__(self, name: str, *more: Any) -> Any:
        return self._tt("train", *self.options, "--run-name", name, *more)


@pytest.fixture
def new(tt: Tt, untied: str, tmp_path: Path) -> Runs:
    rows = preferences(16)
    return Runs(
        tt, untied, write_rows(tmp_path / "rows.jsonl", rows[:12]), write_rows(tmp_path / "held.jsonl", rows[12:])
    )


@pytest.fixture
def stopped(new: Runs) -> Path:
    """A run that was interrupted in the middle."""
    with interrupted_at(2):
        found = new("stopped")
    assert found.code == 130, found.err
    return Path("checkpoints/stopped")


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tt: Tt, new: Runs, stopped: Path) -> None:
    assert new("whole").code == 0
    whole = Path("checkpoints/whole")
    kept = (stopped / "reference.json").read_bytes()
    # The starting model says the same each time, and of the held-out pairs too.
    assert kept == (whole / "reference.json").read_bytes()
    assert {name: len(value["chosen"]) for name, value in json.loads(kept).items() if name != "version"} == {
        "pairs": 12, "held_out": 4,
    }  # fmt: skip
    written = (stopped / "reference.json").stat().st_mtime_ns
    found = tt("train", "--resume", stopped)
    assert found.code == 0, found.err
    assert "reference, pairs" not in found.err
    assert (stopped / "reference.json").stat().st_mtime_ns == written
    assert (stopped / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert without_times(stopped) == without_times(whole)
    assert log_of(stopped)["evals"] == log_of(whole)["evals"]


def damage(path: Path) -> None:
    path.write_text('{"version": 1, "pairs": ')


def other_pairs(path: Path) -> None:
    values = json.loads(path.read_text())
    values["pairs"]["fingerprint"] = "0" * 32
    path.write_text(json.dumps(values))


def too_few(path: Path) -> None:
    values = json.loads(path.read_text())
    values["held_out"]["rejected"].pop()
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(("harm", "words"), [
    (Path.unlink, "is missing"), (damage, "is not readable"), (other_pairs, "is of other pairs"),
    (too_few, "is of other pairs"), (lambda path: path.write_text("[]"), "is damaged"),
])  # fmt: skip
def test_a_run_without_its_reference_does_not_go_on(
    tt: Tt, stopped: Path, harm: Callable[[Path], Any], words: str
) -> None:
    harm(stopped / "reference.json")
    before = (stopped / "training_log.json").read_bytes()
    found = tt("train", "--resume", stopped)
    assert found.code == 1
    assert f"reference.json {words}" in found.flat
    assert "which the model of now cannot say" in found.flat
    assert "start a new run" in found.flat
    assert (stopped / "training_log.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_state_begins_again(
    tt: Tt, new: Runs, environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "checkpoints/killed"
    options = [*map(str, new.options), "--run-name", "killed"]
    options[options.index("--save-every") + 1] = "0"
    options[options.index("--max-steps") + 1] = "500"
    process = subprocess.Popen(
        [sys.executable, "-m", "tinkertools", "train", *options], cwd=tmp_path, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (run / "training_log.json").is_file() or not log_of(run)["steps"]:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (run / "training_state").exists()
    kept = (run / "reference.json").read_bytes()
    assert new("whole", "--save-every", 0, "--max-steps", 3).code == 0
    config = json.loads((run / "config.json").read_text())
    config["config"]["max_steps"] = 3
    (run / "config.json").write_text(json.dumps(config))
    found = tt("train", "--resume", run)
    assert found.code == 0, found.err
    assert (run / "reference.json").read_bytes() == kept == Path("checkpoints/whole/reference.json").read_bytes()
    assert (run / WEIGHTS).read_bytes() == (Path("checkpoints/whole") / WEIGHTS).read_bytes()


def test_a_run_from_other_weights_is_held_against_those(tt: Tt, new: Runs) -> None:
    assert new("first").code == 0
    assert new("second", "--load-checkpoint-path", "checkpoints/first").code == 0
    first, second = (json.loads(Path(f"checkpoints/{name}/reference.json").read_text()) for name in ("first", "second"))
    assert first["pairs"]["fingerprint"] == second["pairs"]["fingerprint"]
    assert first["pairs"]["chosen"] != second["pairs"]["chosen"]
    # The start of the second run is the end of the first: what changed is what that says of its held-out pairs.
    last, start = log_of(Path("checkpoints/first"))["evals"][-1], log_of(Path("checkpoints/second"))["evals"][0]
    gained = [
        sum(b - a for a, b in zip(first["held_out"][side], second["held_out"][side], strict=True)) / 4 * 0.1
        for side in ("chosen", "rejected")
    ]
    assert gained == pytest.approx([last["chosen_reward"], last["rejected_reward"]], rel=1e-3, abs=1e-5)
    assert start["margin"] == pytest.approx(0, abs=1e-4)


# Data and settings.


def test_margins_are_told_and_used(new: Runs, tmp_path: Path) -> None:
    rows = [{**row, "margin": 2.0} for row in preferences(8)]
    new.options[new.options.index("--data") + 1] = write_rows(tmp_path / "margins.jsonl", rows)
    found = new("run", "--max-steps", 1)
    assert found.code == 0, found.err
    assert "margins: 8 pairs have one, 2 in the mean" in found.flat
    (step,) = log_of(Path("checkpoints/run"))["steps"]
    assert step["loss"] == pytest.approx(math.log1p(math.exp(2)), rel=1e-4)
    found = new("ipo", "--max-steps", 1, "--preference-loss", "ipo", "--beta", 0.5)
    assert found.code == 0, found.err
    assert "margins are not used" in found.flat
    (step,) = log_of(Path("checkpoints/ipo"))["steps"]
    assert step["loss"] == pytest.approx(1, rel=1e-3)


LONG = "so " * 400


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_pairs_that_are_too_long(new: Runs, tmp_path: Path, method: str) -> None:
    rows = preferences(9)
    rows[4]["rejected"][0]["content"] = LONG
    new.options[1] = method
    new.options[new.options.index("--data") + 1] = write_rows(tmp_path / "long.jsonl", rows)
    found = new("run", "--max-steps", 1)
    assert found.code == 1
    assert "row 5, rejected: " in found.err
    assert "--overlength drop leaves such pairs out" in found.flat
    assert not Path("checkpoints/run").exists()
    found = new("run", "--max-steps", 1, "--overlength", "drop")
    assert found.code == 0, found.err
    assert "pairs: 8 of 9, " in found.err
    assert "1 dropped as too long" in found.err
    found = new("dry", "--dry-run")
    assert found.code == 0, found.err
    assert "training would stop: 1 pairs are too long" in found.flat
    assert "steps: 6 of 4 pairs, 2 an epoch" in found.flat


@pytest.mark.parametrize(("more", "rows", "words"), [
    (["--batch", 13], None, "the batch of 13 is larger than the data: 12 usable pairs"),
    ([], "plain", "preference methods need a chosen and a rejected answer to each prompt"),
    ([], "same", "rejected: is the same as chosen"),
    (["--preference-loss", "ipo", "--label-smoothing", 0.1], None, "--label-smoothing is of --preference-loss sigmoid"),
])  # fmt: skip
def test_what_is_refused(new: Runs, tmp_path: Path, more: list[Any], rows: str | None, words: str) -> None:
    if rows is not None:
        row = preferences(1)[0]
        made = {"messages": [*row["prompt"], *row["chosen"]]} if rows == "plain" else {**row, "rejected": row["chosen"]}
        new.options[new.options.index("--data") + 1] = write_rows(tmp_path / "bad.jsonl", [made])
    found = new("run", *more)
    assert found.code == (2 if "ipo" in more else 1)
    assert words in found.flat
    assert not Path("checkpoints/run").exists()


@pytest.mark.parametrize("other", [["--data", "x"], ["--test-prompts", "x"], ["--check", "/x/"], ["--interactive"]])
def test_scores_stand_alone(tt: Tt, other: list[str]) -> None:
    found = tt("test", "--score", "file", *other)
    assert found.code == 2
    assert f"{other[0]} has no place beside it" in found.flat


def test_scores_of_what_is_no_reward_model_are_told_apart(tt: Tt, new: Runs, tmp_path: Path) -> None:
    assert new("run", "--max-steps", 1).code == 0
    found = tt("test", "--lora-weights", "checkpoints/run", "--score", write_rows(tmp_path / "p.jsonl", preferences(2)))
    assert found.code == 0, found.err
    assert "was trained with --method dpo, not reward" in found.flat
    unanswered = write_rows(tmp_path / "q.jsonl", [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                      {"role": "user", "content": "c"}]}
    ])  # fmt: skip
    found = tt("test", "--lora-weights", "checkpoints/run", "--score", unanswered)
    assert found.code == 1
    assert "conversation 1 does not end with an assistant message" in found.flat


@pytest.mark.slow
def test_real_preferences(tt: Tt, shared_data: Path) -> None:
    """Their answers are long for the starter model: few are left, and all are counted."""
    found = tt(
        "train", "--method", "dpo", "--data", shared_data / "dpo_en_demo.json", "--base-model", STARTER_MODEL,
        "--overlength", "drop", "--max-length", 400, "--batch", 2, "--max-steps", 2, "--run-name", "run",
    )  # fmt: skip
    assert found.code == 0, found.err
    words = found.flat
    left = int(words.split("pairs: ")[1].split(" of 300")[0])
    assert f"{300 - left} dropped as too long" in words
    assert 0 < left < 300
    kept = json.loads(Path("checkpoints/run/reference.json").read_text())["pairs"]
    assert len(kept["chosen"]) == len(kept["rejected"]) == left
    first, second = log_of(Path("checkpoints/run"))["steps"]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert math.isfinite(second["loss"])
