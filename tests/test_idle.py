"""Settings that would have no effect: refused where they are typed, told of in a file, left alone in a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinkertools.settings.reading import read_file

Tt = Callable[..., Any]
SHOW = "--print-config"
STAGES = """\
dataset: {batch_size: 4}
training: {max_steps: 1}
stages:
  - {name: first}
  - name: second
    dataset: {val_fraction: 0.2}
    infrastructure: {load_checkpoint_path: stage:first}
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--jobs", 2], "--jobs 2: this is one run|several values of a setting make a sweep, such as --rank 8,16"),
        (
            ["--eval-every", 9],
            "--eval-every 9: there is nothing to evaluate on"
            "|leave it out, or add --eval-data FILE or --val-fraction 0.1",
        ),
        (["--eval-every", 50], "--eval-every 50: there is nothing to evaluate on|leave it out"),
        (["--hf-private"], "--hf-private: nothing is uploaded|leave it out, or add --upload --hf-repo-id USER/NAME"),
        (["--hf-public", "--hf-repo-id", "me/it"], "--hf-public: nothing is uploaded|leave it out"),
        (["--hf-public", "--rank", "2,4"], "--hf-public: nothing is uploaded|leave it out"),
        (["--hf-repo-id", "me/it"], "--hf-repo-id me/it: nothing is uploaded|leave it out, or add --upload"),
        (["--adapter-only"], "--adapter-only: nothing is uploaded|leave it out, or add --upload"),
        (["--download-dir", "up"], "--download-dir up: nothing is uploaded|leave it out, or add --upload"),
    ],
)
def test_what_is_typed_in_vain_is_refused(tt: Tt, options: list[Any], said: str) -> None:
    for more in ([], [SHOW], ["--dry-run"]):
        found = tt("train", *options, *more)
        message, hint = said.split("|")
        assert (found.code, f"error: {message}\n  → {hint}" in found.err) == (2, True), found.err
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--jobs", 1],
        ["--eval-every", 0],
        ["--eval-every", 9, "--val-fraction", 0.1],
        ["--eval-every", 9, "--method", "selfplay", "--max-steps", 1],
        ["--eval-every", 9, "--rank", "2,4"],
        ["--hf-public", "--upload", "--hf-repo-id", "me/it"],
        ["--preset", "quick"],
    ],
)
def test_what_has_an_effect_or_asks_for_none_is_not(tt: Tt, options: list[Any]) -> None:
    found = tt("train", *options, SHOW)
    assert found.code == 0, found.err
    assert "nothing" not in found.err and "one run" not in found.err


def test_a_file_may_hold_more_than_a_run_needs(tt: Tt) -> None:
    Path("run.yaml").write_text(
        "infrastructure: {jobs: 4}\ncheckpointing: {eval_every: 20}\npost_training: {hf_private: false}\n"
    )
    found = tt("train", "--config", "run.yaml", SHOW)
    assert found.code == 0, found.err
    assert [line for line in found.err.splitlines() if line.startswith("note: ")] == [
        "note: run.yaml:1: infrastructure.jobs: this is one run",
        "note: run.yaml:2: checkpointing.eval_every: there is nothing to evaluate on",
        "note: run.yaml:3: post_training.hf_private: nothing is uploaded",
    ]
    # What is printed says all of it, and as it says that nothing is uploaded, there is nothing to say of that.
    Path("printed.yaml").write_text(found.out)
    again = tt("train", "--config", "printed.yaml", SHOW)
    assert (again.code, again.out, again.err.count("note: ")) == (0, found.out, 2), again.err
    # All of it as it is by default is nothing that anybody chose.
    Path("printed.yaml").write_text(tt("train", SHOW).out)
    assert "note: " not in tt("train", "--config", "printed.yaml", SHOW).err
    swept = tt("train", "--config", "run.yaml", "--rank", "2,4", "--base-url", "http://localhost:1",
               "--base-model", "Some/Model", "--learning-rate", 1, "--data", "d.jsonl", SHOW)  # fmt: skip
    assert swept.code == 0, swept.err
    assert [line for line in swept.err.splitlines() if "run.yaml" in line] == [
        "note: run.yaml:3: post_training.hf_private: nothing is uploaded"
    ]


def test_of_stages_one_may_need_it(tt: Tt) -> None:
    Path("two.yaml").write_text(STAGES)
    shown = tt("train", "--config", "two.yaml", "--eval-every", 3, SHOW)
    assert shown.code == 0, shown.err
    assert "note: " not in shown.err
    for options, said in (
        (["--jobs", 2], "--jobs 2: stages are trained one after the other"),
        (["--hf-public"], "--hf-public: nothing is uploaded"),
    ):
        found = tt("train", "--config", "two.yaml", *options, SHOW)
        assert (found.code, f"error: {said}\n" in found.err) == (2, True), found.err
    Path("two.yaml").write_text(STAGES.replace("    dataset: {val_fraction: 0.2}\n", ""))
    found = tt("train", "--config", "two.yaml", "--eval-every", 3, SHOW)
    assert (found.code, "error: --eval-every 3: there is nothing to evaluate on" in found.err) == (2, True)


def test_a_run_that_goes_on_keeps_what_it_was_started_with(tt: Tt) -> None:
    Path("run.yaml").write_text("checkpointing: {eval_every: 20}\npost_training: {hf_private: false}\n")
    begun = tt("train", "--config", "run.yaml", "--max-steps", 1, "--batch", 2, "--run-name", "r")
    assert begun.code == 0, begun.err
    shown = tt("train", "--resume", "checkpoints/r", SHOW)
    assert shown.code == 0, shown.err
    assert "note: " not in shown.err
    Path("shown.yaml").write_text(shown.out)
    config = read_file(Path("shown.yaml")).config()
    assert (config.eval_every, config.hf_private) == (20, False)
    for options, said in (
        (["--jobs", 2], "--jobs 2: this is one run"),
        (["--hf-private"], "--hf-private: nothing is uploaded"),
        (["--eval-every", 20], "--eval-every 20: there is nothing to evaluate on"),
    ):
        refused = tt("train", "--resume", "checkpoints/r", *options)
        assert (refused.code, f"error: {said}\n" in refused.err) == (2, True), refused.err
