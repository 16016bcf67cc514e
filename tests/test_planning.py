"""Where a run goes, what it starts from, which data it takes, and what happens after it."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_hub import Account, ModelHub
from preference_data import preferences
from run_files import run_of, sums, write_rows
from safetensors.torch import load_file

from tinkertools.chat.rendering import load_renderer
from tinkertools.chat.sources import find_source
from tinkertools.config import TrainConfig
from tinkertools.planning import plan_run
from tinkertools.runs.directory import RunDirectory
from tinkertools.settings.given import Given
from tinkertools.settings.writing import write_yaml

Tt = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "chats.jsonl", sums(12, question="What is {} plus 1?"))


@pytest.fixture
def train(tt: Tt, untied: str, data: Path) -> Tt:
    """`tt train` of three steps."""
    return lambda *more: tt(
        "train", "--base-model", untied, "--data", data, "--batch", 4, "--max-steps", 3, "--rank", 2, *more
    )


def weights_of(run: RunDirectory) -> bytes:
    return (run.final_weights / WEIGHTS).read_bytes()


def config_of(run: RunDirectory) -> TrainConfig:
    return TrainConfig.from_json(run.read_config()["config"], run.path)


def test_log_path_is_the_whole_path(train: Tt, tmp_path: Path) -> None:
    run = run_of(train("--log-path", tmp_path / "deep" / "run"))
    assert run.path == tmp_path / "deep" / "run"
    assert run.finished
    found = train("--log-path", tmp_path / "deep" / "run")
    assert (found.code, found.out) == (1, "")
    assert f"{tmp_path}/deep/run exists" in found.err


def test_what_happens_where_a_run_is_there(train: Tt) -> None:
    there = ("--run-name", "r", "--behavior-if-log-dir-exists")
    first = weights_of(run_of(train(*there, "fail")))
    refused = train(*there, "fail", "--seed", 1)
    assert (refused.code, refused.out) == (1, "")
    assert "checkpoints/r exists" in refused.err
    # Nobody can be asked here: that is a no.
    assert train("--run-name", "r", "--seed", 1).code == 1
    assert weights_of(RunDirectory(Path("checkpoints/r"))) == first
    gone_on = train(*there, "resume")
    assert gone_on.code == 0
    assert "is finished: there is nothing left to train" in gone_on.err
    other = train(*there, "resume", "--seed", 1)
    assert other.code == 2
    assert "--seed 1: the run was started with 0" in other.err
    assert weights_of(RunDirectory(Path("checkpoints/r"))) == first
    new = run_of(train(*there, "overwrite", "--seed", 1))
    assert weights_of(new) != first
    assert config_of(new).seed == 1
    assert [path.name for path in Path("checkpoints").iterdir()] == ["r"]


def test_what_is_no_run_is_not_overwritten(train: Tt) -> None:
    mine = Path("checkpoints/r/mine.txt")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    found = train("--run-name", "r", "--behavior-if-log-dir-exists", "overwrite")
    assert found.code == 1
    assert "checkpoints/r exists and holds no run: it is not overwritten" in found.err
    assert mine.read_text() == "mine"


def test_a_run_is_overwritten_only_by_one_that_begins(train: Tt, data: Path) -> None:
    """Whatever fails before the first step leaves the old run as it was."""
    there = ("--run-name", "r", "--behavior-if-log-dir-exists", "overwrite")
    old = run_of(train(*there))
    before = {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()}
    kept = data.read_text()
    data.write_text("{}\n")
    assert train(*there).code == 1
    data.write_text(kept)
    assert train(*there, "--load-checkpoint-path", "nowhere").code == 1
    assert {path: path.read_bytes() for path in old.path.rglob("*") if path.is_file()} == before
    assert [path.name for path in Path("checkpoints").iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [("r\n", 0, "there is nothing left to train"), ("\n", 1, "checkpoints/r exists")],
)
def test_somebody_at_a_terminal_is_asked(
    train: Tt, untied: str, data: Path, environment: dict[str, str], typed: str, code: int, words: str
) -> None:
    run_of(train("--run-name", "r"))
    command = [sys.executable, "-m", "tinkertools", "train", "--base-model", untied, "--data", str(data)]
    command += ["--batch", "4", "--max-steps", "3", "--rank", "2", "--run-name", "r", "--engine", "local"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        said = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
    os.close(ours)
    assert process.returncode == code, said.decode()
    assert "checkpoints/r exists. [o] overwrite it, [r] resume it, anything else stops:" in said.decode()
    assert words in said.decode()


@pytest.mark.parametrize("place", ["", "final_lora_weights", "checkpoint_step_2", "training_state"])
def test_a_run_starts_from_weights(train: Tt, place: str) -> None:
    first = run_of(train("--run-name", "first", "--save-every", 2))
    # So small a step leaves the weights as they are to a few digits.
    more = ("--learning-rate", "1e-12", "--run-name", "second", "--load-checkpoint-path", first.path / place)
    second = run_of(train(*more))
    source = first.path / (place or "final_lora_weights")
    before, after = load_file(source / WEIGHTS), load_file(second.final_weights / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-9)
    log = json.loads(second.log.read_text())["steps"]
    assert [entry["step"] for entry in log] == [1, 2, 3]
    assert config_of(second).load_checkpoint_path == str((first.path / place).resolve())


def test_the_rank_is_that_of_the_weights(tt: Tt, train: Tt, untied: str, data: Path) -> None:
    first = run_of(train("--run-name", "first"))
    refused = train("--load-checkpoint-path", first.path, "--rank", 4)
    assert refused.code == 2
    assert f"--rank 4: {first.path} has rank 2" in refused.err
    found = tt(
        *("train", "--base-model", untied, "--data", data, "--batch", 4, "--max-steps", 1),
        *("--load-checkpoint-path", first.path),
    )
    assert config_of(run_of(found)).rank == 2
    assert "with rank 2 and a fresh optimizer" in found.err


def test_weights_to_start_from_that_are_not_there(train: Tt) -> None:
    found = train("--load-checkpoint-path", "nowhere")
    assert found.code == 1
    assert "no adapter at nowhere" in found.err
    assert not Path("checkpoints").exists() or not list(Path("checkpoints").iterdir())


def test_num_examples_are_the_first(train: Tt, data: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(data.read_text().splitlines(keepends=True)[:5]))
    by_hand, by_option = run_of(train("--data", few)), run_of(train("--num-examples", 5))
    assert weights_of(by_hand) == weights_of(by_option)
    assert by_option.read_config()["data"]["conversations"] == 5
    # What comes after them is not even looked at.
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:5]) + "no row\n")
    assert weights_of(run_of(train("--num-examples", 5))) == weights_of(by_hand)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("no_robots", "HuggingFaceH4/no_robots"),
        ("tulu3", "allenai/tulu-3-sft-mixture"),
        ("HuggingFaceH4/ultrachat_200k", "HuggingFaceH4/ultrachat_200k"),
    ],
)
def test_names_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dataset: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_source(name).name == dataset
    # What is here wins.
    Path(name).mkdir(parents=True)
    (Path(name) / "a.jsonl").write_text("{}")
    assert find_source(name).files == [Path(name) / "a.jsonl"]


def test_the_result_is_uploaded(train: Tt, hub: ModelHub) -> None:
    found = train("--upload", "--hf-repo-id", "me/tuned", "--hf-public", "--run-name", "r")
    run = run_of(found)
    repository = hub.repositories["me/tuned"]
    assert not repository.private
    assert repository.files[WEIGHTS].content
    assert f"{hub.url}/me/tuned" in found.err
    assert found.out.strip() == str(run.path.relative_to(Path.cwd()))
    # Going on with a finished run uploads it too: the process may have ended between the two.
    del hub.repositories["me/tuned"]
    assert train("--run-name", "r", "--behavior-if-log-dir-exists", "resume", "--upload").code == 2  # which repository?
    more = ("--upload", "--hf-repo-id", "me/tuned")
    assert train("--run-name", "r", "--behavior-if-log-dir-exists", "resume", *more).code == 0
    assert WEIGHTS in hub.repositories["me/tuned"].files


def test_a_run_that_could_not_be_uploaded_is_refused_before_it_starts(
    train: Tt, hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = train("--upload", "--hf-repo-id", "no name")
    assert found.code == 2
    assert "no name" in found.err
    monkeypatch.delenv("HF_TOKEN")
    found = train("--upload", "--hf-repo-id", "me/tuned")
    assert found.code == 1
    assert "HF_TOKEN" in found.err
    assert not Path("checkpoints").exists()
    assert hub.repositories == {}


def test_a_failed_upload_leaves_a_finished_run(train: Tt, hub: ModelHub) -> None:
    hub.accounts[next(iter(hub.accounts))] = Account("me", writes=False)
    found = train("--upload", "--hf-repo-id", "me/tuned", "--hf-public", "--run-name", "r")
    assert found.code == 1
    assert "the run is finished, but was not uploaded: " in found.err
    assert "tt upload --run checkpoints/r --hf-repo-id me/tuned --hf-public" in found.err
    assert RunDirectory(Path("checkpoints/r")).finished


def test_the_log_goes_to_a_tracker(train: Tt) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_of(train("--track", "tensorboard", "--val-fraction", "0.3", "--run-name", "r"))
    log = json.loads(run.log.read_text())
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for name, entries, key in (("train/loss", log["steps"], "loss"), ("eval/nll", log["evals"], "nll")):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(entry["step"], pytest.approx(entry[key])) for entry in entries]


def test_a_tracker_that_is_not_installed_is_told_before_training(train: Tt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    found = train("--track", "trackio")
    assert found.code == 2
    assert "python -m pip install 'tinkertools[trackio]'" in found.err
    assert not Path("checkpoints").exists()


def test_a_dry_run_says_the_settings_and_the_cost(tt: Tt, data: Path, tmp_path: Path, untied: str) -> None:
    options = ("--data", data, "--batch", 4, "--epochs", 2, "--dry-run", "--base-url", "http://127.0.0.1:9")
    found = tt("train", "--base-model", untied, "--price", "0.5", *options)
    assert found.code == 0, found.err
    tokens = int(re.findall(r"with ([\d,]+) tokens", found.err)[0].replace(",", "")) * 2
    assert f"tokens: {tokens:,} in all steps" in found.err
    assert (
        f"cost: about ${tokens * 0.5 / 1e6:,.2f} for {tokens:,} tokens at $0.5 per million (your own number); "
        "storage and evaluation come on top" in found.err
    )
    assert "batch_size: 4" in found.err
    unknown = tt("train", "--base-model", untied, *options)
    assert f"cost: no price known for {untied}" in unknown.err
    assert not list(tmp_path.glob("checkpoints*"))


def test_a_dry_run_says_the_cost_of_other_methods(tt: Tt, tmp_path: Path, untied: str) -> None:
    def cost(*more: Any) -> tuple[str, str]:
        options = ("--base-model", untied, "--price", 1000, "--dry-run", "--base-url", "http://127.0.0.1:9")
        found = tt("train", *options, *more)
        assert found.code == 0, found.err
        tokens, price = re.findall(r"^tokens: (.*) in all steps$|^cost: (.*)$", found.err.replace("\n  ", " "), re.M)
        return tokens[0], price[1]

    pairs = write_rows(tmp_path / "pairs.jsonl", preferences(4))
    renderer: Any = load_renderer(untied, "auto", "LAST_ASSISTANT_MESSAGE")
    rows = [{"messages": [*row["prompt"], *row[side]]} for row in preferences(4) for side in ("chosen", "rejected")]
    each = sum(len(example.tokens) for found in renderer.render(rows) for example in found)
    tokens, price = cost("--method", "dpo", "--data", pairs, "--batch", 2, "--epochs", 3)
    assert tokens == f"{3 * each:,}"
    assert price == (
        f"about ${3 * each / 1000:,.2f} for {3 * each:,} tokens at $1000 per million (your own number); the reference "
        "(a forward pass of all pairs), a forward pass of each step, storage and evaluation come on top"
    )
    # Of reinforcement, at most: each of three answers to a prompt may be of ten tokens.
    asked = [{"messages": row["prompt"]} for row in preferences(4)]
    prompts = sum(len(renderer.generation_prompt(row).tokens) for row in asked)
    more = ("--reward", "regex:x", "--group-size", 3, "--max-tokens", 10, "--batch", 2, "--max-steps", 6)
    tokens, price = cost("--method", "rl", "--data", write_rows(tmp_path / "prompts.jsonl", asked), *more)
    most = 3 * 3 * (prompts + 4 * 10)
    assert tokens == f"at most {most:,}"
    assert price == (
        f"at most ${most / 1000:,.2f} for at most {most:,} tokens at $1000 per million (your own number); sampling, "
        "storage and evaluation come on top"
    )


def test_print_config_gives_the_same_run(train: Tt, tt: Tt) -> None:
    first = run_of(train("--run-name", "first", "--val-fraction", "0.2", "--learning-rate", "auto"))
    printed = tt("train", "--resume", first.path, "--print-config")
    assert printed.code == 0, printed.err
    assert printed.out == write_yaml(config_of(first), {})
    Path("again.yaml").write_text(printed.out.replace("run_name: first", "run_name: second"))
    second = run_of(tt("train", "--config", "again.yaml"))
    assert weights_of(second) == weights_of(first)
    assert config_of(second) == config_of(first).changed(run_name="second")


def test_what_names_a_file_is_kept_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.jsonl", "rules.txt", "rewards.py"):
        Path(name).write_text("x = 1\n")
    Path("judge").mkdir()
    common = {"base_model": tiny, "data": "prompts.jsonl", "engine": "local"}

    def planned(**given: Any) -> TrainConfig:
        return plan_run(Given(common | given), lambda path: None).config

    assert planned(method="rl", reward="rewards.py:x").reward == f"{tmp_path}/rewards.py:x"
    assert planned(method="rl", reward="score:judge").reward == f"score:{tmp_path}/judge"
    assert planned(method="rl", reward="score:tinker://a/b").reward == "score:tinker://a/b"
    assert planned(method="rl", reward="judge:local:judge").reward == f"judge:local:{tmp_path}/judge"
    assert planned(method="rl", reward="judge:openai:judge").reward == "judge:openai:judge"
    assert planned(method="rl", reward="regex:judge").reward == "regex:judge"
    assert planned(method="distill", teacher="judge", teacher_system="rules.txt").teacher == f"{tmp_path}/judge"
    assert planned(method="distill", teacher_system="rules.txt").teacher_system == f"{tmp_path}/rules.txt"
    told = "Be kind. " * 1000
    assert planned(method="distill", teacher_system=told).teacher_system == told
    assert planned(method="distill", teacher="Qwen/Qwen3-8B").teacher == "Qwen/Qwen3-8B"
