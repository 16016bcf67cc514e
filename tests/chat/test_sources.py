"""Raw rows and their places: every layout of JSON, JSON Lines, CSV, Parquet, compressed, in folders, from stdin."""

import csv
import gzip
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.chat.sections import SectionCounts
from tinkertools.chat.sources import Malformed, Source, data_suffix, find_source
from tinkertools.config import Format
from tinkertools.errors import DataError, FileError

CHUNK = 1 << 16

space = st.text(" \t\r\n", max_size=4)
text = st.text() | st.sampled_from(["", '"', "\\", "ü\n☃", "\u2028", "\x00", "😀" * 3])
large = st.integers(0, 3 * CHUNK).map(lambda n: "é\\" * (n // 2))
value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
row = st.dictionaries(text, value, max_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def read(path: Path, content: bytes | None = None) -> list[tuple[int, Any]]:
    if content is not None:
        path.write_bytes(content)
    rows = list(find_source(str(path)).rows())
    assert {row.file for row in rows} <= {str(path)}
    return [(row.line, row.value) for row in rows]


@given(data=st.data(), elements=st.lists(value | large, max_size=6))
def test_an_array_in_any_layout_is_what_json_loads_says(folder: Path, data: st.DataObject, elements: list[Any]) -> None:
    written, lines = data.draw(space) + "[" + data.draw(space), []
    for i, element in enumerate(elements):
        written += data.draw(space) + ("," if i else "") + data.draw(space)
        lines.append(1 + written.count("\n"))
        written += json.dumps(
            element, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 2]))
        )
    written += data.draw(space) + "]" + data.draw(space)
    bom = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    assert json.loads(written) == elements
    assert read(folder / "array.json", bom + written.encode()) == list(zip(lines, elements, strict=True))


@pytest.mark.parametrize("before", range(CHUNK - 64, CHUNK + 2, 3))
def test_a_chunk_may_end_anywhere(folder: Path, before: int) -> None:
    elements = [-1.5e10, True, None, "\U0001f600é", {"a\\": [1234567890, 0.25]}]
    written = "[" + " " * before + '-1.5e+10,true ,null,"\\ud83d\\ude00é",{"a\\\\":[1234567890,2.5E-1]}]'
    assert [value for _, value in read(folder / "chunk.json", written.encode())] == elements


@given(data=st.data(), rows=st.lists(row, min_size=1, max_size=6))
def test_json_lines_with_blank_lines(folder: Path, data: st.DataObject, rows: list[Any]) -> None:
    written, lines = data.draw(st.sampled_from(["", "\ufeff"])), []
    for element in rows:
        written += data.draw(st.text(" \t\n", max_size=3)).replace(" ", " \n")
        lines.append(1 + written.count("\n"))
        written += json.dumps(element, ensure_ascii=data.draw(st.booleans())) + data.draw(
            st.sampled_from(["\n", "\r\n"])
        )
    written += data.draw(st.sampled_from(["", "\n \n", " "]))
    if data.draw(st.booleans()):
        written = written.removesuffix("\n")
    assert read(folder / "lines.jsonl", written.encode()) == list(zip(lines, rows, strict=True))


@given(rows=st.lists(row, min_size=1, max_size=4), between=st.sampled_from(["\n", "\n\n", ",\n"]))
def test_objects_spread_over_lines(folder: Path, rows: list[Any], between: str) -> None:
    rows = [{"first": 1, **row} for row in rows]
    written = [json.dumps(row, indent=1) for row in rows]
    lines = [1 + between.join([*written[:i], ""]).count("\n") for i in range(len(rows))]
    assert read(folder / "spread.json", between.join(written).encode()) == list(zip(lines, rows, strict=True))


