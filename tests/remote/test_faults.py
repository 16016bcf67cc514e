"""Training against servers and connections that fail: it ends in words, and goes on to the weights it would have had.

The arithmetic of training is the ledger's of `standin.py`: which examples went into which optimizer step. Whatever
broke on the way, the final weights hold each step of an undisturbed run, once.

A request that the connection itself delivers twice is tried only on servers that know a request by its sequence number.
On any other server both are done, and nobody can notice: neither the SDK nor `tt` sent it twice.

The SDK waits for seconds and minutes before it tries again. Here its sleeps are fifty times shorter, and each command
ends as a process does: what it left in the SDK's background is ended before the next.
"""

import asyncio
import functools
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from faults import Fault, Kind, Proxy, Schedule
from marks import mostly_slow
from run_files import sums, write_rows
from safetensors.numpy import load_file
from standin import Lineage, StandIn, as_json, refusal

from tinkertools.remote.wire import short

KEY = "tml-planted-key-1234567890"
STEPS = 6
FASTER = 50
SEEDS = 210

Tt = Callable[..., Any]
Train = Callable[..., Any]
# What a command left: its exit code, its data and its talk.
Result = Any


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and an SDK that does not sleep long."""
    sleep, anyio_sleep = asyncio.sleep, anyio.sleep
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setattr("asyncio.sleep", lambda seconds, result=None: sleep(seconds / FASTER, result))
    monkeypatch.setattr("anyio.sleep", lambda seconds: anyio_sleep(seconds / FASTER))
    monkeypatch.setattr("tinkertools.remote.service._GOODBYE", 0.5)
    monkeypatch.setattr("tinkertools.remote.download._SILENCE", 1.0)
    # What takes most of the time of a run of six steps, and is not what is tested.
    monkeypatch.setattr("tinkertools.runs.plots.write_plots", lambda *_: None)
    monkeypatch.setattr("ssl.create_default_context", functools.cache(ssl.create_default_context))


def end_of_process() -> None:
    """End what the SDK still does in the background, as it ends with a process."""
    from tinker.lib import internal_client_holder as sdk

    async def cancel_all() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=5) if left else None

    loop = sdk._internal_client_holder_thread_singleton.get_loop()
    asyncio.run_coroutine_threadsafe(cancel_all(), loop).result(10)
    sdk.sessionless_holder_cache._holders.clear()


@pytest.fixture
def train(tt: Tt, starter: str, tmp_path: Path) -> Train:
    """Run `tt train` on twelve conversations, or go on with a run."""
    write_rows(tmp_path / "data.jsonl", sums(12))

    def run(url: str, *more: object, timeout: float = 2, base_model: str = starter, save_every: int = 2) -> Result:
        options: list[object] = ["--base-url", url, "--timeout", timeout]
        if "--resume" not in more:
            options += ["--data", "data.jsonl", "--base-model", base_model, "--run-name", "run", "--batch", 2]
            options += ["--max-steps", STEPS, "--save-every", save_every, "--learning-rate", "1e-3"]
        try:
            return tt("train", *options, *more)
        finally:
            end_of_process()

    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where the run is."""
    return tmp_path / "checkpoints" / "run"


@pytest.fixture
def server(starter: str) -> Iterator[StandIn]:
    """A server that does a repeated request again."""
    with StandIn([starter], knows_repeats=False) as standin:
        yield standin


def kept(folder: Path) -> dict[str, str]:
    """The paths on the server of what a run took."""
    paths: dict[str, str] = json.loads((folder / "checkpoint.json").read_bytes())["paths"]
    return paths


def check_weights(folder: Path, server: StandIn, lineage: Lineage) -> None:
    """What a folder of a run holds comes from these steps, here and on the server."""
    assert server.lineage(kept(folder)["sampler"]) == lineage
    assert server.lineage(kept(folder)["state"]) == lineage
    if (folder / "adapter_model.safetensors").exists():
        for tensor in load_file(folder / "adapter_model.safetensors").values():
            assert (tensor == len(lineage)).all()


