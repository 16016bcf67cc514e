"""`tt train` on the embedded engine: the run directory, the log, stopping and going on, and what is refused."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import run_of, sums, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinkertools import console
from tinkertools.adapters.peft_files import is_adapter
from tinkertools.chat.batching import Batches
from tinkertools.chat.examples import Example
from tinkertools.config import TrainConfig
from tinkertools.loop import Ended, Loop
from tinkertools.methods.sft import Supervised
from tinkertools.runs.directory import RunDirectory
from tinkertools.runs.log import TrainingLog
from tinkertools.stopping import StopRequest

Tt = Callable[..., Any]
SECRET = "tml-planted-secret-0123456789"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "chats.jsonl", sums(12, question="What is {} plus 1?"))


def test_the_run_directory(tt: Tt, tiny: str, data: Path) -> None:
    found = tt("train", "--base-model", tiny, "--data", data, "--batch", 4, "--epochs", 2, "--save-every", 2)
    run = run_of(found)
    assert run.path.parent == Path("checkpoints").absolute()
    assert run.path.name.startswith("lora_tiny_")
    assert sorted(p.name for p in run.path.iterdir()) == [
        "checkpoint_step_2", "checkpoint_step_4", "config.json", "final_lora_weights", "plots", "training_log.json",
        "training_state",
    ]  # fmt: skip
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    for folder in ("checkpoint_step_2", "checkpoint_step_4", "final_lora_weights"):
        assert sorted(p.name for p in (run.path / folder).iterdir()) == [*adapter, "checkpoint.json"]
    assert {p.name for p in run.state.iterdir()} == {*adapter, "optimizer.json", "optimizer.safetensors", "state.json"}
    assert sorted(p.name for p in run.plots.iterdir()) == ["learning_rate.svg", "loss.svg", "tokens_per_second.svg"]
    info = json.loads((run.path / "checkpoint_step_2" / "checkpoint.json").read_text())
    assert (info["step"], info["next_step"]) == (2, 3)
    assert info["paths"] == {}  # nothing is on a server
    assert json.loads((run.state / "state.json").read_text())["next_step"] == 7
    saved = json.loads((run.path / "config.json").read_text())
    assert (saved["version"], saved["renderer"], saved["data"]["conversations"]) == (2, "chat-template", 12)
    assert saved["config"] | {"learning_rate": None} == TrainConfig(
        base_model=tiny, data=str(data), engine="local", batch=4, epochs=2, save_every=2
    ).to_json() | {"learning_rate": None}
    assert saved["config"]["learning_rate"] == pytest.approx(5e-4 * (2000 / 32) ** 0.0775)
    for words in (
        "loss ",
        "trained tokens",
        "tokens/s",
        "peak memory",
        f"tt compare {run.path.relative_to(Path.cwd())}",
    ):
        assert words in found.err
    assert "of them trained (" in found.err


def test_the_log_holds_the_mean_over_trained_tokens(tt: Tt, tiny: str, data: Path) -> None:
    run = run_of(
        tt("train", "--base-model", tiny, "--data", data, "--batch", 12, "--max-steps", 2, "--lr-schedule", "cosine")
    )
    log = json.loads(run.log.read_text())
    assert (log["version"], log["evals"], [entry["step"] for entry in log["steps"]]) == (1, [], [1, 2])
    first = log["steps"][0]
    assert set(first) == {
        "step", "epoch", "loss", "learning_rate", "trained_tokens", "tokens", "seconds", "tokens_per_second",
        "grad_norm",
    }  # fmt: skip
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    nll, trained, tokens = 0.0, 0, 0
    for i in range(12):
        prompt = tokenizer.encode(f"<|im_start|>user\nWhat is {i} plus 1?<|im_end|>\n<|im_start|>assistant\n")
        answer = tokenizer.encode(f"{i + 1}.<|im_end|>")
        ids = prompt + answer
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll -= sum(float(logprobs[len(prompt) + k - 1, token]) for k, token in enumerate(answer))
        trained += len(answer)
        tokens += len(ids)
    assert first["loss"] == pytest.approx(nll / trained, rel=1e-5)
    assert (first["trained_tokens"], first["tokens"], first["epoch"]) == (trained, tokens, 1)
    assert [entry["learning_rate"] for entry in log["steps"]] == [
        pytest.approx(5e-4 * (2000 / 32) ** 0.0775 * (1 + math.cos(math.pi * k / 2)) / 2) for k in (0, 1)
    ]


def test_same_seed_same_bytes_and_another_seed_others(tt: Tt, tiny: str, data: Path) -> None:
    arguments = ["train", "--base-model", tiny, "--data", data, "--batch", 4]
    weights = [
        (run_of(tt(*arguments, "--seed", seed)).final_weights / "adapter_model.safetensors").read_bytes()
        for seed in (0, 0, 1)
    ]
    assert weights[0] == weights[1] != weights[2]


def test_no_secret_reaches_a_file(
    tt: Tt, tiny: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TINKER_API_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    found = tt("train", "--base-model", tiny, "--data", data, "--batch", 4, "--engine", "local", "--max-steps", 1)
    run_of(found)
    assert SECRET not in found.out + found.err
    assert not any(SECRET.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def start_training(arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tinkertools", "train", *arguments],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_steps(folder: Path, process: subprocess.Popen[str], steps: int) -> None:
    while process.poll() is None:
        logs = list(folder.glob("checkpoints/*/training_log.json"))
        if logs and len(json.loads(logs[0].read_text())["steps"]) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_ends_with_the_same_bytes(
    tt: Tt, tiny: str, data: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    options = ["--base-model", tiny, "--data", str(data), "--batch", "4", "--max-steps", "250", "--save-every", "0"]
    straight = run_of(tt("train", *options, "--output-dir", "straight"))
    process = start_training(options, tmp_path, environment)
    wait_for_steps(tmp_path, process, 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "stopping: finishing the steps in flight" in err
    assert "Traceback" not in err
    (folder,) = (tmp_path / "checkpoints").iterdir()
    run = RunDirectory(folder)
    done = run.next_step() - 1
    assert 3 <= done < 250
    assert f"stopped after step {done} of 250; the state is saved" in err
    assert f"tt train --resume checkpoints/{folder.name}" in err
    assert not run.finished
    assert not run.engine_store.exists()
    assert [e["step"] for e in json.loads(run.log.read_text())["steps"]] == list(range(1, done + 1))

    refused = tt("train", "--resume", "latest", "--rank", 4)
    assert (refused.code, "--rank 4: the run was started with 16" in refused.err) == (2, True)
    resumed = tt("train", "--resume", "latest")
    assert run_of(resumed).path == folder
    assert f"going on with step {done + 1} of 250" in resumed.err
    name = "adapter_model.safetensors"
    assert (run.final_weights / name).read_bytes() == (straight.final_weights / name).read_bytes()
    losses = [[entry["loss"] for entry in json.loads(r.log.read_text())["steps"]] for r in (run, straight)]
    assert losses[0] == losses[1]
    again = tt("train", "--resume", folder)
    assert (again.code, f"{folder} is finished: there is nothing left to train" in again.err) == (0, True)


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    # The data come through a pipe that stays open: the command is certainly still reading when the signal arrives.
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    process = start_training(["--data", str(pipe)], tmp_path, environment)
    with pipe.open("wb") as writer:
        writer.write(b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n')
        writer.flush()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "stopped before the first step; nothing was written" in err
    assert "run the same command again" in err
    assert [p.name for p in tmp_path.iterdir()] == ["pipe.jsonl"]


def test_a_run_without_a_state_starts_over(tt: Tt, tiny: str, data: Path) -> None:
    straight = run_of(tt("train", "--base-model", tiny, "--data", data, "--batch", 4, "--run-name", "straight"))
    copy = RunDirectory(Path("checkpoints/copy"))
    copy.path.mkdir()
    (copy.path / "config.json").write_bytes((straight.path / "config.json").read_bytes())
    resumed = run_of(tt("train", "--resume", "copy"))
    name = "adapter_model.safetensors"
    assert (resumed.final_weights / name).read_bytes() == (straight.final_weights / name).read_bytes()


def test_changed_data_and_other_versions_are_refused_on_resume(tt: Tt, tiny: str, data: Path) -> None:
    run = run_of(tt("train", "--base-model", tiny, "--data", data, "--batch", 4, "--run-name", "r"))
    (run.final_weights / "adapter_config.json").unlink()
    run.final_weights.rename(run.path / "checkpoint_step_9")
    data.write_text(data.read_text().replace("plus 1", "plus 2"))
    found = tt("train", "--resume", run.path)
    assert found.code == 1
    assert f"the data in {data} have changed since {run.path} was started" in found.err
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**config, "version": 3, "tinkertools": "9.0"}))
    newer = tt("train", "--resume", run.path)
    assert newer.code == 1
    assert "was written by tinkertools 9.0 in format 3; this version reads format 2" in newer.err


def _row(*roles: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": "text"} for role in roles]}) + "\n"


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, [], "no such file or folder: given.jsonl"),
        ("", [], "given.jsonl holds no rows"),
        (_row("user", "assistant") * 2 + "{oops\n", [], "given.jsonl:3: row: invalid JSON at column 2"),
        (_row("user", "assistant") + '{"text": "a"}\n', [], "given.jsonl:2: messages: is missing; the row has 'text'"),
        (_row("user", "wizard"), [], "given.jsonl:1: messages[1].role: unknown role 'wizard'"),
        (_row("assistant", "user"), [], "given.jsonl:1: messages[0].role: the assistant speaks first"),
        (_row("user"), [], "given.jsonl:1: messages: no assistant message, so nothing to train on"),
        (_row("user", "assistant") * 3, [], "the batch of 64 is larger than the data: 3 usable conversations"),
        (_row("user", "assistant") * 3, ["--max-length", "4"], "conversation 1 has"),
        (_row("user", "assistant") * 3, ["--max-length", "4", "--overlength", "drop"], "no trained token in the data"),
        (_row("user", "assistant") * 3, ["--resume", "latest", "--output-dir", "nowhere"], "no run under nowhere"),
    ],
)
def test_bad_input_is_explained_and_leaves_nothing(
    tt: Tt, tiny: str, tmp_path: Path, content: str | None, options: list[str], words: str
) -> None:
    if content is not None:
        (tmp_path / "given.jsonl").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    arguments = options if "--resume" in options else ["--base-model", tiny, "--data", "given.jsonl", *options]
    found = tt("train", *arguments)
    assert (found.code, found.out) == (1, "")
    assert words in found.err
    assert "→" in found.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer (no tokenizer.json)"),
        (["chat_template.jinja"], "has no chat template"),
        (["config.json"], "is no model folder (no config.json)"),
        (["model.safetensors"], "cannot be loaded"),
    ],
)
def test_incomplete_base_models_are_explained(
    tt: Tt, tiny: str, data: Path, tmp_path: Path, missing: list[str], words: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(tiny).iterdir():
        if file.name not in missing:
            (broken / file.name).write_bytes(file.read_bytes())
    found = tt("train", "--base-model", broken, "--data", data, "--batch", 4)
    assert (found.code, found.out) == (1, "")
    assert words in found.err
    assert not Path("checkpoints").exists()


def test_a_disk_that_fills_up_keeps_what_was_good(
    tt: Tt, tiny: str, data: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if others took the space only later. Room for the states of this rank, and not for all checkpoints too.
    monkeypatch.setattr("tinkertools.space.check_space", lambda *_: None)
    options = ["--rank", 2, "--save-every", 1, "--max-steps", 8, "--output-dir", small_disk, "--run-name", "r"]
    found = tt("train", "--base-model", tiny, "--data", data, "--batch", 4, *options)
    assert (found.code, found.out) == (1, "")
    assert "error: the disk is full: " in found.err
    assert re.search(r"could not be written; the run needs about \d+ kB more, and \d+ kB are free\n", found.err)
    run = RunDirectory(small_disk / "r")
    goes_on = f"then go on with step {run.next_step()}: tt train --resume {run.path}"
    assert f"→ free some space, or keep fewer checkpoints with --keep-last; {goes_on}\n" in found.err
    assert not run.finished
    assert run.next_step() >= 2
    for _, checkpoint in run.checkpoints():
        assert is_adapter(checkpoint)
    assert not [p for p in run.path.rglob("*") if ".part-" in p.name or ".old-" in p.name]
    assert json.loads(run.log.read_text())["version"] == 1


def test_an_existing_run_is_not_overwritten(tt: Tt, tiny: str, data: Path) -> None:
    arguments = ["train", "--base-model", tiny, "--data", data, "--batch", 4, "--run-name", "mine"]
    run_of(tt(*arguments))
    found = tt(*arguments)
    assert (found.code, "checkpoints/mine exists" in found.err) == (1, True)


class Scripted:
    """A training client that only writes down when it is asked and when it is waited for."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.submitted = 0

    class Future:
        def __init__(self, client: "Scripted", name: str, value: Any) -> None:
            self.client, self.name, self.value = client, name, value

        def result(self) -> Any:
            self.client.events.append(f"wait {self.name}")
            return self.value

    def forward_backward(self, data: list[Any], loss_fn: str) -> Any:
        from tinker import types

        from tinkertools.local.responses import forward_backward_output

        self.submitted += 1
        self.events.append(f"submit {self.submitted}")
        logprobs = [torch.full((d.model_input.length,), -2.0) for d in data]
        output: types.ForwardBackwardOutput = forward_backward_output(logprobs, {})
        return Scripted.Future(self, str(self.submitted), output)

    def optim_step(self, adam: Any) -> Any:
        from tinker import types

        return Scripted.Future(self, "step", types.OptimStepResponse())