GOOD = {"a": 1}
NOT_READ = "; the rest of the file is not read"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a":1}\n{"a":1}\n{"a":\n{"a":1}\n', [(1, GOOD), (2, GOOD), (3, "invalid JSON at column 6"), (4, GOOD)]),
        (b'{"a":1,}\n{"a":1}\n', [(1, "invalid JSON at column 7"), (2, GOOD)]),
        (b'{"a":\n{"a":1}\n', [(1, "invalid JSON at column 6"), (2, GOOD)]),
        (b"{'a':1}\n{'a':1}\n", [(1, "invalid JSON at column 2"), (2, "invalid JSON at column 2")]),
        (b'{"a":1}\n{"a":"\xff"}\n{"a":1}', [(1, GOOD), (2, "invalid UTF-8 at byte 7 of the row"), (3, GOOD)]),
        (b'{"a":"\xc3"}\n', [(1, "invalid UTF-8 at byte 7 of the row")]),
        (b'{"a":"\\ud800"}\n{"a":1}\n', [(1, "invalid JSON at column 7"), (2, GOOD)]),
        (b"hello\n", [(1, "invalid JSON at column 1")]),
        ('{"a":1}'.encode("utf-16"), [(1, "invalid UTF-8 at byte 1 of the row")]),
        (b'[{"a":1}\n,{"a":\n]', [(1, GOOD), (3, f"invalid JSON: Expecting value{NOT_READ}")]),
        (b'[{"a":1}\n\n{"a":1}]', [(1, GOOD), (3, f"invalid JSON: a comma is missing{NOT_READ}")]),
        (b'[{"a":1}\n,\n,{"a":1}]', [(1, GOOD), (3, f"invalid JSON: Expecting value{NOT_READ}")]),
        (b'[{"a":1},\n]', [(1, GOOD), (2, f"invalid JSON: Expecting value{NOT_READ}")]),
        (b'[\n{"a":1}\n', [(2, GOOD), (3, f"invalid JSON: the array is not closed{NOT_READ}")]),
        (b'[{"a":1},\n{"a":"cut o', [(1, GOOD), (2, f"invalid JSON: Unterminated string starting at{NOT_READ}")]),
        (
            b'[{"a":1}]\n[{"a":1}]',
            [(1, GOOD), (2, f"invalid JSON: there is more after the end of the array{NOT_READ}")],
        ),
        (b'[{"a":1},\n{"a":"\xff"},\n{"a":1}]', [(1, GOOD), (2, "invalid UTF-8 at byte 7 of the row"), (3, GOOD)]),
        (b'[{"a":1},\n{"a":"\\ud800"},\n{"a":1}]', [(1, GOOD), (2, "invalid JSON at column 7"), (3, GOOD)]),
        (b'[{"a":1},\n{"a":NaN},\n{"a":1}]', [(1, GOOD), (2, "invalid JSON at column 6"), (3, GOOD)]),
        (b'[\n{\n"a":NaN}\n]', [(2, "invalid JSON at line 2 of the row")]),
        (b'[{"a":1},\n' + b"[" * 100_000, [(1, GOOD), (2, "invalid JSON: maximum recursion depth")]),
        (b"", []),
        (b"\n \n\t\n", []),
        (b"\xef\xbb\xbf", []),
        (b"[]", []),
    ],
)
def test_broken_json_has_its_line_and_reason(folder: Path, content: bytes, expected: list[tuple[int, Any]]) -> None:
    found = read(folder / "broken.jsonl", content)
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, value), (_, wanted) in zip(found, expected, strict=True):
        if isinstance(value, Malformed):
            assert value.reason.startswith(wanted)
        else:
            assert value == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'"\\ud83d"', "no low surrogate in string"),
        (b'"\\ud83d\\u0041"', "invalid low surrogate in string"),
        (b'"\\ude00"', "invalid high surrogate in string"),
    ],
)
@pytest.mark.parametrize("layout", [b'{"a":1}\n{"a":%s}\n', b'[{"a":1},\n{"a":%s}]'])
def test_half_of_a_surrogate_pair_in_json(folder: Path, layout: bytes, text: bytes, reason: str) -> None:
    (line, good), (bad_line, bad) = read(folder / "half.json", layout % text)
    assert (line, good, bad_line) == (1, GOOD, 2)
    assert isinstance(bad, Malformed)
    assert bad.reason == f"invalid JSON at column 7: holds half of a surrogate pair: {reason}"


def test_a_broken_array_is_not_read_to_its_end(folder: Path) -> None:
    path = folder / "long.json"
    path.write_bytes(b'[{"a":1},\noops,\n' + b'{"a":1},\n' * 500_000)
    with path.open("rb") as file:
        source = find_source("-")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", SimpleNamespace(buffer=file))
            assert [(row.file, row.line) for row in source.rows()] == [("stdin", 1), ("stdin", 2)]
        assert file.tell() <= 2 * CHUNK


cell = st.text() | st.sampled_from(["", ",", '"', "a\nb", "a\r\nb", "\ufeff", "\t"])


