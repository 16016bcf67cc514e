"""Sweeps: each combination is an ordinary run, they stop and go on as a whole, and the table says which is the best."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupting import hearing, send
from run_files import sums, write_rows

from tinkertools.config import MethodName, TrainConfig
from tinkertools.runs.log import TrainingLog
from tinkertools.runs.sweeps import SweepDirectory
from tinkertools.settings.given import Given
from tinkertools.settings.reading import read_file
from tinkertools.sweeping import plans, running
from tinkertools.sweeping.outcomes import Outcome, ranked
from tinkertools.sweeping.plans import Run

Tt = Callable[..., Any]
WEIGHTS = "final_lora_weights/adapter_model.safetensors"
STEPS = 12

# What stands for `tt train --config FILE` where it does not matter what is computed: a run whose NLL is its learning
# rate. What it does beside that is said by the files `on_RANK` in the working directory.
FAKE = textwrap.dedent("""
    import json, os, pathlib, re, signal, sys
    text = pathlib.Path(sys.argv[1]).read_text()
    run = pathlib.Path(re.search(r"log_path: (.*)", text)[1])
    rank, rate = re.search(r"lora_rank: (.*)", text)[1], re.search(r"learning_rate: (.*)", text)[1]
    rate = 1.0 if rate == "auto" else float(rate)
    run.mkdir(exist_ok=True)
    with open("started", "a") as file:
        file.write(f"{run.name} {os.environ.get('TINKER_BASE_URL')}\\n")
    what = pathlib.Path(f"on_{rank}")
    what = what.read_text() if what.exists() else ""
    if what == "fail":
        print("error: the data are gone\\n  → put them back", file=sys.stderr)
        sys.exit(1)
    if what == "break":
        raise ValueError("no words for this")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "meet":  # until the other one is there too
        pathlib.Path(f"here_{run.name}").touch()
        while len(list(pathlib.Path().glob("here_*"))) < 2:
            pass
    if what in ("wait", "end"):
        signals = [signal.SIGINT, signal.SIGTERM]
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        print("ready", os.getpid(), file=sys.stderr, flush=True)
        first = signal.sigwait(signals)
        if what == "end":
            pathlib.Path("told").write_text(str(first))
            sys.exit(1)
        print("first", first, file=sys.stderr, flush=True)
        print("second", signal.sigwait(signals), file=sys.stderr, flush=True)
        sys.exit(128 + first)
    entries = [{"step": 1, "loss": rate, "trained_tokens": 1}, {"step": 2, "loss": 2 * rate, "trained_tokens": 3}]
    evals = [{"step": 1, "nll": rate / 2}, {"step": 2, "nll": rate}]
    (run / "config.json").write_text("{}")
    (run / "training_log.json").write_text(json.dumps({"version": 1, "steps": entries, "evals": evals}))
    (run / "final_lora_weights").mkdir()
""")


@pytest.fixture
def sweep(tt: Tt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tt:
    """Sweep with runs that compute nothing, in ./s."""
    monkeypatch.setattr(running, "command_of", lambda config: [sys.executable, "-c", FAKE, str(config)])
    write_rows(tmp_path / "d.jsonl", sums(12))
    return lambda *more: tt("train", "--data", "d.jsonl", "--val-fraction", 0.2, "--run-name", "s",
                            "--output-dir", ".", *more)  # fmt: skip


def started() -> list[str]:
    """The runs that were started, in order."""
    return [line.split()[0] for line in Path("started").read_text().splitlines()] if Path("started").exists() else []


def table_of(out: str) -> list[list[str]]:
    """The rows of a table, whose cells do not fold."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]


