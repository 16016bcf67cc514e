"""Stages: each is an ordinary run, later ones build upon earlier ones, and they stop and go on as a whole."""

import json
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupting import interrupted_in_stage
from run_files import sums, write_rows

from tinkertools.config import TrainConfig
from tinkertools.errors import UsageError
from tinkertools.runs.directory import RunDirectory
from tinkertools.runs.stages import StagesDirectory, find_stages
from tinkertools.settings.given import Given
from tinkertools.settings.reading import from_options, read_file
from tinkertools.settings.schema import json_schema
from tinkertools.staging import running

Tt = Callable[..., Any]
WEIGHTS = "final_lora_weights/adapter_model.safetensors"

# What stands for `tt train --config FILE` where it does not matter what is computed; the file on_NAME in the working
# directory makes the run of that name fail.
FAKE = textwrap.dedent("""
    import json, pathlib, re, sys
    text = pathlib.Path(sys.argv[1]).read_text()
    run = pathlib.Path(re.search(r"log_path: (.*)", text)[1])
    with open("started", "a") as file:
        file.write(f"{run.name}\\n")
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text("{}")
    if pathlib.Path(f"on_{run.name}").exists():
        print("error: the data are gone\\n  → put them back", file=sys.stderr)
        sys.exit(1)
    print("a line", file=sys.stderr)
    evals = [{"step": 1, "nll": 0.5}] if "val_fraction" in text else []
    log = {"version": 1, "steps": [{"step": 1, "loss": 2.25}], "evals": evals}
    (run / "training_log.json").write_text(json.dumps(log))
    (run / "final_lora_weights").mkdir()
""")

TWO = """\
model: {lora_rank: 4}
dataset: {batch_size: 4}
stages:
  - name: first
    dataset: {name: a.jsonl}
    training: {max_steps: 3}
  - name: second
    dataset: {name: b.jsonl, val_fraction: 0.2}
    training: {max_steps: 12, learning_rate: 1e-3}
    checkpointing: {save_every: 0}
    infrastructure: {load_checkpoint_path: stage:first}
"""

RLHF = """\
model: {lora_rank: 16}
stages:
  - name: sft
    method: sft
    dataset: {name: a.jsonl}
  - name: judge
    method: reward
    dataset: {name: pairs.jsonl}
  - name: rl
    method: rl
    dataset: {name: b.jsonl}
    infrastructure: {load_checkpoint_path: stage:sft}
    rl: {reward: score:stage:judge}
"""


@pytest.fixture
def files(tt: Tt, tmp_path: Path) -> Path:
    """The data of TWO, beside it in the working directory."""
    write_rows(tmp_path / "a.jsonl", sums(12))
    write_rows(tmp_path / "b.jsonl", sums(12, first=20))
    (tmp_path / "two.yaml").write_text(TWO)
    (tmp_path / "rlhf.yaml").write_text(RLHF)
    return tmp_path


@pytest.fixture
def staged(tt: Tt, files: Path, monkeypatch: pytest.MonkeyPatch) -> Tt:
    """Train with runs that compute nothing."""
    monkeypatch.setattr(running, "command_of", lambda config: [sys.executable, "-c", FAKE, str(config)])
    return lambda *more: tt("train", *more)


def started() -> list[str]:
    """The runs that were started, in order."""
    return Path("started").read_text().split() if Path("started").exists() else []


