"""Rewards of the user, and patterns, in processes of their own."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tinkertools.errors import UsageError
from tinkertools.rewards import Reward, Rewarded, Sample, open_reward, parse_reward
from tinkertools.rewards.worker import Regex
from tinkertools.rewards.workers import Workers

CODE = """
import asyncio, os, sys, time
from pathlib import Path

class Odd:
    def __float__(self): return 2.5

def rewarded(sample):
    print("printed", sample.answer)
    os.write(1, b"written")
    answer = sample.answer
    if answer == "raise": raise ValueError("oh no\\nreally")
    if answer == "exit": sys.exit(0)
    if answer == "_exit": os._exit(0)
    if answer == "kill": os.kill(os.getpid(), 9)
    if answer == "forever":
        while True: pass
    if answer == "memory": return len(bytearray(1 << 45))
    if answer == "children":
        import subprocess
        subprocess.Popen(["sleep", "1000"])
        os._exit(1)
    if answer == "secret": raise ValueError(os.environ["MY_API_KEY"])
    return {"nan": float("nan"), "inf": -float("inf"), "none": None, "text": "1.0", "list": [1], "true": True,
            "odd": Odd(), "int": 7, "metadata": sample.metadata.get("points"), "finished": sample.finished,
            "reference": len(sample.reference or ""), "prompt": len(sample.messages[0]["content"]),
            "number": os.getpid()}.get(answer, 0.5)

waiting = 0
async def awaited(sample):
    global waiting
    if sample.answer == "raise": raise ValueError("oh no")
    if sample.answer == "slow": await asyncio.sleep(1000)
    if sample.answer == "block": time.sleep(1000)
    waiting += 1
    await asyncio.sleep(0.2)
    most = waiting
    waiting -= 1
    return most

class Callable:
    async def __call__(self, sample): return 3
instance = Callable()
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(CODE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = psutil.Process().children(recursive=True)  # of other tests: servers, for one
    yield
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []


def sample(answer: str, **metadata: Any) -> Sample:
    return Sample([{"role": "user", "content": "four"}], answer, "reference", metadata, True)


def opened(spec: str, timeout: float = 30.0) -> Reward:
    return open_reward(parse_reward(spec), None, print, timeout=timeout)


@pytest.mark.parametrize("spec", ["my_rewards:rewarded", "my_rewards.py:rewarded", "./my_rewards.py:rewarded"])
def test_numbers_are_taken_and_nothing_else(
    spec: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-planted-0123456789")
    answers = ["x", "true", "odd", "int", "metadata", "finished", "reference", "prompt"]
    bad = {
        "nan": "returned nan",
        "inf": "returned -inf",
        "none": "returned None, which is no number",
        "text": "returned '1.0', which is no number",
        "list": "returned [1], which is no number",
        "raise": "ValueError: oh no really (my_rewards.py:12)",
        "exit": "SystemExit: 0 (my_rewards.py:13)",
        "secret": "ValueError: (secret) (my_rewards.py:23)",
    }
    with opened(spec) as reward:
        assert reward.name == spec
        found = reward([sample(answer, points=4) for answer in [*answers, *bad]])
        assert reward([]) == []
    values = [0.5, 1.0, 2.5, 7.0, 4.0, 1.0, 9.0, 4.0]
    assert found == [*map(Rewarded, values), *(Rewarded(None, error) for error in bad.values())]
    captured = capfd.readouterr()
    assert captured.out == "" and "printed x" in captured.err and "written" in captured.err


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("_exit", "the process ended with code 0"),
        ("kill", "signal 9 ended the process"),
        ("forever", "no end after 2 s"),
        ("memory", "MemoryError (my_rewards.py:18)"),
        ("children", "the process ended with code 1"),
    ],
)
def test_a_bad_sample_costs_itself_alone(answer: str, error: str) -> None:
    with opened("my_rewards:rewarded", 2) as reward:
        found = reward([sample(text) for text in ("a", answer, "int", "b")])
        assert found == [Rewarded(0.5), Rewarded(None, error), Rewarded(7.0), Rewarded(0.5)]
        assert reward([sample("int")]) == [Rewarded(7.0)]