def test_two_steps_are_in_flight(tmp_path: Path) -> None:
    client: Any = Scripted()
    service: Any = None
    example = Example(np.array([4, 5, 6], np.int32), np.array([0, 1, 1], np.float32))
    config = TrainConfig(learning_rate=1e-3, save_every=0)
    with TrainingLog(tmp_path / "log.json") as log:
        loop = Loop(
            client,
            service,
            Supervised(client, lambda step: [example], Batches(4, 1, 0).epoch_of, None),
            config,
            RunDirectory(tmp_path),
            log,
            console.progress,
            print,
        )
        assert loop.run(1, 4, StopRequest(print)) == Ended(4, interrupted=False)
    events = [event for event in client.events if event != "wait step"]
    assert events == ["submit 1", "submit 2", "wait 1", "submit 3", "wait 2", "submit 4", "wait 3", "wait 4"]
    assert [entry["loss"] for entry in log.steps] == [2.0] * 4
    assert "grad_norm" not in log.steps[0]


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_the_run_can_go_on(
    tt: Tt, tiny: str, data: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    options = ["--base-model", tiny, "--data", str(data), "--batch", "4", "--max-steps", "4000", "--save-every", "2"]
    process = start_training(options, tmp_path, environment)
    wait_for_steps(tmp_path, process, 3)
    # The second one follows so closely that the first may not have been acted on: both endings are right.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert f"go on with it: tt train --resume checkpoints/{folder.name}" in err
    assert RunDirectory(folder).next_step() >= 3
    json.loads((folder / "training_log.json").read_text())