def check_run(run: Path, server: StandIn, lineage: Lineage) -> None:
    """All that a finished run took is what an undisturbed run takes."""
    check_weights(run / "final_lora_weights", server, lineage)
    assert (run / "final_lora_weights" / "adapter_model.safetensors").exists()
    for folder in run.glob("checkpoint_step_*"):
        check_weights(folder, server, lineage[: int(folder.name.rpartition("_")[2])])
    log = json.loads((run / "training_log.json").read_bytes())
    assert [entry["step"] for entry in log["steps"]] == list(range(1, STEPS + 1))
    assert not (run / ".engine").exists()


def check_words(result: Result, run: Path) -> None:
    """A failure is told in plain words that end with how to go on, and nothing holds the key."""
    assert KEY not in result.out + result.err
    for file in run.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    if result.code:
        assert result.code == 1
        assert "Traceback" not in result.err
        assert "unexpected" not in result.err, "an error that nobody explained"
        if (run / "config.json").exists():
            assert re.search(r"tt train --resume \S+run\s*$", result.err)


_undisturbed: list[Lineage] = []


@pytest.fixture
def undisturbed(train: Train, run: Path, starter: str) -> Lineage:
    """The steps of an undisturbed run."""
    if not _undisturbed:
        with StandIn([starter]) as server:
            result = train(server.url, timeout=60)
            assert result.code == 0, result.err
            lineage = server.lineage(kept(run / "final_lora_weights")["sampler"])
            check_run(run, server, lineage)
        run.rename(run.with_name("undisturbed"))
        assert len(lineage) == STEPS
        assert len({example for step in lineage for example in step.examples}) == 2 * STEPS
        _undisturbed.append(lineage)
    return _undisturbed[0]


