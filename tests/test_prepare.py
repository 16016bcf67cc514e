"""`tt prepare` from end to end: exact output, exact refusals, and nothing half-written whatever happens."""

import errno
import gzip
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest
from dataset_hub import Hub
from hypothesis import assume, given
from hypothesis import strategies as st

from tinkertools.config import AUTO_RENDERER
from tinkertools.errors import DataError
from tinkertools.prepare import prepare
from tinkertools.preparing import PrepareOptions

Tt = Callable[..., Any]

OLD = b"an older file\n"
# `tt` in a process of its own: Ctrl-C reaches it however the tests were started, and its own peak of memory is known.
CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tinkertools.cli import main
sys.argv[0] = "tt"
try:
    main()
finally:
    print(next((line for line in open("/proc/self/status") if line.startswith("VmHWM")), ""), file=sys.stderr)
"""


def line(question: str, answer: str, system: str | None = None) -> bytes:
    """A conversation as `tt prepare` writes it."""
    said = [("system", system)] * (system is not None) + [("user", question), ("assistant", answer)]
    return orjson.dumps({"messages": [{"role": role, "content": text} for role, text in said]}) + b"\n"


def pairs(count: int, start: int = 0) -> bytes:
    """JSON Lines of so many different questions and answers."""
    return b"".join(b'{"question":"q%d","answer":"a%d"}\n' % (i, i) for i in range(start, start + count))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


QA = line("q", "a")
EXPORTS = {
    "messages.jsonl": (QA, "messages: a list of role and content", QA),
    "sharegpt.json": (
        b'[{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}]',
        "ShareGPT: conversations of from and value",
        QA,
    ),
    "alpaca.jsonl": (
        b'{"instruction":"q","input":"","output":"a"}\n{"instruction":"q","input":"x","output":"a"}\n',
        "Alpaca: instruction, input and output",
        QA + line("q\n\nx", "a"),
    ),
    "pairs.csv": (
        'question,answer\n"q,é\n","a"\n'.encode(),
        "pairs: 'question' asks, 'answer' answers",
        line("q,é\n", "a"),
    ),
    "pairs.tsv": (b"prompt\tcompletion\nq\ta\n", "pairs: 'prompt' asks, 'completion' answers", QA),
    "lines.jsonl.gz": (gzip.compress(b'{"query":"q","response":"a"}\n'), "pairs: 'query' asks, 'response' answers", QA),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_each_format_by_itself(tt: Tt, tmp_path: Path, name: str) -> None:
    content, format, expected = EXPORTS[name]
    (tmp_path / name).write_bytes(content)
    found = tt("prepare", "--dataset", name, "--output", "new/out.jsonl")
    rows = expected.count(b"\n")
    assert (found.code, found.out) == (0, "new/out.jsonl\n")
    assert found.err.splitlines()[-3:] == [
        f"format: {format}", f"rows in: {rows} = {rows} kept + 0 refused", "next: tt train --data new/out.jsonl"
    ]  # fmt: skip
    assert files_in(tmp_path) == {name: content, "new/out.jsonl": expected}


def test_the_output_is_training_data_by_default(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(QA)
    assert tt("prepare", "--dataset", "in.jsonl").out == "data/training_data.jsonl\n"
    assert (tmp_path / "data/training_data.jsonl").read_bytes() == QA


def test_parquet_with_nested_messages(tt: Tt, tmp_path: Path) -> None:
    rows = [orjson.loads(line(f"q{i}", "a")) for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    assert tt("prepare", "--dataset", "in.parquet", "--output", "out.jsonl").code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(line(f"q{i}", "a") for i in range(3))


def test_stdin(tt: Tt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(pairs(2))))
    assert tt("prepare", "--dataset", "-", "--output", "out.jsonl").code == 0
    assert files_in(tmp_path) == {"out.jsonl": line("q0", "a0") + line("q1", "a1")}


def test_a_folder(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, content in {"b.jsonl": pairs(1, 1), "a.csv": b"question,answer\nq0,a0\n", "README.md": b"hello"}.items():
        (tmp_path / "in" / name).write_bytes(content)
    found = tt("prepare", "--dataset", "in", "--output", "out.jsonl")
    assert "note: 1 files in in are no data files, such as in/README.md" in found.err
    assert (tmp_path / "out.jsonl").read_bytes() == line("q0", "a0") + line("q1", "a1")


def test_columns_with_any_names(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"Frage":"q","Antwort":"a","prompt":"x","completion":"y"}')
    found = tt(
        "prepare",
        "--dataset",
        "in.jsonl",
        "--prompt-column",
        "Frage",
        "--completion-column",
        "Antwort",
        "--output",
        "o.jsonl",
    )
    assert "format: pairs: 'Frage' asks, 'Antwort' answers\n" in found.err
    assert (tmp_path / "o.jsonl").read_bytes() == QA


def test_a_system_message_for_those_that_have_none(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(QA + line("q", "a", system="own"))
    tt("prepare", "--dataset", "in.jsonl", "--system", "Be brief.", "--output", "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == line("q", "a", system="Be brief.") + line("q", "a", system="own")


@pytest.mark.parametrize(
    ("options", "expected", "summary"),
    [
        (["--max-examples", 2], line("q0", "a0") + line("q1", "a1"), "rows in: 2 = 2 kept + 0 refused"),
        (["--max-examples", 9], b"".join(line(f"q{i}", f"a{i}") for i in range(3)), "rows in: 3 = 3 kept + 0 refused"),
        (["--max-examples", 1, "--val-fraction", 0], line("q0", "a0"), "rows in: 1 = 1 kept + 0 refused"),
    ],
)
def test_max_examples(tt: Tt, tmp_path: Path, options: list[object], expected: bytes, summary: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(pairs(3))
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl", *options)
    assert summary in found.err.splitlines()
    assert (tmp_path / "out.jsonl").read_bytes() == expected


def test_max_examples_of_a_shuffle_says_what_is_left_out(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(pairs(5) + pairs(2))
    found = tt(
        "prepare", "--dataset", "in.jsonl", "--shuffle", "--dedupe", "--max-examples", 3, "--output", "out.jsonl"
    )
    assert "rows in: 7 = 3 kept + 0 refused + 2 duplicates + 2 beyond --max-examples" in found.err.splitlines()


GOOD = b'{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}\n'
FIRST = "the assistant speaks first; a user message must come before"
BAD = [
    ("empty.jsonl", b"", "error: empty.jsonl holds no rows"),
    ("empty.csv", b"question,answer\n", "error: empty.csv holds no rows"),
    ("b.jsonl", GOOD * 2 + b'{"messages": [}\n' + GOOD, "  b.jsonl:3: row: invalid JSON at column 15: "),
    ("b.json", b"[\n" + GOOD + b',{"messages": oops}]', "  b.json:3: row: invalid JSON: Expecting value; the rest of"),
    (
        "b.jsonl",
        GOOD + b"\n" + GOOD[:40] + b"\xff" + GOOD[40:],
        "  b.jsonl:3: row: invalid UTF-8 at byte 41 of the row",
    ),
    ("b.csv", b"question,answer\nq,a\n\xff,a\n", "  b.csv:3: row: invalid UTF-8: invalid start byte"),
    ("b.jsonl", GOOD + b'{"text":"x"}\n', "  b.jsonl:2: messages: is missing; the row has 'text'"),
    ("b.jsonl", b'{"text":"x"}\n', "error: b.jsonl:1: messages: no known format; the row has 'text'"),
    ("b.jsonl", b"hello\n", "error: b.jsonl:1: row: invalid JSON at column 1: "),
    ("b.jsonl", GOOD + b"[1]\n", "  b.jsonl:2: row: must be an object with fields, but is a list"),
    ("b.jsonl", GOOD.replace(b"user", b"bot"), "  b.jsonl:1: messages[0].role: unknown role 'bot'; known are"),
    ("b.jsonl", GOOD + line("q", "a").replace(b'"user"', b'"assistant"'), f"  b.jsonl:2: messages[0].role: {FIRST}"),
    (
        "b.jsonl",
        GOOD.replace(b'"a"', b"7"),
        "  b.jsonl:1: messages[1].content: must be text or a list of parts, but is",
    ),
    (
        "b.jsonl",
        GOOD + GOOD.replace(b'"a"', b'"a\\ud83d"'),
        "  b.jsonl:2: row: invalid JSON at column 76: holds half of a surrogate pair: no low surrogate in string",
    ),
    (
        "b.jsonl",
        GOOD.replace(b'"q"', b"[" * 400 + b"]" * 400),
        "  b.jsonl:1: messages[0].content[0]: must be text or an",
    ),
    (
        "b.jsonl",
        GOOD.replace(b'"q"', b'"q","x":' + b"[" * 400 + b"]" * 400),
        "  b.jsonl:1: messages: cannot be written as JSON: Recursion limit reached",
    ),
    ("b.csv", b"question,answer\nq,a\nq\n", "  b.csv:3: answer: is missing; the row has 'question'"),
    ("b.jsonl.gz", gzip.compress(GOOD * 999)[:-20], "error: b.jsonl.gz: cannot be read: Compressed file ended before"),
    ("b.parquet", b"PAR1", "error: b.parquet: not a readable Parquet file: "),
    ("b.rst", b"x", "error: b.rst: unknown kind of file"),
    ("b.txt", b"x", "  b.txt:1: headings: the document has none, so there is nothing to ask for its text"),
    ("b.md", b"# A\na\n#\nx", "  b.md:3: headings: the heading is empty, so there is nothing to ask for its text"),
    ("b.md", b"# A\n\n\xff", "  b.md:3: row: invalid UTF-8 at byte 6 of the document"),
    ("b.md", b"# A\n## B\n", "error: b.md holds headings but no text under any of them"),
]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_input_says_where_and_writes_nothing(
    tt: Tt, tmp_path: Path, name: str, content: bytes, message: str, old: bool
) -> None:
    before = {name: content} | ({"out.jsonl": OLD, "out.val.jsonl": OLD} if old else {})
    for path, kept in before.items():
        (tmp_path / path).write_bytes(kept)
    found = tt("prepare", "--dataset", name, "--output", "out.jsonl", "--val-fraction", 0.5)
    assert (found.code, found.out) == (1, "")
    assert any(said.startswith(message) for said in found.err.splitlines()), found.err
    assert "Traceback" not in found.err
    assert "unexpected" not in found.err.replace("unexpected character", "")
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "a/b/c.csv"])
def test_a_missing_file(tt: Tt, tmp_path: Path, name: str) -> None:
    found = tt("prepare", "--dataset", name)
    assert (found.code, found.err) == (
        1, f"error: no such file or folder: {name}\n  → check the path; `ls` shows what is there\n"
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_directory(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(QA)
    (tmp_path / "out").mkdir()
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "out")
    assert found.code == 1
    assert found.err.startswith("error: out is a directory, not a file\n  → name a file, for example out/")
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "in.jsonl/out.jsonl")
    assert (found.code, found.err.splitlines()[0]) == (
        1,
        "error: in.jsonl is a file, so in.jsonl/out.jsonl cannot be written",
    )
    assert files_in(tmp_path) == {"in.jsonl": QA}


@pytest.mark.parametrize("bad", [1, 10, 12])
def test_the_first_ten_bad_rows_and_how_many_in_all(tt: Tt, tmp_path: Path, bad: int) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"".join(QA + b"{}\n" for _ in range(bad)))
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl")
    rows = "1 row was" if bad == 1 else f"{bad} rows were"
    reason = "messages: is missing; the row has no fields"
    assert found.err.splitlines()[2:] == [
        f"rows in: {2 * bad} = {bad} kept + {bad} refused; nothing is written",
        f"error: {rows} refused:",
        *(f"  in.jsonl:{2 * i}: {reason}" for i in range(1, min(bad, 10) + 1)),
        *(["  … and 2 more"] if bad == 12 else []),
        "  → mend them, or add --skip-bad to leave bad rows out",
    ]


def test_skip_bad_writes_every_refused_row_with_its_reason(tt: Tt, tmp_path: Path) -> None:
    deep = b"[" * 600 + b"]" * 600
    bad = [b'{"text":"x"}\n', b'{"messages": oops}\n', b'{"messages":"\xff"}\n', b'{"messages":%s}\n' % deep]
    (tmp_path / "in.jsonl").write_bytes(QA + b"".join(row + QA for row in bad))
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl", "--skip-bad")
    assert found.code == 0
    assert found.err.splitlines()[-3:-1] == [
        "rows in: 9 = 5 kept + 4 refused", "refused rows, each with its reason: out.jsonl.rejects.jsonl"
    ]  # fmt: skip
    assert (tmp_path / "out.jsonl").read_bytes() == QA * 5
    rejects = [orjson.loads(row) for row in (tmp_path / "out.jsonl.rejects.jsonl").read_bytes().splitlines()]
    assert rejects[:3] == [
        {"place": "in.jsonl:2", "field": "messages", "reason": "is missing; the row has 'text'", "row": {"text": "x"}},
        {
            "place": "in.jsonl:4", "field": "row", "row": '{"messages": oops}',
            "reason": "invalid JSON at column 14: unexpected character, expected a JSON value",
        },
        {
            "place": "in.jsonl:6", "field": "row", "row": '{"messages":"\ufffd"}',
            "reason": "invalid UTF-8 at byte 14 of the row",
        },
    ]  # fmt: skip
    assert [rejects[3][name] for name in ("place", "field")] == ["in.jsonl:8", "messages[0]"]
    assert rejects[3]["row"].startswith("not shown: ")


def test_what_a_broken_array_loses_is_said(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_bytes(b"[" + GOOD.strip() + b",\n{oops}, " + GOOD.strip() + b"]")
    found = tt("prepare", "--dataset", "in.json", "--output", "out.jsonl", "--skip-bad")
    assert (found.code, (tmp_path / "out.jsonl").read_bytes()) == (0, GOOD)
    assert "note: in.json:2: the rest of this file could not be read" in found.err


def test_a_folder_is_not_fed_its_own_output(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD + b"{}\n")
    for _ in range(2):
        found = tt("prepare", "--dataset", ".", "--output", "out.jsonl", "--skip-bad")
        assert "rows in: 2 = 1 kept + 1 refused" in found.err


def test_an_old_held_out_part_is_pointed_out(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(pairs(10))
    assert tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl", "--val-fraction", 0.2).code == 0
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl")
    assert "note: out.val.jsonl is from an earlier run: it may hold rows that are now trained on" in found.err


def test_a_failure_leaves_no_folder(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"{}\n")
    assert tt("prepare", "--dataset", "in.jsonl", "--output", "new/folder/out.jsonl").code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_run_without_refusals_leaves_no_old_rejects(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(QA)
    (tmp_path / "out.jsonl.rejects.jsonl").write_bytes(OLD)
    assert tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl", "--skip-bad").code == 0
    assert files_in(tmp_path) == {"in.jsonl": QA, "out.jsonl": QA}


def test_skip_bad_with_no_good_row(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"{}\n" * 2)
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl", "--skip-bad", "--format", "messages")
    assert (found.code, files_in(tmp_path)) == (1, {"in.jsonl": b"{}\n" * 2})
    assert "error: no row of in.jsonl could be used: rows in: 2 = 0 kept + 2 refused\n" in found.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepare")


def options_for(source: Path, output: Path, **changes: Any) -> PrepareOptions:
    plain: dict[str, Any] = {
        "split": "train", "config_name": None, "max_examples": None, "format": "auto", "prompt_column": None,
        "completion_column": None, "system": None, "val_fraction": 0.0, "shuffle": False, "seed": 0, "dedupe": False,
        "skip_bad": False, "preview": 0, "base_model": None, "renderer": AUTO_RENDERER,
    }  # fmt: skip
    return PrepareOptions(dataset=str(source), output=output, **(plain | changes))


@given(
    rows=st.lists(st.none() | st.integers(0, 12), min_size=1, max_size=40),
    maximum=st.none() | st.integers(1, 45),
    fraction=st.sampled_from([0.0, 0.01, 0.3, 0.99]),
    shuffle=st.booleans(),
    dedupe=st.booleans(),
    seed=st.integers(-5, 2**70),
)
def test_no_row_is_lost_and_equal_ones_stay_on_one_side(
    folder: Path, rows: list[int | None], maximum: int | None, fraction: float, shuffle: bool, dedupe: bool, seed: int
) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_bytes(pairs(1) + b"".join(b"{}\n" if row is None else pairs(1, row) for row in rows))
    good = [b"%d" % row for row in [0, *rows] if row is not None]
    good = list(dict.fromkeys(good)) if dedupe else good
    options = options_for(
        source, output, max_examples=maximum, val_fraction=fraction, shuffle=shuffle, dedupe=dedupe, seed=seed,
        skip_bad=True,
    )  # fmt: skip

    def run() -> tuple[Any, dict[str, bytes]]:
        counts = prepare(options)
        return counts, {name: content for name, content in files_in(folder).items() if name != "in.jsonl"}

    try:
        counts, written = run()
    except DataError as error:
        assume("at least two different conversations" not in error.message)
        raise
    sides = [re.findall(rb'"q(\d+)"', written.get(name, b"")) for name in ("out.jsonl", "out.val.jsonl")]
    assert [len(side) for side in sides] == [counts.kept - counts.held_out, counts.held_out]
    assert counts.rows_in == counts.kept + counts.refused + counts.duplicates + counts.left_out
    assert written.get("out.jsonl.rejects.jsonl", b"").count(b"\n") == counts.refused
    assert not set(sides[0]) & set(sides[1])
    assert all(sides) == (fraction > 0)
    together = Counter(sides[0] + sides[1])
    assert not together - Counter(good)
    assert together.total() == min(len(good), maximum or len(good))
    if not shuffle and not fraction:
        assert sides[0] == good[:maximum]
    if not shuffle:
        assert sides[0] == [row for row in good[:maximum] if row in set(sides[0])]
    assert run() == (counts, written)


def test_the_seed_decides_the_order_and_the_held_out_part(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(pairs(200))
    orders, held_out = set(), set()
    for seed in range(5):
        options = options_for(tmp_path / "in.jsonl", tmp_path / "out.jsonl", shuffle=True, val_fraction=0.1, seed=seed)
        counts = prepare(options)
        assert (counts.kept, counts.held_out) == (200, 20)
        orders.add((tmp_path / "out.jsonl").read_bytes())
        held_out.add(frozenset((tmp_path / "out.val.jsonl").read_bytes().splitlines()))
    assert len(orders) == len(held_out) == 5


def test_equal_conversations_cannot_be_split(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(QA * 3)
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl", "--val-fraction", 0.5)
    assert (found.code, files_in(tmp_path)) == (1, {"in.jsonl": QA * 3})
    assert "error: --val-fraction needs at least two different conversations\n" in found.err


class FullDisk(io.FileIO):
    """A file on a disk that has no space left."""

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_at_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", buffering: int = -1, **rest: Any) -> Any:
        return io.BufferedWriter(FullDisk(path, "w")) if mode == "wb" else real(path, mode, buffering, **rest)

    monkeypatch.setattr(Path, "open", full)


def no_space_at_fsync(monkeypatch: pytest.MonkeyPatch, good: int = 0) -> None:
    real, calls = os.fsync, iter(range(99))

    def full(descriptor: int) -> None:
        if next(calls) >= good:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        (no_space_at_write, []),
        (no_space_at_write, ["--shuffle"]),
        (no_space_at_write, ["--skip-bad", "--val-fraction", 0.5]),
        (no_space_at_fsync, []),
        (no_space_at_fsync, ["--skip-bad", "--val-fraction", 0.5]),
        (lambda patch: no_space_at_fsync(patch, good=2), ["--skip-bad", "--val-fraction", 0.5]),
    ],
)
def test_no_space(
    tt: Tt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None], options: list[object]
) -> None:
    before = {"in.jsonl": pairs(50), "out.jsonl": OLD, "out.val.jsonl": OLD, "out.jsonl.rejects.jsonl": OLD}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with monkeypatch.context() as patch:
        fault(patch)
        found = tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl", *options)
    assert (found.code, found.out) == (1, "")
    assert found.err.splitlines()[-2:] == [
        "error: the disk is full: out.jsonl could not be written",
        "  → free some space, then run the same command again",
    ]
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("options", [[], ["--shuffle"], ["--val-fraction", 0.5]], ids=str)
def test_a_disk_that_fills_up(tt: Tt, tmp_path: Path, small_disk: Path, options: list[object]) -> None:
    (tmp_path / "in.jsonl").write_bytes(pairs(20_000))
    (small_disk / "out.jsonl").write_bytes(OLD)
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "disk/out.jsonl", *options)
    assert (found.code, found.out) == (1, "")
    assert "error: the disk is full: disk/out.jsonl could not be written\n" in found.err
    assert files_in(small_disk) == {"out.jsonl": OLD}


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("options", [[], ["--shuffle", "--skip-bad"]], ids=str)
def test_ctrl_c(tmp_path: Path, environment: dict[str, str], options: list[str]) -> None:
    (tmp_path / "out.jsonl").write_bytes(OLD)
    command = [sys.executable, "-c", CHILD, "prepare", "--dataset", "-", "--output", "out.jsonl", *options]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=-1, stdout=-1, stderr=-1) as child:
        assert child.stdin and child.stdout and child.stderr
        # A pipe holds far less than this: when the write is over, the rows are being read.
        child.stdin.write(pairs(60_000))
        child.stdin.flush()
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130
        talk = child.stderr.read().decode()
        assert child.stdout.read() == b""
    assert "error: stopped; nothing was written\n  → run the same command again to start over\n" in talk
    assert "Traceback" not in talk
    assert files_in(tmp_path) == {"out.jsonl": OLD}


LAYOUTS = {
    "jsonl": (b"", b"\n", b"", ".jsonl"),
    "array on one line": (b"[", b",", b"]", ".json"),
    "array over lines": (b"[\n", b",\n", b"\n]", ".json"),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the peak of memory")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_does_not_grow_with_the_input(tmp_path: Path, environment: dict[str, str], layout: str) -> None:
    opening, between, closing, suffix = LAYOUTS[layout]
    row = orjson.dumps({"question": "q" * 300, "answer": "é" * 350})

    def peak(rows: int) -> int:
        """Peak of memory, in MB, to prepare so many rows of about 1 KB."""
        path = tmp_path / f"in{suffix}"
        with path.open("wb") as file:
            file.write(opening)
            for _ in range(rows // 100 - 1):
                file.write((row + between) * 100)
            file.write((row + between) * 99 + row + closing)
        command = [sys.executable, "-c", CHILD, "prepare", "--dataset", path.name, "--output", "out.jsonl"]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert f"rows in: {rows:,} = {rows:,} kept + 0 refused" in found.stderr
        return int(re.findall(r"VmHWM:\s+(\d+) kB", found.stderr)[0]) // 1024

    assert peak(62_000) - peak(6_200) <= 8


def test_gsm8k(tt: Tt, tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "gsm8k_train.jsonl"
    found = tt("prepare", "--dataset", source, "--output", "out.jsonl")
    assert "format: pairs: 'question' asks, 'answer' answers" in found.err.splitlines()
    assert "rows in: 7,473 = 7,473 kept + 0 refused" in found.err.splitlines()
    rows = map(orjson.loads, source.read_bytes().splitlines())
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(line(row["question"], row["answer"]) for row in rows)


def test_sharegpt_conversations(tt: Tt, tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "sharegpt_dummy_conversation.json"
    found = tt("prepare", "--dataset", source, "--output", "out.jsonl")
    assert "rows in: 500 = 500 kept + 0 refused" in found.err.splitlines()
    role = {"human": "user", "gpt": "assistant"}
    for row, written in zip(orjson.loads(source.read_bytes()), (tmp_path / "out.jsonl").open("rb"), strict=True):
        expected = [{"role": role[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        assert orjson.loads(written) == {"messages": expected}


def test_tool_calls(tt: Tt, tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "glaive_toolcall_en_demo.json"
    found = tt("prepare", "--dataset", source, "--output", "out.jsonl")
    assert (found.code, found.out) == (0, "out.jsonl\n")
    assert "rows in: 300 = 300 kept + 0 refused" in found.err.splitlines()
    role = {"human": "user", "gpt": "assistant", "observation": "tool"}
    for row, written in zip(orjson.loads(source.read_bytes()), (tmp_path / "out.jsonl").open("rb"), strict=True):
        messages = []
        for turn in row["conversations"]:
            message = {"role": role.get(turn["from"]), "content": turn["value"]}
            if turn["from"] == "function_call":
                call = orjson.loads(turn["value"])
                call["arguments"] = orjson.dumps(call["arguments"]).decode()
                message = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
            messages.append(message)
        tools = [{"type": "function", "function": tool} for tool in orjson.loads(row["tools"])]
        assert written == orjson.dumps({"messages": messages} | ({"tools": tools} if tools else {})) + b"\n"
    # What was written is in normal form: it reads as it is.
    again = tt("prepare", "--dataset", "out.jsonl", "--output", "again.jsonl")
    assert again.code == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


CONVERSATIONS_AS_THEY_COME = b"""\
{"tools":[{"name":"f","parameters":{"type":"object"}}],"messages":[{"role":"developer","content":"d"},\
{"role":"user","content":[{"type":"text","text":"a"},{"type":"input_text","text":"b"}]},\
{"role":"assistant","content":null,"reasoning":"r","tool_calls":[{"id":"1","function":{"name":"f","arguments":{"x":1}}}]},\
{"role":"tool","tool_call_id":"1","content":{"y":null}},{"role":"assistant","content":"c","tool_calls":null,"weight":0.5}]}
{"messages":[{"role":"user","content":["see",{"type":"image_url","image_url":{"url":"u"}}]},\
{"role":"assistant","content":[{"type":"thinking","thinking":"r"},{"type":"text","text":"a"}]}],"metadata":{"id":7}}
"""
CONVERSATIONS_WRITTEN = b"""\
{"messages":[{"role":"developer","content":"d"},{"role":"user","content":"ab"},\
{"role":"assistant","content":"","reasoning_content":"r",\
"tool_calls":[{"type":"function","id":"1","function":{"name":"f","arguments":"{\\"x\\":1}"}}]},\
{"role":"tool","tool_call_id":"1","content":"{\\"y\\":null}"},{"role":"assistant","content":"c","weight":0.5}],\
"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]}
{"messages":[{"role":"user","content":[{"type":"text","text":"see"},{"type":"image_url","image_url":{"url":"u"}}]},\
{"role":"assistant","content":"a","reasoning_content":"r"}],"metadata":{"id":7}}
"""


def test_conversations_as_they_come(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(CONVERSATIONS_AS_THEY_COME)
    found = tt("prepare", "--dataset", "in.jsonl", "--output", "out.jsonl")
    assert found.code == 0, found.err
    assert (tmp_path / "out.jsonl").read_bytes() == CONVERSATIONS_WRITTEN
    assert tt("prepare", "--dataset", "out.jsonl", "--output", "again.jsonl").code == 0
    assert (tmp_path / "again.jsonl").read_bytes() == CONVERSATIONS_WRITTEN


def test_a_developer_message_is_a_system_message_to_those_that_have_none(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(CONVERSATIONS_WRITTEN)
    tt("prepare", "--dataset", "in.jsonl", "--system", "Be brief.", "--output", "out.jsonl")
    first, second = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    assert first == CONVERSATIONS_WRITTEN.splitlines(keepends=True)[0]
    system = {"role": "system", "content": "Be brief."}
    expected = orjson.loads(CONVERSATIONS_WRITTEN.splitlines()[1])
    assert orjson.loads(second) == expected | {"messages": [system, *expected["messages"]]}


def test_a_system_message_that_is_no_text(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(QA)
    found = tt("prepare", "--dataset", "in.jsonl", "--system", "\udcff", "--output", "out.jsonl")
    assert (found.code, files_in(tmp_path)) == (2, {"in.jsonl": QA})
    assert "error: --system holds bytes that are not UTF-8\n" in found.err


def test_text_of_python_that_no_file_can_hold(tt: Tt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows: list[dict[str, Any]] = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "aé\ud83d"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    refusal = "org/name[train]:2: completion: holds half of a surrogate pair (\\ud83d at character 3), which is no"
    found = tt("prepare", "--dataset", "org/name", "--output", "out.jsonl")
    assert (found.code, files_in(tmp_path)) == (1, {})
    assert refusal in found.err
    assert "Traceback" not in found.err
    found = tt("prepare", "--dataset", "org/name", "--output", "out.jsonl", "--skip-bad")
    assert (found.code, (tmp_path / "out.jsonl").read_bytes()) == (0, QA)
    reject = orjson.loads((tmp_path / "out.jsonl.rejects.jsonl").read_bytes())
    assert reject["place"] == "org/name[train]:2"
    assert reject["row"] == "not shown: str is not valid UTF-8: surrogates not allowed"


def test_where_a_conversation_comes_from_makes_it_no_other(tt: Tt, tmp_path: Path) -> None:
    rows = [orjson.dumps({**orjson.loads(QA), "metadata": {"id": i}}) + b"\n" for i in range(3)]
    (tmp_path / "in.jsonl").write_bytes(b"".join(rows) + QA + line("q2", "a"))
    found = tt("prepare", "--dataset", "in.jsonl", "--dedupe", "--output", "out.jsonl")
    assert "rows in: 5 = 2 kept + 0 refused + 3 duplicates" in found.err.splitlines()
    assert (tmp_path / "out.jsonl").read_bytes() == rows[0] + line("q2", "a")
    assert tt("prepare", "--dataset", "in.jsonl", "--val-fraction", 0.2, "--output", "split.jsonl").code == 0
    sides = [(tmp_path / name).read_bytes() for name in ("split.jsonl", "split.val.jsonl")]
    assert sorted(side.count(b"\n") for side in sides) == [1, 4]


GUIDE = """\
---
title: Guide
---
# The *guide*

How it works.

## Install

    pip install it

```sh
# not a heading
```

## Use
### From the shell
Run `it`.

### From Python
Import it.
"""


def section(file: str, headings: list[str], text: str) -> bytes:
    """A section as `tt prepare` writes it."""
    conversation = orjson.loads(line(f"Explain: {headings[-1]}", text))
    return orjson.dumps({**conversation, "metadata": {"source": file, "headings": headings}}) + b"\n"


def guide_sections(file: str) -> bytes:
    """What is written of GUIDE."""
    return (
        section(file, ["The guide"], "How it works.")
        + section(file, ["The guide", "Install"], "    pip install it\n\n```sh\n# not a heading\n```")
        + section(file, ["The guide", "Use", "From the shell"], "Run `it`.")
        + section(file, ["The guide", "Use", "From Python"], "Import it.")
    )


@pytest.mark.parametrize("options", [[], ["--format", "sections"]], ids=str)
def test_the_sections_of_a_document(tt: Tt, tmp_path: Path, options: list[object]) -> None:
    (tmp_path / "guide.md").write_text(GUIDE)
    found = tt("prepare", "--dataset", "guide.md", "--output", "out.jsonl", *options)
    assert (found.code, found.out) == (0, "out.jsonl\n")
    assert found.err.splitlines()[-4:] == [
        "format: sections: a heading asks, the text under it answers",
        "sections: 5 in 1 document = 4 with text + 1 without",
        "rows in: 4 = 4 kept + 0 refused",
        "next: tt train --data out.jsonl",
    ]
    assert (tmp_path / "out.jsonl").read_bytes() == guide_sections("guide.md")
    assert tt("prepare", "--dataset", "out.jsonl", "--output", "again.jsonl").code == 0
    assert (tmp_path / "again.jsonl").read_bytes() == guide_sections("guide.md")


@pytest.mark.parametrize("dataset", ["docs", "docs/**/*.*"])
def test_a_folder_of_documents(tt: Tt, tmp_path: Path, dataset: str) -> None:
    (tmp_path / "docs/more").mkdir(parents=True)
    (tmp_path / "docs/guide.md").write_text(GUIDE)
    (tmp_path / "docs/more/notes.txt").write_text("Before.\n\nNotes\n=====\n\nSome text.\n")
    (tmp_path / "docs/rows.jsonl").write_bytes(QA)
    found = tt("prepare", "--dataset", dataset, "--format", "sections", "--output", "out.jsonl")
    assert found.code == 0
    assert found.err.splitlines()[0] == f"note: 1 files in {dataset} are no documents, such as docs/rows.jsonl"
    assert found.err.splitlines()[-4:-1] == [
        "format: sections: a heading asks, the text under it answers",
        "sections: 6 in 2 documents = 5 with text + 1 without; text before the first heading of 1 document is left out",
        "rows in: 5 = 5 kept + 0 refused",
    ]
    notes = section("docs/more/notes.txt", ["Notes"], "Some text.")
    assert (tmp_path / "out.jsonl").read_bytes() == guide_sections("docs/guide.md") + notes
    # Without the option the rows are meant.
    found = tt("prepare", "--dataset", dataset, "--output", "out.jsonl")
    assert "note: 2 files in" in found.err
    assert (tmp_path / "out.jsonl").read_bytes() == QA


def test_sections_go_through_the_same_options(tt: Tt, tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("# A\na\n# B\nb\n")
    (tmp_path / "c.md").write_text("no heading\n")
    said = tt("prepare", "--dataset", "*.md", "--dedupe", "--skip-bad", "--system", "s", "--output", "out.jsonl")
    assert "rows in: 5 = 2 kept + 1 refused + 2 duplicates" in said.err.splitlines()
    for written, name in zip((tmp_path / "out.jsonl").read_bytes().splitlines(), "AB", strict=True):
        expected = orjson.loads(line(f"Explain: {name}", name.lower(), system="s"))
        assert orjson.loads(written) == {**expected, "metadata": {"source": "a.md", "headings": [name]}}
    (reject,) = (tmp_path / "out.jsonl.rejects.jsonl").read_bytes().splitlines()
    assert orjson.loads(reject) == {
        "place": "c.md:1",
        "field": "headings",
        "reason": "the document has none, so there is nothing to ask for its text",
        "row": {"source": "c.md", "headings": [], "text": "no heading"},
    }
    said = tt("prepare", "--dataset", "*.md", "--max-examples", 3, "--output", "out.jsonl")
    assert "rows in: 3 = 3 kept + 0 refused" in said.err.splitlines()
    assert tt("prepare", "--dataset", "[ab].md", "--val-fraction", 0.5, "--output", "out.jsonl").code == 0
    sides = [(tmp_path / name).read_bytes().splitlines() for name in ("out.jsonl", "out.val.jsonl")]
    assert [[orjson.loads(row)["metadata"]["source"] for row in side] for side in sides] == [["a.md", "b.md"]] * 2


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("rows.jsonl", ["--format", "sections"], "rows.jsonl is no document"),
        (".", ["--format", "sections"], "the folder . holds no document"),
        ("*.md", ["--format", "sections"], "no file matches *.md"),
    ],
)
def test_sections_of_what_are_no_documents(
    tt: Tt, tmp_path: Path, dataset: str, options: list[object], message: str
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(QA)
    found = tt("prepare", "--dataset", dataset, "--output", "out.jsonl", *options)
    assert (found.code, found.out, files_in(tmp_path)) == (1, "", {"rows.jsonl": QA})
    assert found.err.splitlines()[0] == f"error: {message}"
    assert found.err.splitlines()[1].startswith("  → ")


def test_columns_do_not_go_with_documents(tt: Tt, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(GUIDE)
    columns = ["--prompt-column", "a", "--completion-column", "b"]
    found = tt("prepare", "--dataset", ".", "--output", "out.jsonl", *columns)
    assert (found.code, found.err.splitlines()[0]) == (1, "error: the folder . holds no data file")
    found = tt("prepare", "--dataset", "a.md", "--format", "sections", *columns)
    assert (found.code, found.err.splitlines()[0]) == (
        2, "error: --prompt-column and --completion-column do not go with --format sections"
    )  # fmt: skip


TOKEN = "hf_thisIsASecretOfTheUser"  # not a real one


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repository = {"data/train.jsonl": pairs(300), "data/test.jsonl": pairs(5, 1000)}
    with Hub({"org/name": repository, "org/broken": {"data/train.jsonl": pairs(3) + b"oops\n"}}) as hub:
        yield hub


def from_hub(hub: Hub, folder: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    own = {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "tinkertools", "prepare", "--output", "out.jsonl", *options]
    found = subprocess.run(command, cwd=folder, env=environment | own, capture_output=True, text=True, check=False)
    assert f"Bearer {TOKEN}" in hub.authorizations
    assert not any(TOKEN in text for text in (found.stdout, found.stderr))
    assert not [name for name, content in files_in(folder).items() if TOKEN.encode() in content]
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param([], range(300), marks=pytest.mark.slow),
        (["--split", "test"], range(1000, 1005)),
        pytest.param(["--max-examples", "2"], range(2), marks=pytest.mark.slow),
    ],
)
def test_a_dataset_on_the_hub(
    hub: Hub, tmp_path: Path, environment: dict[str, str], options: list[str], expected: range
) -> None:
    found = from_hub(hub, tmp_path, environment, "--dataset", "org/name", *options)
    assert (found.returncode, found.stdout) == (0, "out.jsonl\n"), found.stderr
    assert f"rows in: {len(expected)} = {len(expected)} kept + 0 refused" in found.stderr.splitlines()
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(line(f"q{i}", f"a{i}") for i in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "org/missing"], "Dataset 'org/missing' doesn't exist on the Hub or cannot be accessed."),
        (["--dataset", "org/name", "--split", "dev"], "Bad split: dev. Available splits: ['train', 'test']"),
        (["--dataset", "org/name", "--config-name", "c"], "BuilderConfig 'c' not found."),
        pytest.param(["--dataset", "org/broken"], "", marks=pytest.mark.slow),
    ],
)
def test_what_the_hub_does_not_give(
    hub: Hub, tmp_path: Path, environment: dict[str, str], options: list[str], message: str
) -> None:
    (tmp_path / "out.jsonl").write_bytes(OLD)
    found = from_hub(hub, tmp_path, environment, *options)
    assert (found.returncode, found.stdout) == (1, "")
    assert f"error: '{options[1]}' is no file here, and the Hub did not give it: {message}" in found.stderr
    assert "Traceback" not in found.stderr
    assert "  → check the name (and --split and --config-name of tt prepare);" in found.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*out*")} == {"out.jsonl": OLD}