def stored(directory: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((Path(directory) / "stages.json").read_text())["stages"]
    return found


def child(directory: str, name: str) -> TrainConfig:
    """The settings that a stage's run is started with."""
    return read_file(Path(directory) / "configs" / f"{name}.yaml").config()


@pytest.mark.slow
def test_stages_that_are_interrupted_end_as_the_same_runs_done_by_hand(tt: Tt, files: Path) -> None:
    log = files / "checkpoints/s/second/training_log.json"
    with interrupted_in_stage("second", log):
        found = tt("train", "--config", "two.yaml", "--run-name", "s")
    assert found.code == 130, found.err
    assert "stopped in stage 2 of 2, second; 1 of 2 stages are finished" in found.err
    assert "tt train --resume checkpoints/s" in found.err
    assert [entry["state"] for entry in stored("checkpoints/s")] == ["finished", "unfinished"]
    first = files / "checkpoints/s/first" / WEIGHTS
    before = (first.read_bytes(), first.stat().st_mtime_ns)

    (files / "two.yaml").unlink()
    again = tt("train", "--resume", "latest")
    assert again.code == 0, again.err
    assert "stage 1 of 2, first: finished already" in again.err
    assert "[second] going on with step" in again.err
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert [entry["state"] for entry in stored("checkpoints/s")] == ["finished", "finished"]
    assert "next            tt compare checkpoints/s/second --compare-base" in again.err
    assert again.out.splitlines()[-1] == "checkpoints/s"
    nll = json.loads(log.read_text())["evals"][-1]["nll"]
    assert re.search(rf"│ second +│ sft +│ .*NLL {nll:.4f} ", again.out)

    both = ["--batch", 4, "--run-name"]
    one = tt("train", "--data", "a.jsonl", "--max-steps", 3, "--rank", 4, *both, "one")
    assert one.code == 0, one.err
    start = ["--load-checkpoint-path", "checkpoints/one", "--save-every", 0, "--learning-rate", 1e-3]
    two = tt("train", "--data", "b.jsonl", "--val-fraction", 0.2, "--max-steps", 12, *start, *both, "two")
    assert two.code == 0, two.err
    assert first.read_bytes() == (files / "checkpoints/one" / WEIGHTS).read_bytes()
    assert (files / "checkpoints/s/second" / WEIGHTS).read_bytes() == (files / "checkpoints/two" / WEIGHTS).read_bytes()


def test_a_stage_that_fails_stops_the_rest_and_is_tried_again(staged: Tt) -> None:
    Path("on_second").touch()
    text = TWO + "  - name: third\n    infrastructure: {load_checkpoint_path: stage:second}\n"
    Path("three.yaml").write_text(text.replace("dataset: {batch_size: 4}", "dataset: {batch_size: 4, name: a.jsonl}"))
    found = staged("--config", "three.yaml", "--run-name", "s")
    assert found.code == 1
    assert "stage 2 of 3, second, failed: the data are gone" in found.err
    assert "mend what is wrong, then tt train --resume checkpoints/s tries it again" in found.err
    assert found.out == ""
    assert "[first] a line" in found.err
    entries = stored("checkpoints/s")
    assert [entry["state"] for entry in entries] == ["finished", "failed", "waiting"]
    assert entries[1]["error"] == "the data are gone"
    assert Path("checkpoints/s/logs/second.txt").read_text().startswith("error: the data are gone\n")
    Path("on_second").unlink()
    again = staged("--resume", "checkpoints/s")
    assert again.code == 0, again.err
    assert started() == ["first", "second", "second", "third"]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in again.out.splitlines() if "│" in line]
    assert rows == [
        ["first", "sft", "checkpoints/s/first", "loss 2.2500"],
        ["second", "sft", "checkpoints/s/second", "NLL 0.5000"],
        ["third", "sft", "checkpoints/s/third", "loss 2.2500"],
    ]
    assert staged("--resume", "s").code == 0
    assert started()[4:] == []


def test_what_a_stage_is_started_with(staged: Tt, files: Path) -> None:
    """What stands outside, what the stage says, and options, in this order; and the run of the stage it names."""
    found = staged("--config", "two.yaml", "--preset", "quick", "--seed", 7, "--max-steps", 5, "--wandb-name", "w")
    assert found.code == 0, found.err
    assert "stage first: preset quick: learning rate 0.0001; two.yaml:1: model.lora_rank and two.yaml:2" in found.err
    directory = found.out.splitlines()[-1]
    assert re.fullmatch(r"checkpoints/stages_\d{8}_\d{6}", directory)
    first, second = child(directory, "first"), child(directory, "second")
    assert (first.rank, first.batch, first.seed, first.max_steps, first.wandb_name) == (4, 4, 7, 5, "w-first")
    assert (second.rank, second.batch, second.seed, second.max_steps, second.wandb_name) == (4, 4, 7, 5, "w-second")
    assert (first.learning_rate, second.learning_rate) == (1e-4, 1e-3)
    assert (first.data, second.data) == (str(files / "a.jsonl"), str(files / "b.jsonl"))
    assert (first.log_path, second.log_path) == (files / directory / "first", files / directory / "second")
    assert (first.load_checkpoint_path, second.load_checkpoint_path) == (None, str(files / directory / "first"))
    assert stored(directory)[1]["settings"]["load_checkpoint_path"] == "stage:first"