@pytest.mark.parametrize("seed", mostly_slow(range(SEEDS), 8))
def test_schedule(
    seed: int, train: Train, run: Path, starter: str, undisturbed: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One to three faults at random, then as many times `--resume` as it takes."""
    # In turns: a server known to know repeats, as the vendor's; one that does so, unknown to `tt`; one that does not.
    knows_repeats = seed % 3 != 2
    if seed % 3 == 0:
        monkeypatch.setattr("tinkertools.remote.wire._KNOWS_REPEATS", ("127.0.0.1",))
    schedule = Schedule.from_seed(seed, duplicates=knows_repeats)
    with StandIn([starter], knows_repeats=knows_repeats, pyqwest=seed % 2 == 0) as server:
        with Proxy(server.url, schedule.faults) as proxy:
            result = train(proxy.url)
        print(f"seed {seed}: {schedule}, met {proxy.met}\n{result.err}")
        check_words(result, run)
        for _ in range(3):
            if result.code == 0:
                break
            more = ["--resume", run] if (run / "config.json").exists() else []
            result = train(server.url, *more, timeout=60)
            print(result.err)
            check_words(result, run)
        assert result.code == 0
        check_run(run, server, undisturbed)


def test_every_checkpoint_holds_its_own_step(train: Train, run: Path, server: StandIn, undisturbed: Lineage) -> None:
    """With a checkpoint each step, the next step is on its way before the checkpoint is downloaded."""
    assert train(server.url, save_every=1, timeout=60).code == 0
    assert len(list(run.glob("checkpoint_step_*/adapter_model.safetensors"))) == STEPS - 1
    check_run(run, server, undisturbed)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("hang", "did not do the first contact in 2 s; its last word: it has not answered yet"),
        ("error_before", "does not do the first contact: HTTP 500"),
        ("no_json", "failed"),
        ("other_json", "failed"),
        ("no_http", "the answer broke off or is no HTTP"),
        ("drop_before", "the answer broke off or is no HTTP"),
    ],
)
def test_nothing_works(kind: Kind, words: str, train: Train, run: Path, server: StandIn) -> None:
    """A server that fails from the first contact on is left after seconds."""
    with Proxy(server.url, [Fault(kind, "*")]) as proxy:
        result = train(proxy.url)
        assert proxy.requests.total() < 100
    assert result.code == 1
    assert words in result.flat
    check_words(result, run)
    assert not server.requests
    assert not run.exists()


def test_nobody_listens(train: Train, run: Path, server: StandIn) -> None:
    with Proxy(server.url) as proxy:
        proxy.refuse_connections()
        result = train(proxy.url)
    assert result.code == 1
    assert f"{proxy.url} did not do the first contact in 2 s; its last word: no connection" in result.flat
    check_words(result, run)
    assert not run.exists()


def test_hang_in_the_middle(train: Train, run: Path, server: StandIn, undisturbed: Lineage) -> None:
    with Proxy(server.url, [Fault("hang", "optim_step", 3)]) as proxy:
        result = train(proxy.url)
    assert "step 3: " in result.flat
    assert "did not do optim_step in 2 s" in result.flat
    assert f"then go on with step 3: tt train --resume {run.relative_to(run.parents[1])}" in result.flat
    check_words(result, run)
    assert train(server.url, "--resume", "latest", timeout=60).code == 0
    check_run(run, server, undisturbed)


@pytest.mark.parametrize(
    ("endpoint", "status", "detail", "words"),
    [
        ("create_session", 401, "Invalid API key", ["refuses the key in TINKER_API_KEY (HTTP 401): Invalid API key"]),
        ("get_server_capabilities", 403, "not yours", ["refuses the key in TINKER_API_KEY (HTTP 403): not yours"]),
        (
            "create_model",
            422,
            [{"loc": ["body", "optimizer_config"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}],
            ["HTTP 422", "body.optimizer_config: Extra inputs are not permitted", "uv run --with 'tinker==0.25.0' tt"],
        ),
        (
            "forward_backward",
            500,
            "Internal Server Error",
            ["does not do the simplest forward with SDK", "uv run --with 'tinker==0.24.1' tt"],
        ),
    ],
)  # fmt: skip
def test_refused(
    endpoint: str, status: int, detail: Any, words: list[str], train: Train, run: Path, server: StandIn
) -> None:
    """What the server says is repeated, and what to do is said."""
    server.refuse(endpoint, as_json({"detail": detail}, status))
    result = train(server.url, timeout=60)
    assert result.code == 1
    for part in words:
        assert part in result.flat
    check_words(result, run)
    assert server.requests.total() < 100
    assert not run.exists()


@pytest.mark.parametrize("before", range(300 - len(KEY), 300, 3))
def test_no_part_of_the_key_is_shown(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a long word of the server is cut in the middle of the key."""
    monkeypatch.setenv("TINKER_API_KEY", "planted-key-1234567890")
    assert "plan" not in short("." * before + "planted-key-1234567890 and more")


@pytest.mark.slow
def test_payment_required(train: Train, run: Path, server: StandIn, undisturbed: Lineage) -> None:
    """The SDK waits for the bill to be paid, for an hour; `tt` for as long as a request may take."""
    server.refuse("optim_step", refusal(402, "no credits left"))
    result = train(server.url)
    assert result.code == 1
    assert "HTTP 402" in result.flat
    check_words(result, run)
    server.allow("optim_step")
    assert train(server.url, "--resume", run, timeout=60).code == 0
    check_run(run, server, undisturbed)


def test_unknown_base_model(train: Train, run: Path) -> None:
    with StandIn(["Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B"]) as server:
        result = train(server.url, base_model="Qwen/Qwen3-8b")
    assert result.code == 1
    assert "does not have Qwen/Qwen3-8b; it has Qwen/Qwen3-8B, Qwen/Qwen3-32B" in result.flat
    assert result.err.strip().endswith("--base-model Qwen/Qwen3-8B")
    check_words(result, run)
    assert not run.exists()


def test_state_has_expired(train: Train, run: Path, server: StandIn) -> None:
    with Proxy(server.url, [Fault("error_before", "optim_step", 5)]) as proxy:
        assert train(proxy.url).code == 1
    state = json.loads((run / "training_state" / "state.json").read_bytes())["paths"]["state"]
    server.expire(state)
    result = train(server.url, "--resume", run)
    assert result.code == 1
    assert f"does not have {state} any more (HTTP 404): no checkpoint {state}: it may have expired" in result.flat
    assert "Traceback" not in result.err
    # It would fail again.
    assert "--resume" not in result.err


def test_a_resume_that_finds_no_server_says_how_to_go_on(
    train: Train, run: Path, server: StandIn, undisturbed: Lineage
) -> None:
    with Proxy(server.url, [Fault("error_before", "optim_step", 5)]) as proxy:
        assert train(proxy.url).code == 1
        proxy.refuse_connections()
        result = train(proxy.url, "--resume", run)
    assert "no connection" in result.flat
    assert f"then go on with step 5: tt train --resume {run}" in result.flat
    check_words(result, run)
    assert train(server.url, "--resume", run, timeout=60).code == 0
    check_run(run, server, undisturbed)


def test_lost_answer_is_not_sent_again(train: Train, run: Path, server: StandIn) -> None:
    """A server that would do it twice is not asked twice."""
    with Proxy(server.url, [Fault("drop_after", "optim_step", 4)]) as proxy:
        result = train(proxy.url)
        assert proxy.requests["optim_step"] == 4
    assert "the answer to optim_step" in result.flat
    assert "nobody knows whether it was done" in result.flat
    check_words(result, run)


def test_lost_answer_is_asked_for_again_where_repeats_are_known(
    train: Train, run: Path, starter: str, undisturbed: Lineage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinkertools.remote.wire._KNOWS_REPEATS", ("127.0.0.1",))
    lost = [Fault("drop_after", endpoint, 2) for endpoint in ("forward_backward", "optim_step", "save_weights")]
    with StandIn([starter], knows_repeats=True) as server, Proxy(server.url, lost) as proxy:
        result = train(proxy.url, timeout=60)
        assert len(proxy.met) == len(lost)
        assert result.code == 0, result.err
        check_run(run, server, undisturbed)


REWARDS = """
def length(sample):
    return len(sample.answer) / 10
"""


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop_after", "optim_step", 4),
        Fault("error_before", "forward_backward", 7),
        Fault("drop_after", "save_weights_for_sampler", 5),
        Fault("busy", "asample", 6),
    ],
    ids=lambda fault: f"{fault.kind} {fault.endpoint}",
)
def test_reinforcement_goes_on_to_the_weights_of_an_undisturbed_run(
    train: Train, run: Path, starter: str, tmp_path: Path, fault: Fault
) -> None:
    """A step's answers come from the server, and what is learnt of them is in the datums, which the ledger knows."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    options = ["--method", "rl", "--reward", "rewards.py:length", "--group-size", 2, "--max-tokens", 8]
    with StandIn([starter], knows_repeats=False) as server:
        result = train(server.url, *options, timeout=60)
        assert result.code == 0, result.err
        lineage = server.lineage(kept(run / "final_lora_weights")["sampler"])
        check_run(run, server, lineage)
        # What is only sampled from is not made ready to be downloaded.
        assert server.requests["save_weights_for_sampler"] == STEPS + 3
        assert server.requests["save_weights_external"] == 3
    assert [len(step.examples) for step in lineage] == [4] * STEPS
    undisturbed = run.rename(run.with_name("undisturbed"))
    with StandIn([starter], knows_repeats=False) as server:
        with Proxy(server.url, [fault]) as proxy:
            result = train(proxy.url, *options)
            assert proxy.met
        check_words(result, run)
        assert (result.code == 0) == (fault.kind == "busy"), result.err
        if result.code:
            result = train(server.url, "--resume", run, timeout=60)
        assert result.code == 0, result.err
        check_run(run, server, lineage)
    assert (run / "rollouts.jsonl").read_bytes() == (undisturbed / "rollouts.jsonl").read_bytes()


@pytest.mark.parametrize("endpoint", mostly_slow(["optim_step", "get_server_capabilities", "retrieve_future"], 1))
def test_key_is_never_shown(
    tmp_path: Path, starter: str, server: StandIn, train: Train, environment: dict[str, str], endpoint: str
) -> None:
    """Not by a traceback either, and not where the server repeats what it was sent."""
    with Proxy(server.url, [Fault("echo", endpoint)]) as proxy:
        found = subprocess.run(
            [
                sys.executable, "-m", "tinkertools", "train", "--data", "data.jsonl", "--base-model", starter,
                "--base-url", proxy.url, "--batch", "2", "--max-steps", "1", "--timeout", "20", "--debug",
            ],
            cwd=tmp_path, env=environment | {"TINKER_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}, check=False,
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert proxy.met
    assert found.returncode == 1
    assert "Traceback" in found.stderr
    assert "cannot read" in found.stderr
    assert KEY not in found.stdout + found.stderr
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