@given(
    table=st.integers(1, 4).flatmap(
        lambda width: st.tuples(
            st.lists(st.text(min_size=1), min_size=width, max_size=width, unique=True),
            st.lists(st.lists(cell, min_size=width, max_size=width), max_size=5),
        )
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    suffix=st.sampled_from([".csv", ".tsv"]),
    blank=st.integers(0, 2),
)
def test_csv_round_trip(
    folder: Path, table: tuple[list[str], list[list[str]]], end: str, suffix: str, blank: int
) -> None:
    columns, rows = table
    file, expected = io.StringIO(newline=""), []
    writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",", lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    for cells in rows:
        file.write(end * blank)
        line = 1 + len(re.findall(r"\r\n|\r|\n", file.getvalue()))
        expected.append((line - blank, dict(zip(columns, cells, strict=True))))
        writer.writerow(cells)
    found = read(folder / f"table{suffix}", file.getvalue().encode())
    assert [row for _, row in found] == [row for _, row in expected]
    assert [line for line, _ in found] == [line + blank for line, _ in expected]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"q,a\nx,y\n", [(2, {"q": "x", "a": "y"})]),
        (b'\xef\xbb\xbfq,a\r\n"x\r\nx",y\r\nz,w', [(2, {"q": "x\r\nx", "a": "y"}), (4, {"q": "z", "a": "w"})]),
        (b"q,a\nx\nx,y\n", [(2, {"q": "x"}), (3, {"q": "x", "a": "y"})]),
        (b"q,a\nx,y,z\n", [(2, Malformed("more fields than the header has columns", "x,y,z"))]),
        (
            b"q,a\nx,y\n\xff,y\nx,y\n",
            [
                (2, {"q": "x", "a": "y"}),
                (3, Malformed("invalid UTF-8: invalid start byte", "\ufffd,y")),
                (4, {"q": "x", "a": "y"}),
            ],
        ),
        (
            b'q,a\n"x"z,y\nx,y\n',
            [(2, Malformed("invalid CSV: ',' expected after '\"'", "")), (3, {"q": "x", "a": "y"})],
        ),
        (
            b'q,a\nx,y\n"x,y\nx,y\n',
            [(2, {"q": "x", "a": "y"}), (3, Malformed("invalid CSV: unexpected end of data", ""))],
        ),
        (b"q,\xff\nx,y\n", [(1, Malformed("invalid UTF-8: invalid start byte", "q,\ufffd"))]),
        (b"q,a\n", []),
        (b"", []),
    ],
)
def test_csv_rows_and_their_lines(folder: Path, content: bytes, expected: list[tuple[int, Any]]) -> None:
    assert read(folder / "table.csv", content) == expected