def test_the_rank_is_that_of_the_stage_it_starts_from(staged: Tt) -> None:
    text = TWO.replace("model: {lora_rank: 4}\n", "").replace(
        "  - name: first\n", "  - name: first\n    model: {lora_rank: 2}\n"
    )
    Path("ranks.yaml").write_text(text)
    assert staged("--config", "ranks.yaml", "--run-name", "s").code == 0
    assert child("checkpoints/s", "second").rank == 2
    Path("ranks.yaml").write_text(text.replace("  - name: second\n", "  - name: second\n    model: {lora_rank: 3}\n"))
    found = staged("--config", "ranks.yaml", "--run-name", "t")
    assert found.code == 2
    assert "stage second: ranks.yaml:8: model.lora_rank: stage:first has rank 2" in found.flat


ERRORS = [
    ("stages: sft\n", ":1: stages is 'sft', but must be a list", "stages: [sft, …]"),
    ("stages: []\n", ":1: stages is an empty list", "- name: sft"),
    ("stages: [sft]\n", ":1: a stage is 'sft', but must hold a name and settings", "- name: sft"),
    ("stages:\n  -\n", ":2: a stage is empty, but must hold", "- name: sft"),
    ("stages:\n  - method: sft\n", ":2: a stage has no name", "- name: sft"),
    ("stages:\n  - method: sft\n    name: null\n", ":3: a stage has no name", "- name: sft"),
    ("stages:\n  - name: 5\n", ":2: name is 5, but must be letters, digits", "name: sft"),
    ("stages:\n  - name: ../a\n", ":2: name is '../a', but must be letters, digits", "name: sft"),
    ("stages:\n  - name: logs\n", ":2: logs is no name for a stage", "something else lies there"),
    ("stages:\n  - name: a\n  - name: a\n", ":3: there are two stages a, the other in run.yaml:2", "another name"),
    ("stages:\n  - name: a\n    stages: []\n", ":3: a stage has no stages", "one after the other"),
    ("stages:\n  - name: a\n    name: b\n", ":3: name stands here and in line 2", "leave one of them out"),
    ("stages:\n  - name: a\n    modle: {name: b}\n", ":3: there is no section 'modle'", "did you mean model?"),
    ("stages:\n  - name: a\n    model: {nme: b}\n", ":3: there is no model.nme", "did you mean name?"),
    ("stages:\n  - name: a\n    model:\n      lora_rank: 0\n", ":4: model.lora_rank is 0, but must be", "16"),
    ("stage:\n  - name: a\n", ":1: there is no section 'stage'", "did you mean stages?"),
    ("sweep:\n  seed: [1, 2]\nstages:\n  - name: a\n", ":2: sweep.seed: a sweep and stages do not go", "one value"),
    (
        "stages:\n  - name: a\n    sweep:\n      seed: [1, 2]\n",
        ":4: sweep.seed: a sweep and stages do not",
        "one value",
    ),
    (
        "stages:\n  - name: a\n    logging:\n      run_name: b\n",
        ":4: logging.run_name: each stage is written into the directory of all",
        "outside of the stages",
    ),
    (
        "post_training: {enabled: true, hf_repo_id: a/b}\nstages:\n  - name: a\n  - name: b\n",
        ":1: post_training.enabled: stages have many results",
        "in the stage whose result is meant",
    ),
    (
        "stages:\n  - name: a\n    rl:\n      group_size: 4\n",
        "stage a: run.yaml:4: rl.group_size: --group-size is of --method rl and distill, and this is sft",
        "leave it out",
    ),
    (
        "rl: {group_size: 4}\nstages:\n  - name: a\n",
        "stage a: run.yaml:1: rl.group_size: --group-size is of --method rl and distill",
        "say it in the stages that it is for",
    ),
    (
        "stages:\n  - name: a\n    infrastructure:\n      load_checkpoint_path: stage:a\n",
        ":4: infrastructure.load_checkpoint_path: stage:a is this stage itself",
        "name one before it",
    ),
    (
        "stages:\n  - name: a\n    infrastructure: {load_checkpoint_path: stage:b}\n  - name: b\n",
        ":3: infrastructure.load_checkpoint_path: stage:b comes after a",
        "write it before",
    ),
    (
        "stages:\n  - name: first\n  - name: b\n    method: distill\n    distillation: {teacher: stage:frist}\n",
        ":5: distillation.teacher: stage:frist: there is no such stage",
        "did you mean first?",
    ),
    (
        "stages:\n  - name: a\n    method: rl\n    rl: {reward: score:stage:zz}\n",
        ":4: rl.reward: score:stage:zz: there is no such stage",
        "before a there are none",
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), ERRORS)
def test_what_is_wrong_is_said_with_its_line_before_anything_runs(
    staged: Tt, text: str, message: str, hint: str
) -> None:
    Path("run.yaml").write_text(text)
    found = staged("--config", "run.yaml", "--data", "a.jsonl")
    assert found.code == 2, found.err
    shown = found.flat
    assert message in shown
    assert hint in shown.partition("→")[2]
    assert "Traceback" not in shown
    assert (started(), Path("checkpoints").exists()) == ([], False)


