"""The training log is valid JSON at every instant, and costs what its entries cost."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkertools.errors import RunError
from tinkertools.files import write_bytes
from tinkertools.runs import log as logs
from tinkertools.runs.log import TrainingLog, best_of


def on_disk(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    assert list(found) == ["version", "steps", "evals"]
    return found


def test_every_entry_is_there_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "training_log.json"
    with TrainingLog(path) as log:
        assert on_disk(path) == {"version": 1, "steps": [], "evals": []}
        for step in range(1, 4):
            log.add_step({"step": step, "loss": 1 / step})
            assert on_disk(path)["steps"] == [{"step": k, "loss": 1 / k} for k in range(1, step + 1)]
        log.add_eval({"step": 3, "nll": 0.5})
        log.sync()
        assert on_disk(path)["evals"] == log.evals == [{"step": 3, "nll": 0.5}]
    expected = '{"version":1,"steps":[\n{"step":1,"loss":1.0},\n{"step":2,"loss":0.5},'
    assert path.read_text().startswith(expected)
    assert "  " not in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["training_log.json"]


def test_a_reopened_log_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "training_log.json"
    with TrainingLog(path) as log:
        for step in range(1, 6):
            log.add_step({"step": step})
            log.add_eval({"step": step})
        # As a killed process leaves it, with room in it.
        assert [entry["step"] for entry in TrainingLog.reopen(path, 4).steps] == [1, 2, 3]
    with TrainingLog.reopen(path, 4) as log:
        assert on_disk(path)["steps"] == [{"step": step} for step in (1, 2, 3)]
        log.add_step({"step": 4})
        assert [entry["step"] for entry in on_disk(path)["steps"]] == [1, 2, 3, 4]
        assert [entry["step"] for entry in on_disk(path)["evals"]] == [1, 2, 3]
    assert TrainingLog.reopen(tmp_path / "none.json", 1).steps == []
    path.write_text('{"version":1,"steps":[')
    with pytest.raises(RunError, match=r"training_log.json is not readable"):
        TrainingLog.reopen(path, 4)


entries = st.tuples(st.booleans(), st.integers(0, 6000))


@settings(max_examples=60, deadline=None)
@given(st.lists(entries, max_size=40), st.integers(0, 20))
def test_each_write_stays_within_a_page_and_leaves_valid_json(
    tmp_path_factory: pytest.TempPathFactory, added: list[tuple[bool, int]], share: int
) -> None:
    """What a kill can interrupt is a write of two pages; what stands before and after each write is a log."""
    path = tmp_path_factory.mktemp("log") / "training_log.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "_LEAST_ROOM", 5000)
        patch.setattr(logs, "_ROOM_SHARE", share / 10)
        with TrainingLog(path) as log:
            for step, (is_step, length) in enumerate(added, 1):
                before = path.read_bytes()
                entry = {"step": step, "text": "x" * length}
                (log.add_step if is_step else log.add_eval)(entry)
                after = path.read_bytes()
                if len(after) == len(before):
                    changed = [at for at in range(len(after)) if after[at] != before[at]]
                    assert changed[0] // 4096 == changed[-1] // 4096
                found = on_disk(path)
                assert found["steps"] == log.steps
                assert found["evals"] == log.evals
    assert on_disk(path) == {"version": 1, "steps": log.steps, "evals": log.evals}


def test_100_000_steps_cost_a_few_times_their_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def counted(path: Path, content: bytes) -> None:
        written.append(len(content))
        write_bytes(path, content)

    monkeypatch.setattr(logs, "write_bytes", counted)
    path = tmp_path / "training_log.json"
    entry = {"epoch": 1, "loss": 2.123456789, "learning_rate": 1e-4, "trained_tokens": 4321, "tokens": 9876}
    with TrainingLog(path) as log:
        for step in range(1, 100_001):
            log.add_step({"step": step, **entry})
            if step % 1000 == 0:
                log.add_eval({"step": step, "nll": 1.5})
    size = path.stat().st_size
    assert size > 10_000_000
    assert sum(written) < 5 * size
    assert len(written) < 40
    assert len(on_disk(path)["steps"]) == 100_000


def test_what_is_no_number_is_none_again_after_a_resume(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "log.json") as log:
        log.add_step({"step": 1, "loss": math.nan})
        log.add_eval({"step": 1, "nll": math.inf})
    assert json.loads((tmp_path / "log.json").read_bytes())["steps"] == [{"step": 1, "loss": None}]
    again = TrainingLog.reopen(tmp_path / "log.json", 2)
    assert math.isnan(again.steps[0]["loss"])
    assert math.isnan(again.evals[0]["nll"])
    assert best_of(again.evals) is None