@pytest.mark.parametrize("zipped", [False, True])
def test_parquet(folder: Path, zipped: bool) -> None:
    rows = [{"messages": [{"role": "user", "content": f"é{i}"}], "n": i, "none": None} for i in range(3000)]
    path = folder / ("rows.parquet.gz" if zipped else "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=700)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path) == list(enumerate(rows, 1))


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSON", "a.csv", "a.tsv"])
def test_gzip(folder: Path, name: str) -> None:
    content = {"csv": b"q,a\nx,y\n", "tsv": b"q\ta\nx\ty\n"}.get(name[-3:], b'\n{"q":"x","a":"y"}\n')
    assert read(folder / f"{name}.gz", gzip.compress(content)) == [(2, {"q": "x", "a": "y"})]


ZIPPED = gzip.compress(b'{"a":1}\n' * 2000 + json.dumps(list(range(2000))).encode())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b'{"a":1}\n', "cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", ZIPPED[:-100], "cannot be read: Compressed file ended"),
        ("a.jsonl.gz", ZIPPED[:60] + b"\xff" * 40 + ZIPPED[100:], "cannot be read: "),
        ("a.jsonl.gz", ZIPPED[:-8] + bytes(8), "cannot be read: CRC check failed"),
        ("a.parquet", b"PAR1 and no more", "not a readable Parquet file: "),
        ("a.parquet", b"", "not a readable Parquet file: "),
        ("a.xlsx", b"", "unknown kind of file"),
    ],
)
def test_a_damaged_file(folder: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(folder / name))}: {message}"):
        read(folder / name, content)


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    for name, content in {
        "b.jsonl": b'{"n":2}\n{"n":3}\n', "a.csv": b"n\n1\n", "inner/c.json.gz": gzip.compress(b'[{"n":4}]'),
        "notes.txt": b"", ".hidden.jsonl": b"{",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = find_source(str(tmp_path))
    found = [(Path(row.file).relative_to(tmp_path).as_posix(), row.line, row.value) for row in source.rows()]
    assert found == [
        ("a.csv", 2, {"n": "1"}),
        ("b.jsonl", 1, {"n": 2}),
        ("b.jsonl", 2, {"n": 3}),
        ("inner/c.json.gz", 1, {"n": 4}),
    ]
    assert source.ignored == [tmp_path / "notes.txt"]
    assert source.bytes_read == source.bytes_total == sum(path.stat().st_size for path in source.files)
    assert len(list(source.rows())) == 4


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data file"):
        find_source(str(tmp_path))


TREE = [
    "a.md", "b.MARKDOWN", "c.txt", "d.rst", "inner/e.md", "inner/.hidden.md", ".git/f.md", "inner/.venv/g.txt",
    "out.txt", "notes.md.gz",
]  # fmt: skip
DOCUMENTS = ["a.md", "b.MARKDOWN", "c.txt", "inner/e.md"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of documents, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in TREE:
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n\ntext\n")
    return tmp_path / "docs"


def names(paths: list[Path], folder: Path) -> list[str]:
    return [path.resolve().relative_to(folder).as_posix() for path in paths]


@pytest.mark.parametrize("format", ["auto", "sections"])
@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("docs", DOCUMENTS),
        ("docs/a.md", ["a.md"]),
        ("docs/b.MARKDOWN", ["b.MARKDOWN"]),
        ("docs/*.md", ["a.md"]),
        ("docs/**/*.md", ["a.md", "inner/e.md"]),
        ("docs/**/*.md*", ["a.md", "inner/e.md"]),
        ("docs/[ab].*", ["a.md", "b.MARKDOWN"]),
        ("docs/.git/*", [".git/f.md"]),
        ("docs/*", ["a.md", "b.MARKDOWN", "c.txt"]),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_documents(tree: Path, format: Format, dataset: str, expected: list[str], absolute: bool) -> None:
    dataset = str(tree.parent / dataset) if absolute else dataset
    source = find_source(dataset, format=format, leave_out=[tree / "out.txt"])
    assert (source.name, source.documents, names(source.files, tree)) == (dataset, True, expected)
    found = [(row.file, row.line, row.value) for row in source.rows()]
    assert found == [
        (str(path), 1, {"source": str(path), "headings": [name], "text": "text"})
        for path, name in zip(source.files, expected, strict=True)
    ]
    assert source.bytes_read == source.bytes_total


def test_documents_that_are_not_read_are_told(tree: Path) -> None:
    assert names(find_source("docs").ignored, tree) == ["d.rst", "notes.md.gz"]
    assert names(find_source("docs/*").ignored, tree) == ["d.rst", "notes.md.gz"]


@pytest.mark.parametrize("dataset", ["docs", "docs/**"])
def test_data_files_come_first_where_nothing_else_is_asked_for(tree: Path, dataset: str) -> None:
    (tree / "inner/x.jsonl").write_bytes(b'{"a":1}\n')
    (tree / "a.json").write_bytes(b"[]")
    for format in ("auto", "messages"):
        source = find_source(dataset, format=format)
        assert (source.documents, names(source.files, tree)) == (False, ["a.json", "inner/x.jsonl"])
        assert set(DOCUMENTS) < set(names(source.ignored, tree))
    source = find_source(dataset, format="sections")
    assert (source.documents, names(source.files, tree)) == (True, sorted([*DOCUMENTS, "out.txt"]))
    assert names(source.ignored, tree) == ["a.json", "d.rst", "inner/x.jsonl", "notes.md.gz"]


@pytest.mark.parametrize(
    ("dataset", "format", "message"),
    [
        ("docs/d.rst", "sections", "docs/d.rst is no document"),
        ("a.jsonl", "sections", "a.jsonl is no document"),
        ("data", "sections", "the folder data holds no document"),
        ("*.jsonl", "sections", "*.jsonl matches no document"),
        ("org/name", "sections", "no such file or folder: org/name"),
        ("missing.md", "auto", "no such file or folder: missing.md"),
        ("missing.markdown", "auto", "no such file or folder: missing.markdown"),
        ("docs", "messages", "the folder docs holds no data file"),
        ("docs/*.md", "messages", "docs/*.md matches no data file"),
        ("docs/*.pdf", "auto", "no file matches docs/*.pdf"),
        ("docs/inn*", "auto", "no file matches docs/inn*"),
    ],
)
def test_documents_that_are_not_there(tree: Path, dataset: str, format: Format, message: str) -> None:
    (tree.parent / "a.jsonl").write_bytes(b'{"a":1}\n')
    (tree.parent / "data").mkdir()
    (tree.parent / "data/a.jsonl").write_bytes(b'{"a":1}\n')
    with pytest.raises(DataError) as stopped:
        find_source(dataset, format=format)
    assert stopped.value.message == message
    assert stopped.value.hint
    if "no document" in message:
        assert stopped.value.hint == "--format sections reads .md, .markdown, .txt; leave --format out for data files"


def test_a_name_with_the_signs_of_a_pattern_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a[1].jsonl").write_bytes(b'{"n":1}\n')
    Path("a1.jsonl").write_bytes(b'{"n":2}\n')
    assert [row.value for row in find_source("a[1].jsonl").rows()] == [{"n": 1}]
    assert [row.value for row in find_source("a[!2].jsonl").rows()] == [{"n": 2}]


def document(path: Path, content: bytes) -> Source:
    path.write_bytes(content)
    return find_source(str(path))


def test_sections_are_counted_as_they_are_read(folder: Path) -> None:
    source = document(folder / "a.md", b"\xef\xbb\xbfbefore\n# A\n## B\nb\n## C\n\n## D\nd\n")
    for _ in range(2):
        found = [(row.line, row.value["headings"], row.value["text"]) for row in source.rows()]
        assert found == [(3, ["A", "B"], "b"), (7, ["A", "D"], "d")]
        assert source.sections == SectionCounts(documents=1, sections=4, empty=2, leading=1)
    next(source.rows())
    assert source.sections == SectionCounts(documents=1, sections=2, empty=1, leading=1)


@pytest.mark.parametrize("content", [b"", b"\n", b"just\ntext", b"> # quoted"])
def test_a_document_without_headings(folder: Path, content: bytes) -> None:
    path = folder / "a.txt"
    source = document(path, content)
    expected = {"source": str(path), "headings": [], "text": content.decode().strip()}
    assert [(row.line, row.value) for row in source.rows()] == [(1, expected)]
    assert source.sections == SectionCounts(documents=1)


@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [(b"# A\n\nb\xe9\n", 3, 7), (b"\xef\xbb\xbf# A\n\xff", 2, 8), ("# A".encode("utf-16"), 1, 1)],
)
def test_a_document_in_another_encoding(folder: Path, content: bytes, line: int, byte: int) -> None:
    shown = content.decode(errors="replace")
    expected = Malformed(f"invalid UTF-8 at byte {byte} of the document", shown)
    assert [(row.line, row.value) for row in document(folder / "a.md", content).rows()] == [(line, expected)]


def test_a_document_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"# A\n\ntext\n")))
    (row,) = find_source("-", format="sections").rows()
    assert row == ("stdin", 1, {"source": "stdin", "headings": ["A"], "text": "text"})