def test_places_of_settings_are_checked_as_those_of_a_run(staged: Tt) -> None:
    assert "--rank: a sweep and stages do not go together" in staged("--config", "two.yaml", "--rank", "2,4").err
    assert "there is no such stage" in staged("--config", "two.yaml", "--load-checkpoint-path", "stage:x").err
    Path("gone.yaml").write_text(TWO.replace("name: b.jsonl, val_fraction: 0.2", "val_fraction: 0.2"))
    found = staged("--config", "gone.yaml", "--base-model", "some/model", "--engine", "local")
    assert (found.code, "stage second: no --data" in found.err) == (2, True), found.err
    assert started() == []


@pytest.mark.parametrize("file", ["two.yaml", "rlhf.yaml"])
def test_what_is_printed_gives_the_same_stages(staged: Tt, files: Path, file: str) -> None:
    write_rows(files / "pairs.jsonl", sums(12, first=40))
    options = ["--base-model", "", "--run-name", "s"]
    printed = staged("--config", file, *options, "--print-config")
    assert printed.code == 0, printed.err
    Path("printed.yaml").write_text(printed.out)
    again = staged("--config", "printed.yaml", "--print-config")
    assert (again.code, again.out) == (0, printed.out), again.err
    assert "stage:" in printed.out
    before, after = read_file(Path(file)), read_file(Path("printed.yaml"))
    assert [stage.name for stage in after.stages] == [stage.name for stage in before.stages]
    assert after.values["run_name"] == "s"
    for old, new in zip(before.stages, after.stages, strict=True):
        config = Given(before.values).under(old.given).config()
        changed = {"base_model", "data", "engine", "learning_rate"}
        same = {name: getattr(config, name) for name in TrainConfig.model_fields if name not in changed}
        found = Given().under(new.given).config()
        assert {name: getattr(found, name) for name in same} == same
        assert found.data == str(files / config.data)
        assert isinstance(found.learning_rate, float)
    assert (started(), Path("checkpoints").exists()) == ([], False)