def test_processes_are_kept() -> None:
    with opened("my_rewards:rewarded") as reward:
        first = {one.value for one in reward([sample("number")] * 20)}
        assert first <= {child.pid for child in psutil.Process().children()} and os.getpid() not in first
        assert {one.value for one in reward([sample("number")])} <= first


def test_async_functions_run_side_by_side() -> None:
    with opened("my_rewards:awaited") as reward:
        found = reward([sample("x")] * 12)
        assert max(one.value or 0 for one in found) > 1
        mixed = reward([sample(text) for text in ("x", "raise", "x")])
    assert [one.error for one in mixed] == [None, "ValueError: oh no (my_rewards.py:32)", None]
    with opened("my_rewards:instance") as reward:
        assert reward([sample("x")]) == [Rewarded(3.0)]


@pytest.mark.slow
def test_async_functions_that_take_forever_cost_themselves_alone() -> None:
    with opened("my_rewards:awaited", 2) as reward:
        found = reward([sample(text) for text in ("x", "slow", "block", "x")])
    assert [one.error for one in found] == [None, "no end after 2 s", "no end after 2 s", None]


def test_what_cannot_be_sent_is_its_own_error() -> None:
    with opened("my_rewards:rewarded") as reward:
        found = reward([sample("int", what=lambda: 0), sample("int")])
    assert found[0].error is not None and "cannot be sent" in found[0].error
    assert found[1] == Rewarded(7.0)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nowhere_to_be_found\ndef f(sample): return 1", "No module named 'nowhere_to_be_found' (broken.py:1)"),
        ("f = 5", "f is of type int, and no function"),
        ("import sys\nsys.exit(3)\ndef f(sample): return 1", "SystemExit: 3 (broken.py:2)"),
        ("import os\nos._exit(3)\ndef f(sample): return 1", "the process ended with code 3"),
    ],
)
def test_what_cannot_be_loaded_is_said_when_it_is_opened(code: str, said: str) -> None:
    Path("broken.py").write_text(code)
    with pytest.raises(UsageError) as error:
        opened("broken.py:f")
    assert "--reward broken.py:f cannot be loaded: " in error.value.message and said in error.value.message


def test_a_file_may_have_the_name_of_a_library() -> None:
    Path("math.py").write_text("import math\nimport statistics\ndef f(sample): return math.floor(2.5)")
    with opened("math.py:f") as reward:
        assert reward([sample("x")]) == [Rewarded(2.0)]


@pytest.mark.parametrize(
    ("pattern", "answer", "value"),
    [("yes|no", "I say no.", 1.0), ("^yes$", "yes!", 0.0), (r"\d{3}", "a 123", 1.0), ("", "", 1.0), (":", "a:b", 1.0)],
)
def test_patterns(pattern: str, answer: str, value: float) -> None:
    with Workers("regex", Regex(pattern), 30, workers=1) as reward:
        assert reward([sample(answer)]) == [Rewarded(value)]


def test_a_pattern_that_backtracks_without_end_is_stopped() -> None:
    with opened("regex:^(a+)+$", 2) as reward:
        assert reward.name == "regex:^(a+)+$"
        found = reward([sample("aaa"), sample("a" * 60 + "b"), sample("b")])
    assert found == [Rewarded(1.0), Rewarded(None, "no end after 2 s"), Rewarded(0.0)]


def test_workers_end_with_who_started_them(tmp_path: Path) -> None:
    import subprocess

    script = (
        "import os, psutil, threading, time\nfrom tinkertools.rewards import *\n"
        "reward = open_reward(parse_reward('my_rewards:rewarded'), None, print, timeout=1000)\n"
        "sample = Sample([{'role': 'user', 'content': ''}], 'forever', None, {}, True)\n"
        "threading.Thread(target=reward, args=([sample],), daemon=True).start()\ntime.sleep(0.5)\n"
        "print([c.pid for c in psutil.Process().children()], flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    for number in eval(done.stdout):
        # An end that was asked for comes soon; without one this would wait for ever.
        while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
