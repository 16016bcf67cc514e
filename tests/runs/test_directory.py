"""Which run and which adapter a path means."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tinkertools.errors import RunError
from tinkertools.runs.directory import RunDirectory, find_run, find_weights, never_begun, new_run, newest_run

NOW = datetime(2026, 2, 4, 23, 0, 0, tzinfo=UTC)


def adapter(folder: Path, base: str = "base") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def started(path: Path, age: int = 0) -> RunDirectory:
    run = RunDirectory(path)
    run.write_config({"version": 1})
    run.log.write_text("{}")
    os.utime(path / "config.json", ns=(10**18 - age, 10**18 - age))
    return run


def test_names_of_new_runs(tmp_path: Path) -> None:
    assert new_run(tmp_path, "Qwen/Qwen3-8B", NOW).path.name == "lora_Qwen_Qwen3-8B_20260204_230000"
    model = tmp_path / "models" / "my model"
    model.mkdir(parents=True)
    first = new_run(tmp_path, str(model), NOW)
    assert first.path.name == "lora_my_model_20260204_230000"
    assert not first.path.exists()
    first.path.mkdir()
    assert new_run(tmp_path, str(model), NOW).path.name == "lora_my_model_20260204_230000_2"
    taken = tmp_path / "taken"
    taken.mkdir()
    # What a process left that was killed before there was a run.
    (taken / ".config.json.part-1").touch()
    assert never_begun(taken)
    (taken / "mine.txt").touch()
    assert not never_begun(taken)


def test_the_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run under"):
        newest_run(tmp_path)
    started(tmp_path / "z_old", age=100)
    started(tmp_path / "a_new", age=0)
    (tmp_path / "not_a_run").mkdir()
    assert newest_run(tmp_path).path.name == "a_new"
    assert find_run("latest", tmp_path).path.name == "a_new"
    assert find_run("z_old", tmp_path).path == tmp_path / "z_old"
    assert find_run(str(tmp_path / "z_old"), Path("elsewhere")).path == tmp_path / "z_old"
    with pytest.raises(RunError, match="no run at not_a_run"):
        find_run("not_a_run", tmp_path)


def test_every_way_to_name_an_adapter(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    with pytest.raises(RunError, match="not finished and has no checkpoint yet"):
        find_weights(str(run.path), tmp_path)
    adapter(run.path / "checkpoint_step_9")
    adapter(run.path / "checkpoint_step_10")
    unfinished = find_weights(None, tmp_path)
    assert unfinished.directory == run.path / "checkpoint_step_10"
    assert str(unfinished.note).endswith("is not finished: using its checkpoint of step 10")
    adapter(run.final_weights, "Qwen/Qwen3-8B")
    for name in (None, str(run.path), str(run.final_weights)):
        weights = find_weights(name, tmp_path)
        assert (weights.directory, weights.base_model, weights.note) == (run.final_weights, "Qwen/Qwen3-8B", None)
    assert find_weights(None, tmp_path).label == "run"
    assert find_weights(str(run.path / "checkpoint_step_9"), tmp_path).label == "run/checkpoint_step_9"
    assert find_weights(str(adapter(tmp_path / "other" / "peft")), tmp_path).label == "peft"
    there = find_weights("tinker://x/sampler_weights/final", tmp_path)
    assert (there.directory, there.server_path) == (None, "tinker://x/sampler_weights/final")
    assert there.source("tinker") == "tinker://x/sampler_weights/final"
    with pytest.raises(RunError, match="is on a server, and was not downloaded"):
        there.source("local")
    with pytest.raises(RunError, match="on this machine only"):
        find_weights(str(run.path), tmp_path).source("tinker")
    with pytest.raises(RunError, match="no adapter at nothing"):
        find_weights("nothing", tmp_path)


def test_the_state_says_where_to_go_on(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    assert run.next_step() == 1
    for step in (3, 6):
        saved = tmp_path / "saved"
        saved.mkdir()
        (saved / "content").write_text(str(step))
        run.take_state(saved, step, {"state": f"tinker://x/weights/step_{step:04d}"})
        assert run.next_step() == step + 1
        assert (run.state / "content").read_text() == str(step)
    there = [".training_state.previous", "config.json", "training_log.json", "training_state"]
    assert sorted(p.name for p in run.path.iterdir()) == there
    run.finish()
    assert sorted(p.name for p in run.path.iterdir()) == there[1:]


def test_one_process_writes_to_a_run(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"another process is training {run.path}"), run.lock():
        pass
    holder.kill()  # it cannot give the lock back
    holder.communicate()
    with run.lock():
        pass
    with run.lock():
        pass


HOLD = """
import sys
from pathlib import Path
from tinkertools.runs.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    (run.path / "config.json").write_text('{"version"')
    with pytest.raises(RunError, match=r"config.json is not readable"):
        run.read_config()