def test_the_three_stages_of_rlhf(staged: Tt, files: Path) -> None:
    write_rows(files / "pairs.jsonl", sums(12, first=40))
    found = staged("--config", "rlhf.yaml", "--run-name", "s")
    assert found.code == 0, found.err
    assert started() == ["sft", "judge", "rl"]
    configs = [child("checkpoints/s", name) for name in ("sft", "judge", "rl")]
    assert [config.method for config in configs] == ["sft", "reward", "rl"]
    assert configs[2].reward == f"score:{files}/checkpoints/s/judge"
    assert configs[2].load_checkpoint_path == f"{files}/checkpoints/s/sft"
    assert "next            tt compare checkpoints/s/rl --compare-base" in found.err


def test_a_dry_run_tells_each_stage(staged: Tt, files: Path, tiny: str) -> None:
    write_rows(files / "pairs.jsonl", sums(12, first=40))
    found = staged("--config", "two.yaml", "--base-model", tiny, "--dry-run")
    assert found.code == 0, found.err
    shown = found.flat
    assert f"stage first, --method sft: waiting, {files}/a.jsonl, batch 4, 3 steps, rank 4, learning rate auto" in shown
    assert "12 steps, rank 4, learning rate 0.001, load checkpoint path stage:first, into checkpoints/stages_" in shown
    assert "steps: 3 of 4 conversations" in shown
    assert "steps: 12 of 4 conversations" in shown
    assert (started(), Path("checkpoints").exists()) == ([], False)


def test_stages_go_on_with_what_does_not_change_the_result(staged: Tt) -> None:
    Path("on_second").touch()
    assert staged("--config", "two.yaml", "--run-name", "s").code == 1
    for options, message in [
        (["--rank", "8"], "--rank 8: stage first was started with 4"),
        (["--max-steps", "9"], "--max-steps 9: stage first was started with 3"),
        (["--preset", "quick"], "--preset quick: stage first was started with None"),
    ]:
        found = staged("--resume", "checkpoints/s", *options)
        assert (found.code, message in found.err) == (2, True), found.err
    Path("on_second").unlink()
    behavior = ["--behavior-if-log-dir-exists", "resume", "--run-name", "s"]
    other = staged("--config", "rlhf.yaml", "--data", "a.jsonl", *behavior)
    assert (other.code, "was started with the stages first, second" in other.err) == (2, True), other.err
    assert staged("--config", "two.yaml", "--run-name", "s").code == 1  # nobody can be asked
    found = staged("--config", "two.yaml", "--rank", 4, "--keep-last", 2, "--timeout", 9, *behavior)
    assert found.code == 0, found.err
    assert child("checkpoints/s", "second").keep_last == 2
    assert started() == ["first", "second", "second"]
    anew = staged("--config", "two.yaml", "--run-name", "s", "--behavior-if-log-dir-exists", "overwrite")
    assert anew.code == 0, anew.err
    assert started()[3:] == ["first", "second"]


def test_a_stage_without_a_step_is_mended_in_the_file(staged: Tt) -> None:
    Path("on_second").touch()
    found = staged("--config", "two.yaml", "--run-name", "s")
    assert "where its settings are wrong, with --config FILE once they are mended there" in found.flat
    Path("on_second").unlink()
    for old, new, message in [
        ("max_steps: 3}", "max_steps: 4}", "two.yaml:6: training.max_steps: 4: stage first was started with 3"),
        ("name: second", "name: other", "was started with the stages first, second"),
    ]:
        Path("two.yaml").write_text(TWO.replace(old, new))
        refused = staged("--config", "two.yaml", "--resume", "checkpoints/s")
        assert (refused.code, message in refused.err) == (2, True), refused.err
    Path("two.yaml").write_text(TWO.replace("max_steps: 12", "max_steps: 20"))
    mended = staged("--config", "two.yaml", "--resume", "checkpoints/s")
    assert mended.code == 0, mended.err
    second = child("checkpoints/s", "second")
    assert (second.max_steps, second.behavior_if_log_dir_exists) == (20, "overwrite")
    assert stored("checkpoints/s")[1]["settings"]["max_steps"] == 20
    assert started() == ["first", "second", "second"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not readable"),
        ('{"version": 1}', "is damaged: it must hold stages"),
        ('{"version": 9, "tinkertools": "9.9", "stages": []}', "was written by tinkertools 9.9 in format 9"),
        ('{"version": 1, "created": "", "stages": [1]}', "stages.json is damaged"),
        ('{"version": 1, "created": "", "stages": [{"name": "a", "settings": {"rank": "b"}}]}', "rank is 'b'"),
    ],
)
def test_a_damaged_file_is_named(staged: Tt, text: str, message: str) -> None:
    Path("s").mkdir()
    Path("s/stages.json").write_text(text)
    found = staged("--resume", "s")
    assert (found.code, message in found.err) == (1, True), found.err
    assert "Traceback" not in found.err


