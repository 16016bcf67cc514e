"""The training log is valid whenever it is read."""

import json
from pathlib import Path

import pytest

from tinkertools.errors import RunError
from tinkertools.runs.log import TrainingLog


def test_written_at_most_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    path, now = tmp_path / "training_log.json", 0.0

    def on_disk() -> list[int]:
        return [entry["step"] for entry in json.loads(path.read_bytes())["steps"]]

    with TrainingLog(path, clock=lambda: now) as log:
        assert json.loads(path.read_bytes()) == {"version": 1, "steps": [], "evals": []}
        log.add_step({"step": 1})
        assert on_disk() == []
        now = 1.0
        log.add_step({"step": 2})
        assert on_disk() == [1, 2]
        log.add_step({"step": 3})
        assert on_disk() == [1, 2]
        log.write()
        assert on_disk() == [1, 2, 3]
        log.add_step({"step": 4})
    assert on_disk() == [1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["training_log.json"]


def test_a_reopened_log_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "training_log.json"
    with TrainingLog(path) as log:
        for step in range(1, 6):
            log.add_step({"step": step})
    assert [entry["step"] for entry in TrainingLog.reopen(path, 4).steps] == [1, 2, 3]
    assert TrainingLog.reopen(tmp_path / "none.json", 1).steps == []
    path.write_text('{"version":1,"steps":[')
    with pytest.raises(RunError, match=r"training_log.json is not readable"):
        TrainingLog.reopen(path, 4)
