"""Answers in a file of lines: whatever is left of the file after a kill, nothing wrong is read from it."""

import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.errors import FileError
from tinkertools.kept import Kept, key_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab\n"), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip
ANSWERS = st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), VALUES), max_size=8)


def written(path: Path, answers: list[tuple[str, Any]]) -> None:
    with Kept(path) as kept:
        for key, value in answers:
            kept.put(key, value)


@given(ANSWERS, st.data())
def test_any_beginning_of_the_file_holds_a_beginning_of_the_answers(
    answers: list[tuple[str, Any]], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kept.jsonl"
        written(path, answers)
        content = path.read_bytes() if path.exists() else b""
        assert path.exists() == bool(answers)
        left = data.draw(st.integers(0, len(content)), label="bytes left")
        path.write_bytes(content[:left])
        whole = content[:left].count(b"\n")
        with Kept(path) as kept:
            assert {key: kept.get(key) for key in "ab"} | {"": None} == (
                {key: dict(answers[:whole]).get(key) for key in "ab"} | {"": None}
            )
            assert len(kept) == len(dict(answers[:whole]))
            # What comes next stands on a line of its own.
            kept.put("new", 1)
        with Kept(path) as kept:
            for key, value in (dict(answers[:whole]) | {"new": 1}).items():
                assert kept.get(key) == value
            assert len(kept) == len(dict(answers[:whole]) | {"new": 1})


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"null", b'{"key": "a"}', b'{"key": [1], "value": 2}', b"\xff", b"", b'"key"', b"\0" * 50]
)
def test_a_damaged_line_hides_no_other(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_bytes(b'{"key": "a", "value": 1}\n' + line + b'\n{"key": "b", "value": 2}\n')
    with Kept(path) as kept:
        assert (kept.get("a"), kept.get("b"), len(kept)) == (1, 2, 2)


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    start = threading.Barrier(8)

    def put(kept: Kept, thread: int) -> None:
        start.wait()
        for number in range(100):
            kept.put(f"{thread} {number}", "x" * (thread * 1000 + number))

    with Kept(path) as kept:
        threads = [threading.Thread(target=put, args=(kept, thread)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert {line["key"]: len(line["value"]) for line in lines} == {
        f"{t} {n}": t * 1000 + n for t in range(8) for n in range(100)
    }


def test_no_answers_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "kept.jsonl"
    with Kept(path):
        assert path.exists()
    assert not path.exists()
    written(path, [("a", 1)])
    with Kept(path) as kept:
        kept.forget()
        assert kept.get("a") is None
    assert not path.exists()


def test_what_is_put_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    with Kept(path) as kept:
        kept.put("a", 1)
        assert orjson.loads(path.read_bytes()) == {"key": "a", "value": 1}


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError), Kept(tmp_path / "file" / "kept.jsonl"):
        pass


PARTS = st.lists(st.binary(max_size=4) | st.text("ab", max_size=3) | st.integers(0, 3) | st.lists(st.integers(0, 2)))


@given(PARTS, PARTS)
def test_only_equal_questions_have_equal_names(first: list[Any], second: list[Any]) -> None:
    def plain(parts: list[Any]) -> list[Any]:
        return [part if isinstance(part, bytes) else orjson.dumps(part) for part in parts]

    assert (key_of(*first) == key_of(*second)) == (plain(first) == plain(second))


def test_the_order_of_fields_is_no_part_of_a_question() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 2, "b": 1})
