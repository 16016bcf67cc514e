"""Files and directories appear whole or not at all."""

import errno
from pathlib import Path

import pytest

from tinkertools.errors import FileError
from tinkertools.files import file_error, publish_directory, whole_directory, whole_file, write_json


def test_a_directory_appears_whole_and_replaces_the_old(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with whole_directory(tmp_path / "deep" / "d") as part:
            (part / "file").write_text(content)
            (part / content).touch()
            assert not (tmp_path / "deep" / "d" / content).exists()
        assert sorted(p.name for p in (tmp_path / "deep" / "d").iterdir()) == sorted(["file", content])
        assert (tmp_path / "deep" / "d" / "file").read_text() == content
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["d"]


def test_a_failure_leaves_the_old(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"old": True})
    with whole_directory(tmp_path / "d") as part:
        (part / "old").touch()
    with pytest.raises(ZeroDivisionError), whole_directory(tmp_path / "d") as part:
        (part / "new").touch()
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "file.json") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["d", "file.json", "old"]
    assert (tmp_path / "file.json").read_bytes() == b'{\n  "old": true\n}\n'


def test_publishing_moves_a_finished_directory(tmp_path: Path) -> None:
    saved, place = tmp_path / "saved", tmp_path / "place"
    for name in ("a", "b"):
        saved.mkdir()
        (saved / name).touch()
        publish_directory(saved, place)
        assert [p.name for p in place.iterdir()] == [name]
        assert not saved.exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full: x could not be written"),
        (errno.EACCES, "no permission: x"),
        (errno.EROFS, "no permission: x"),
        (errno.ENOENT, "not found: x"),
        (errno.EISDIR, "x is a directory, not a file"),
        (errno.ENOTDIR, "a file stands where a directory is needed"),
        (errno.EIO, "x: Input/output error"),
    ],
)
def test_what_the_file_system_says_in_plain_words(code: int, words: str) -> None:
    error = OSError(code, "Input/output error", "x")
    assert isinstance(file_error(error), FileError)
    assert words in file_error(error).message