def results_of(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((directory / "results.json").read_text())["runs"]
    return found


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_sweep_from_beginning_to_end(tt: Tt, tmp_path: Path, environment: dict[str, str]) -> None:
    data = str(write_rows(tmp_path / "d.jsonl", sums(16)))
    held_out = str(write_rows(tmp_path / "e.jsonl", sums(4, first=16)))
    settings = [
        "--data", data, "--eval-data", held_out, "--batch", "4", "--max-steps", str(STEPS), "--eval-every", "4",
        "--save-every", "0",
    ]  # fmt: skip
    command = [sys.executable, "-m", "tinkertools", "train"]
    places = [(rank, rate) for rank in (2, 8) for rate in (1e-5, 1e-3, 1e-2)]
    names = [f"rank_{rank}-learning_rate_{rate}" for rank, rate in places]
    directory = tmp_path / "s"

    # Ctrl-C that only this process gets, while the second run trains.
    grid = ["--rank", "2,8", "--learning-rate", "1e-5,1e-3,1e-2"]
    process = subprocess.Popen(
        [*command, *settings, *grid, "--output-dir", ".", "--run-name", "s"],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not TrainingLog.reopen(directory / names[1] / "training_log.json", sys.maxsize).steps:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, ""), err
    assert f"run 1 of 6: rank 2, learning rate {1e-5}" in err
    assert "tt train --resume s" in err
    assert (directory / names[0] / WEIGHTS).exists()
    assert (directory / names[1] / "training_state").exists()
    assert not any((directory / name).exists() for name in names[2:])

    # It goes on; a run whose place is taken fails, and the others do not mind.
    before = contents(directory / names[0])
    (directory / names[4]).write_text("in the way")
    resume = [*command, "--resume", "latest", "--output-dir", "."]
    found = subprocess.run(resume, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert f"1 of 6 runs failed: {names[4]}" in found.stderr
    assert "mend what is wrong, then tt train --resume" in found.stderr
    assert [row["state"] for row in results_of(directory)] == ["finished"] * 5 + ["failed"]
    assert "is not readable" in results_of(directory)[-1]["error"]

    (directory / names[4]).unlink()
    found = subprocess.run(resume, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "5 of 6 runs are finished already" in found.stderr
    assert contents(directory / names[0]) == before
    assert found.stdout.splitlines()[-1] == "s"

    configs = [json.loads((directory / name / "config.json").read_text())["config"] for name in names]
    assert [(config["rank"], config["learning_rate"]) for config in configs] == places
    assert {(c["max_steps"], c["batch"], c["data"], c["eval_data"]) for c in configs} == {(STEPS, 4, data, held_out)}

    # The table is in the order of the NLLs in the logs, and says what the logs say.
    logs = {name: json.loads((directory / name / "training_log.json").read_text()) for name in names}
    order = sorted(names, key=lambda name: logs[name]["evals"][-1]["nll"])
    results = results_of(directory)
    assert [row["run"] for row in results] == order
    for row, cells in zip(results, table_of(found.stdout), strict=True):
        steps, evals = logs[row["run"]]["steps"], logs[row["run"]]["evals"]
        assert [entry["step"] for entry in evals] == [0, 4, 8, 12]
        best = min(evals, key=lambda entry: entry["nll"])
        tokens = sum(entry["trained_tokens"] for entry in steps)
        mean = sum(entry["loss"] * entry["trained_tokens"] for entry in steps) / tokens
        assert row["train_nll"] == pytest.approx(mean, rel=1e-12)
        assert (row["nll"], row["best_nll"], row["best_step"]) == (evals[-1]["nll"], best["nll"], best["step"])
        assert (row["state"], row["error"], row["steps"]) == ("finished", None, STEPS)
        assert cells == [
            str(row["place"]), str(row["settings"]["rank"]), str(row["settings"]["learning_rate"]), f"{row['nll']:.4f}",
            f"{best['nll']:.4f} @ {best['step']}", f"{mean:.4f}", str(STEPS), "finished",
        ]  # fmt: skip
    assert f"next            tt compare s/{order[0]} --compare-base" in found.stderr
    for name in ("test_nll.svg", "train_nll.svg"):
        picture = (directory / "plots" / name).read_text()
        assert set(re.findall(r'id="(run_\d+)"', picture)) == {f"run_{i}" for i in range(6)}

    # A run of the sweep is the run that the same options make, and that its own file makes.
    assert tt("train", *settings, "--rank", 2, "--learning-rate", 1e-3, "--run-name", "by_hand").code == 0
    weights = (directory / names[1] / WEIGHTS).read_bytes()
    assert (tmp_path / "checkpoints/by_hand" / WEIGHTS).read_bytes() == weights
    shutil.rmtree(directory / names[1])
    assert tt("train", "--config", directory / "configs" / f"{names[1]}.yaml").code == 0
    assert (directory / names[1] / WEIGHTS).read_bytes() == weights


def test_a_failed_run_is_marked_and_tried_again(sweep: Tt) -> None:
    Path("on_8").write_text("fail")
    Path("on_16").write_text("break")
    Path("on_32").write_text("die")
    found = sweep("--rank", "4,8,16,32,64", "--learning-rate", "2")
    assert found.code == 1
    assert started() == ["rank_4", "rank_8", "rank_16", "rank_32", "rank_64"]
    assert "run 2 of 5 failed: the data are gone" in found.err
    broken = "exit code 1: ValueError: no words for this"
    assert f"3 of 5 runs failed: rank_8 (the data are gone); rank_16 ({broken}); rank_32 (killed by SIGK" in found.err
    rows = results_of(Path("s"))
    assert [(row["run"], row["state"], row["error"]) for row in rows] == [
        ("rank_4", "finished", None), ("rank_64", "finished", None), ("rank_8", "failed", "the data are gone"),
        ("rank_16", "failed", broken), ("rank_32", "failed", "killed by SIGKILL"),
    ]  # fmt: skip
    assert (rows[0]["nll"], rows[0]["best_nll"], rows[0]["best_step"], rows[0]["train_nll"]) == (2, 1, 1, 3.5)
    assert "failed:" in found.out
    assert found.out.splitlines()[-1] == "s"
    assert "error: the data are gone" in Path("s/logs/rank_8.txt").read_text()
    assert "no data" in Path("s/plots/test_nll.svg").read_text()
    for rank in (8, 16, 32):
        Path(f"on_{rank}").unlink()
    again = sweep("--resume", "s")
    assert again.code == 0, again.err
    assert started()[5:] == ["rank_8", "rank_16", "rank_32"]
    assert [row["state"] for row in results_of(Path("s"))] == ["finished"] * 5


def test_signals_reach_the_run_and_no_other_begins(sweep: Tt) -> None:
    def answer(text: str) -> None:
        if text.startswith("  ready"):
            send(signal.SIGTERM)
        elif text.startswith("  first"):
            send(signal.SIGINT)

    Path("on_8").write_text("wait")
    with hearing(answer):
        found = sweep("--rank", "4,8,32", "--learning-rate", "1")
    assert found.code == 128 + signal.SIGTERM
    assert started() == ["rank_4", "rank_8"]
    assert re.findall(r"(first|second) (\d+)", found.err) == [("first", "15"), ("second", "2")]
    assert "error: stopped; 1 of 3 runs are finished" in found.err
    assert "go on with it: tt train --resume s" in found.err
    assert "failed" not in found.err
    # What runs in a terminal gets Ctrl-C from nobody but us: it is in a session of its own.
    Path("on_8").unlink()
    assert sweep("--resume", "latest").code == 0
    assert started()[2:] == ["rank_8", "rank_32"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_no_run_outlives_its_sweep(tmp_path: Path, environment: dict[str, str]) -> None:
    write_rows(tmp_path / "d.jsonl", sums(4))
    (tmp_path / "on_4").write_text("end")
    program = (
        "import sys; from tinkertools import cli; from tinkertools.sweeping import running\n"
        f"running.command_of = lambda config: [sys.executable, '-c', {FAKE!r}, str(config)]\n"
        "sys.argv = ['tt', 'train', '--data', 'd.jsonl', '--rank', '4,8', '--learning-rate', '1', '--run-name', 's']\n"
        "cli.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        ready = next(line for line in process.stderr if line.startswith("  ready"))
        process.kill()
    # Its stderr may be whole for a while yet: the threads of a killed process end one by one.
    child = Path("/proc") / ready.split()[1]
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        time.sleep(0.01)
    assert (tmp_path / "told").read_text() == str(int(signal.SIGTERM))


def test_several_at_once_on_a_server_whose_password_is_in_no_file(sweep: Tt) -> None:
    Path("on_4").write_text("meet")
    Path("on_8").write_text("meet")
    server = ("--base-url", "http://me:hidden@localhost:1", "--base-model", "Some/Model")
    found = sweep("--rank", "4,8", "--learning-rate", "1", "--jobs", 2, *server)
    assert found.code == 0, found.err
    assert {line.split()[1] for line in Path("started").read_text().splitlines()} == {server[1]}
    files = [path for path in Path("s").rglob("*") if path.is_file()]
    assert not [path for path in files if b"hidden" in path.read_bytes()]
    assert [row["run"] for row in results_of(Path("s"))] == ["rank_4", "rank_8"]
    stored = json.loads(Path("s/sweep.json").read_text())["config"]
    assert (stored["base_url"], stored["jobs"], stored["engine"]) == ("http://localhost:1", 2, "tinker")
    # It goes on with the runs at once that it was started with, and what may change reaches the files of the runs.
    again = sweep("--resume", "s", "--save-every", 7)
    assert again.code == 0, again.err
    config = read_file(Path("s/configs/rank_4.yaml")).config()
    assert (config.save_every, config.base_url, config.engine) == (7, "http://localhost:1", "tinker")
    assert json.loads(Path("s/sweep.json").read_text())["config"]["save_every"] == 7


def test_files_of_runs_give_the_runs(sweep: Tt) -> None:
    assert sweep("--train-on-what", "all_text,LAST_ASSISTANT_MESSAGE", "--train-attn", "true,false").code == 0
    names = [
        f"train_attn_{attention}-train_on_what_{what}"
        for attention in ("true", "false")
        for what in ("ALL_TOKENS", "LAST_ASSISTANT_MESSAGE")
    ]
    assert started() == names
    config = read_file(Path(f"s/configs/{names[3]}.yaml")).config()
    assert config == TrainConfig(
        train_attn=False, train_on_what="LAST_ASSISTANT_MESSAGE", data=str(Path("d.jsonl").resolve()),
        base_model=config.base_model, val_fraction=0.2, engine="local", behavior_if_log_dir_exists="resume",
        log_path=Path(f"s/{names[3]}").resolve(), output_dir=Path(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rank", "4,8", "--jobs", 2), "--jobs 2: this machine computes one run at a time"),
        (("--num-examples", "4,8"), "--num-examples 4,8: each run would hold out other conversations"),
        (("--rank", "4,8", "--upload", "--hf-repo-id", "me/x"), "--upload: a sweep has many results"),
        (
            ("--train-attn", "true,false", "--train-mlp", "false", "--train-unembed", "false"),
            "the run of train attn false: nothing is left to train",
        ),
        (("--rank", "4,4"), "--rank has 4 twice"),
        (("--rank", "4,x"), "--rank is 'x', but must be"),
        (("--data", "a,b", "--rank", "4,8", "--eval-every", "5,6"), "--eval-every is '5,6', but must be"),
        (("--rank", "4,8", "--engine", "tinker"), "a Tinker server needs a base model"),
    ],
)
def test_what_cannot_be_swept_is_refused(sweep: Tt, options: tuple[object, ...], said: str) -> None:
    found = sweep(*options)
    assert found.code == 2, found.err
    assert said in found.err
    assert not Path("s").exists()


def test_a_sweep_goes_on_as_it_was_started(sweep: Tt, tt: Tt) -> None:
    assert sweep("--rank", "4,8", "--learning-rate", "1").code == 0
    refused = {
        ("--rank", "4"): "--rank 4: the sweep was started with 4,8",
        ("--rank", "4,16"): "--rank 4,16: the sweep was started with 4,8",
        ("--batch", "2,4"): "--batch 2,4: the sweep was started with 64",
        ("--batch", "2"): "--batch 2: the sweep was started with 64",
        ("--max-steps", "9"): "--max-steps 9: the sweep was started with 0",
        ("--data", "other.jsonl"): "--data other.jsonl: the sweep was started with",
        ("--upload", "--hf-repo-id", "me/x"): "--upload: the sweep was started with false",
        ("--base-url", "http://x"): "--base-url http://x: the run was started on this machine",
    }
    for options, said in refused.items():
        found = tt("train", "--resume", "s", *options)
        assert (found.code, said in found.err) == (2, True), found.err
    # The same settings beside it are fine, and so is another place.
    Path("s").rename("moved")
    shutil.rmtree("moved/rank_8")
    same = ("--rank", "4,8", "--learning-rate", "1.0", "--data", "d.jsonl", "--batch", "64", "--engine", "auto")
    found = tt("train", "--resume", "moved", *same)
    assert found.code == 0, found.err
    assert started() == ["rank_4", "rank_8", "rank_8"]
    assert Path("moved/rank_8/final_lora_weights").is_dir()
    assert f"log_path: {Path('moved/rank_8').resolve()}\n" in Path("moved/configs/rank_8.yaml").read_text()


def test_a_place_that_is_taken(sweep: Tt) -> None:
    swept = ("--rank", "4,8", "--learning-rate", "1")
    Path("s").mkdir()
    Path("s/mine.txt").touch()
    found = sweep(*swept)
    assert (found.code, "s exists and holds no sweep" in found.err) == (1, True)
    Path("s/mine.txt").unlink()
    assert sweep(*swept).code == 0
    for behavior in ("ask", "fail"):
        found = sweep(*swept, "--behavior-if-log-dir-exists", behavior)
        assert (found.code, "go on with it: tt train --resume s" in found.err) == (1, True)
    assert sweep(*swept, "--behavior-if-log-dir-exists", "resume").code == 0
    assert len(started()) == 2
    assert sweep("--rank", "16,32", "--learning-rate", "1", "--behavior-if-log-dir-exists", "overwrite").code == 0
    assert {path.name for path in Path("s").glob("rank_*")} == {"rank_16", "rank_32"}


def test_latest_is_the_newest_run_or_sweep(sweep: Tt, tt: Tt) -> None:
    assert sweep("--rank", "4,8", "--learning-rate", "1").code == 0
    sweeps = Path("s/sweep.json").stat().st_mtime_ns
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    os.utime("run/config.json", ns=(sweeps + 1, sweeps + 1))
    found = tt("train", "--resume", "latest", "--output-dir", ".")
    assert (found.code, "run/config.json is damaged" in found.err) == (1, True), found.err
    os.utime("run/config.json", ns=(sweeps - 1, sweeps - 1))
    found = tt("train", "--resume", "latest", "--output-dir", ".")
    assert (found.code, found.out.splitlines()[-1]) == (0, "s"), found.err
    found = tt("train", "--resume", "run", "--rank", "4,8")
    assert (found.code, "goes on with one run" in found.err) == (2, True)


def test_only_one_process_is_at_it(sweep: Tt) -> None:
    assert sweep("--rank", "4,8", "--learning-rate", "1").code == 0
    with SweepDirectory(Path("s")).lock():
        found = sweep("--resume", "s")
    assert (found.code, "another process is training s" in found.err) == (1, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:40], "s/sweep.json is not readable"),
        (lambda text: "[]", "s/sweep.json is damaged"),
        (lambda text: text.replace('"version": 1', '"version": 7'), "in format 7; this version reads format 1"),
        (lambda text: text.replace('"rank": 4', '"wings": 4'), "unknown settings: wings"),
    ],
)
def test_a_damaged_sweep_is_named(sweep: Tt, change: Callable[[str], str], said: str) -> None:
    assert sweep("--rank", "4,8", "--learning-rate", "1").code == 0
    file = Path("s/sweep.json")
    file.write_text(change(file.read_text()))
    found = sweep("--resume", "s")
    assert (found.code, said in found.err) == (1, True), found.err


def test_without_data_to_evaluate_some_are_held_out(tt: Tt, sweep: Tt) -> None:
    found = tt("train", "--data", "d.jsonl", "--rank", "4,8", "--max-length", "50,60", "--learning-rate", 1,
               "--log-path", "here")  # fmt: skip
    assert found.code == 0, found.err
    assert "no --eval-data: --val-fraction 0.1 of the data are held out" in found.err
    assert "--max-length may change which tokens are evaluated" in found.err
    assert read_file(Path("here/configs/rank_4-max_length_50.yaml")).config().val_fraction == 0.1
    found = tt("train", "--data", "d.jsonl", "--rank", "4,8", "--learning-rate", 1)
    assert re.fullmatch(r"checkpoints/sweep_starter_\d{8}_\d{6}", found.out.splitlines()[-1])


def test_what_would_be_swept_is_shown(sweep: Tt, tt: Tt) -> None:
    swept = ("--rank", "4,8", "--learning-rate", "1e-3,auto", "--max-steps", 3, "--batch", 4)
    shown = sweep(*swept, "--print-config")
    assert shown.code == 0, shown.err
    Path("sweep.yaml").write_text(shown.out)
    given = read_file(Path("sweep.yaml"))
    assert given.grid == {"rank": [4, 8], "learning_rate": [0.001, "auto"]}
    assert (given.values["run_name"], given.values["max_steps"]) == ("s", 3)
    assert tt("train", "--config", "sweep.yaml", "--print-config").out == shown.out
    dry = sweep(*swept, "--dry-run")
    assert dry.code == 0, dry.err
    assert [row[:3] for row in table_of(dry.out)] == [
        ["1", "4", "0.001"], ["2", "4", "auto"], ["3", "8", "0.001"], ["4", "8", "auto"]
    ]  # fmt: skip
    assert "steps: 3 of 4 conversations" in dry.err
    assert not Path("s").exists()
    assert started() == []


def test_the_best_has_the_lowest_nll_of_its_final_weights() -> None:
    def outcome(name: str, nlls: list[float | None], *, finished: bool = True) -> Outcome:
        evals = [{"step": i, "nll": nll} for i, nll in enumerate(nlls)]
        return Outcome(Run(name, {}, TrainConfig()), finished, None, [], evals)

    found = ranked(
        [
            outcome("nan", [1.0, math.nan]), outcome("null", [None]), outcome("none", []),
            outcome("half", [0.1], finished=False), outcome("overfitted", [0.5, 3.0]), outcome("good", [2.0, 2.0]),
            outcome("zero", [0.0]), outcome("half without", [], finished=False),
        ]
    )  # fmt: skip
    assert [one.run.name for one in found] == [
        "zero", "good", "overfitted", "nan", "null", "none", "half", "half without",
    ]  # fmt: skip


@pytest.mark.parametrize(("method", "judged"), [("rl", "reward"), ("selfplay", "win_rate")])
def test_more_of_some_figures_is_better(method: MethodName, judged: str) -> None:
    needed: dict[str, Any] = {"reward": "math"} if method == "rl" else {"max_steps": 1}
    config = TrainConfig(method=method, **needed)

    def outcome(name: str, values: list[float | None], *, finished: bool = True) -> Outcome:
        evals = [{"step": i, judged: value, "illegal": 0} for i, value in enumerate(values)]
        steps: list[dict[str, Any]] = [
            {"step": 1, "loss": 0.0, "trained_tokens": 0, judged: None}, {"step": 2, "loss": -1.0, "trained_tokens": 5,
             judged: 0.25}, {"step": 3, "loss": -2.0, "trained_tokens": 50, judged: 0.75},
        ]  # fmt: skip
        return Outcome(Run(name, {}, config), finished, None, steps, evals)

    found = ranked([
        outcome("none", []), outcome("bad", [0.9, -0.5]), outcome("zero", [0.0]), outcome("good", [0.1, 0.75]),
        outcome("half", [1.0], finished=False), outcome("null", [None]),
    ])  # fmt: skip
    assert [one.run.name for one in found] == ["good", "zero", "bad", "none", "null", "half"]
    assert [one.to_json()[f"best_{judged}"] for one in found[:3]] == [0.75, 0.0, 0.9]
    assert [one.to_json()["best_step"] for one in found[:3]] == [1, 0, 0]
    assert found[0].to_json() == {
        "run": "good", "settings": {}, "state": "finished", "error": None, "steps": 3, judged: 0.75,
        f"best_{judged}": 0.75, "best_step": 1, f"train_{judged}": 0.5,
    }  # fmt: skip


def test_losses_of_preferences_are_means_of_steps() -> None:
    steps = [
        {"step": 1, "loss": 0.7, "trained_tokens": 10}, {"step": 2, "loss": 0.0, "trained_tokens": 0},
        {"step": 3, "loss": 0.1, "trained_tokens": 1000},
    ]  # fmt: skip
    evals = [{"step": 0, "loss": 0.69, "accuracy": 0.5}, {"step": 3, "loss": 0.4, "accuracy": 0.8}]
    row = Outcome(Run("a", {}, TrainConfig(method="dpo")), True, None, steps, evals).to_json()
    assert (row["loss"], row["best_loss"], row["best_step"], row["accuracy"]) == (0.4, 0.4, 3, 0.8)
    assert row["train_loss"] == pytest.approx(0.4)
    assert not {"nll", "best_nll", "train_nll"} & row.keys()


def test_the_loss_of_a_policy_is_no_nll() -> None:
    steps = [{"step": 1, "loss": 0.01, "trained_tokens": 10, "reverse_kl": 0.3}]
    evals = [{"step": 0, "nll": 2.0}, {"step": 1, "nll": 1.5}]
    row = Outcome(Run("a", {}, TrainConfig(method="distill", on_policy=True)), True, None, steps, evals).to_json()
    assert (row["nll"], row["best_nll"], row["train_nll"]) == (1.5, 1.5, None)


def test_settings_of_methods_are_swept(sweep: Tt) -> None:
    swept = {
        "dpo": ["--beta", "0.05,0.1"], "reward": ["--label-smoothing", "0,0.1"],
        "rl": ["--reward", "math", "--kl-penalty", "0,0.1"],
    }  # fmt: skip
    for method, options in swept.items():
        found = sweep("--method", method, *options, "--print-config")
        assert found.code == 0, found.err
        assert len(read_file_of(found.out).grid) == 1
        assert ("may change what the loss is: compare accuracies" in found.err) == (method in ("dpo", "reward"))
    refused = sweep("--beta", "0.05,0.1")
    assert (refused.code, "--beta is of --method dpo, and this is sft" in refused.err) == (2, True), refused.err


def read_file_of(text: str) -> Given:
    Path("given.yaml").write_text(text)
    return read_file(Path("given.yaml"))


def test_a_sweep_of_games_holds_no_data_out() -> None:
    games = Given({"method": "selfplay", "max_steps": 1}, {}, {"learning_rate": [1e-4, 1e-3]})
    assert plans._evaluated(games) == (games, [])
    others = Given({"method": "dpo"}, {}, {"beta": [0.05, 0.1]})
    assert plans._evaluated(others)[0].values == {"method": "dpo", "val_fraction": 0.1}


def test_names_of_runs_are_names_of_directories() -> None:
    taken: set[str] = set()
    for _ in range(2):
        taken.add(plans._name({"renderer": "a/b:c"}, taken))
    assert taken == {"renderer_a_b_c", "renderer_a_b_c-2"}
    assert len(plans._name({"renderer": "x" * 1000}, set())) == 150