def test_the_newest_of_runs_sweeps_and_stages(staged: Tt, tmp_path: Path) -> None:
    for when, name in enumerate(["a/config.json", "b/stages.json", "c/sweep.json", "d/stages.json"], 1):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (when, when))
    assert find_stages("latest", tmp_path) == StagesDirectory(tmp_path / "d")
    os.utime(tmp_path / "a/config.json", (9, 9))
    assert find_stages("latest", tmp_path) is None
    assert find_stages("b", tmp_path / "x") == StagesDirectory(Path("b"))
    assert find_stages(tmp_path.name, tmp_path.parent) is None
    os.utime(tmp_path / "b/stages.json", (10, 10))
    assert find_stages("latest", tmp_path) == StagesDirectory(tmp_path / "b")
    assert find_stages("a", tmp_path) is None
    found = staged("--resume", "a", "--config", "two.yaml", "--output-dir", tmp_path)
    assert (found.code, "a has no stages to go on with" in found.err) == (2, True), found.err


SOME = {
    "rank": st.integers(1, 9),
    "batch": st.integers(1, 9),
    "seed": st.integers(0, 9),
    "max_steps": st.integers(0, 9),
}
KEYS = {"rank": "model", "batch": "dataset", "seed": "training", "max_steps": "training"}
LAST = {"rank": "lora_rank", "batch": "batch_size", "seed": "seed", "max_steps": "max_steps"}


def sections_of(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.setdefault(KEYS[name], {})[LAST[name]] = value
    return found


ANY = st.fixed_dictionaries({}, optional=SOME)


@given(ANY, st.lists(ANY, min_size=1, max_size=3), ANY)
def test_options_win_over_stages_and_stages_over_what_holds_for_all(
    shared: dict[str, Any], stages: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    document = sections_of(shared) | {"stages": [{"name": f"s{i}"} | sections_of(v) for i, v in enumerate(stages)]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(json.dumps(document, indent=1))
        found = read_file(path).under(from_options({name: str(value) for name, value in options.items()}))
    assert [stage.name for stage in found.stages] == [f"s{i}" for i in range(len(stages))]
    for stage, own in zip(found.stages, stages, strict=True):
        merged = Given(found.values, found.places).under(stage.given)
        assert merged.values == shared | own | options
        assert {name for name, place in merged.places.items() if place.startswith("--")} == options.keys()


def test_the_schema_has_stages() -> None:
    schema = json_schema()["properties"]
    each = schema["stages"]["items"]
    assert (each["required"], each["additionalProperties"]) == (["name"], False)
    assert each["properties"].keys() == {"name", *schema} - {"sweep", "stages"}
    assert each["properties"]["model"] == schema["model"]
    assert re.fullmatch(each["properties"]["name"]["pattern"], "sft-2.b")
    assert not re.fullmatch(each["properties"]["name"]["pattern"], "a/b")


def test_null_and_no_stages_are_a_run(staged: Tt, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("stages: null\nmodel: {lora_rank: 3}\n")
    assert read_file(path) == Given({"rank": 3}, {"rank": f"{path}:2: model.lora_rank"})
    path.write_text("stages:\n  - name: a\n    model: 5\n")
    with pytest.raises(UsageError, match=r"run\.yaml:3: model is 5, but must hold settings"):
        read_file(path)
    assert not RunDirectory(tmp_path / "checkpoints").exists