@pytest.mark.skipif(os.name != "posix", reason="names are bytes there")
def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.md")
    try:
        Path(name).write_bytes(b"# A\n\ntext\n")
    except OSError:
        pytest.skip("this file system takes only text")
    (row,) = find_source(str(tmp_path)).rows()
    assert row.file == row.value["source"] == f"{tmp_path}/\ufffd.md"


@pytest.mark.parametrize(
    "name",
    ["missing.jsonl", "missing.json.gz", "missing.txt", "./missing", "a/b/c", "/missing", "org/name.csv", "a b", ""],
)
def test_what_is_neither_here_nor_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=re.escape(f"no such file or folder: {name}") if name else "holds no data file"):
        find_source(name)


@pytest.mark.parametrize("name", ["gsm8k", "openai/gsm8k", "HuggingFaceH4/ultrachat_200k", "org/name-1.5"])
def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    source = find_source(name, split="test", config_name="main")
    assert (source.name, source.files, source.hub_split, source.hub_config) == (name, [], "test", "main")


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n')
    source = find_source(str(path))
    path.unlink()
    with pytest.raises(FileError, match=f"not found: {re.escape(str(path))}"):
        list(source.rows())


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.JSONL.gz", ".jsonl"), ("a.b.csv", ".csv"), ("a.parquet", ".parquet"), ("a.gz", None), ("jsonl", None)],
)
def test_data_suffix(name: str, suffix: str | None) -> None:
    assert data_suffix(Path(name)) == suffix
