"""`tt prepare` and the token cache, killed anywhere: files are the old ones or the new ones, and whole."""

import json
from pathlib import Path

import pytest
from killing import Fault, ForkServer, is_change

from tinkertools.shipped import SAMPLE_TRAINING_DATA

pytest_plugins = ["kill_fixtures"]

OUTPUTS = ("chats.jsonl", "chats.val.jsonl", "chats.jsonl.rejects.jsonl")


def write_data(path: Path) -> None:
    """Good rows, a row twice, and a bad row."""
    rows = SAMPLE_TRAINING_DATA.read_text().splitlines(keepends=True)[:200]
    path.write_text("".join([*rows, rows[0], json.dumps({"messages": []}) + "\n"]))


def found_in(folder: Path) -> list[bytes | None]:
    """What the outputs hold; None for one that is not there."""
    return [(folder / name).read_bytes() if (folder / name).exists() else None for name in OUTPUTS]


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize(
    "options",
    [[], ["--dedupe", "--shuffle", "--val-fraction", "0.2"]],
    ids=["one", "three"],
)
def test_prepare_killed_at_every_point(server: ForkServer, tmp_path: Path, options: list[str], old: bool) -> None:
    data = tmp_path / "data.jsonl"
    write_data(data)
    command = ["prepare", "--dataset", str(data), "--output", "out/chats.jsonl", "--skip-bad", *options]

    def fresh(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if old:
            (folder / "out").mkdir()
            for output in OUTPUTS:
                (folder / "out" / output).write_bytes(b"old\n")
        return folder

    folder = fresh("straight")
    before = found_in(folder / "out")
    ended = server.run(command, folder)
    assert ended.code == 0, ended.err
    after = found_in(folder / "out")
    assert None not in (after if options else [after[0], after[2]])
    assert len(ended.points) > 10
    for index, label in enumerate(ended.points):
        if not is_change(label):
            continue
        folder = fresh(str(index))
        killed = server.run(command, folder, Fault(index=index))
        assert killed.killed
        now = found_in(folder / "out")
        assert all(one in (was, will) for one, was, will in zip(now, before, after, strict=True)), label
        if now[0] == after[0]:
            # The output gets its name last: where it stands the others do.
            assert now == after, label
        again = server.run(command, folder)
        assert again.code == 0, again.err
        assert found_in(folder / "out") == after, label


@pytest.mark.slow
def test_the_cache_killed_at_every_point(server: ForkServer, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    write_data(data)
    rows = data.read_text().splitlines(keepends=True)[:-1]
    data.write_text("".join(rows))
    command = ["train", "--engine", "local", "--data", str(data), "--batch", "4", "--dry-run"]

    def told(err: str) -> list[str]:
        """What is said of the data, but for where the tokens come from and how fast anything is."""
        measured = ("tokens: ", "render: ", "measure: ", "time: ", "peak memory: ")
        return [line for line in err.splitlines() if not line.startswith(measured)]

    (tmp_path / "straight").mkdir()
    straight = server.run(command, tmp_path / "straight")
    assert straight.code == 0, straight.err
    from_cache = server.run(command, tmp_path / "straight")
    assert told(from_cache.err) == told(straight.err)
    assert from_cache.err != straight.err
    (kept,) = (tmp_path / "straight" / "cache" / "tinkertools" / "tokens").glob("*.npz")
    assert straight.points
    for index, label in enumerate(straight.points):
        if not is_change(label):
            continue
        folder = tmp_path / str(index)
        folder.mkdir()
        assert server.run(command, folder, Fault(index=index)).killed
        files = list((folder / "cache").rglob("*.npz"))
        assert [file.name for file in files] in ([], [kept.name]), label
        again = server.run(command, folder)
        assert (again.code, told(again.err)) == (0, told(straight.err)), label
