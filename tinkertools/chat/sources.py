"""Raw rows from files, a folder, stdin or the Hugging Face Hub, each with its place, in bounded memory."""

import codecs
import csv
import glob
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import orjson

from tinkertools.chat.sections import SUFFIXES as DOCUMENT_SUFFIXES
from tinkertools.chat.sections import SectionCounts, split_document
from tinkertools.config import Format, PrepareDefaults
from tinkertools.errors import DataError
from tinkertools.files import explain_os_errors

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_BUFFER = 1 << 20
_CHUNK = 1 << 16
_BOM = b"\xef\xbb\xbf"
# How an array goes on, by what is before and the next character. Before is "" at the start, "element" or a mark in the
# array, "value" among values that are in no array, between which commas are let pass.
_ARRAY_MARKS = {
    ("", "["): "[",
    ("element", ","): ",",
    ("[", "]"): "]",
    ("element", "]"): "]",
    ("value", ","): "value",
}
# Short names of datasets on the Hub that recipes use.
HUB_DATASETS = {"no_robots": "HuggingFaceH4/no_robots", "tulu3": "allenai/tulu-3-sft-mixture"}
# Longer than any JSON word, escape or number's tail that the end of a chunk may cut.
_LONGEST_WORD = 32


class DocumentKinds(NamedTuple):
    """What counts as a document, by the suffixes of names, and what to type where there is none."""

    suffixes: Sequence[str]
    hint: str

    def include(self, name: str) -> bool:
        """Whether a file is a document by its name."""
        return name.lower().endswith(tuple(self.suffixes))


SECTIONED = DocumentKinds(
    DOCUMENT_SUFFIXES, f"--format sections reads {', '.join(DOCUMENT_SUFFIXES)}; leave --format out for data files"
)


class Malformed(NamedTuple):
    """What stands where a row should be: why, how it begins, and whether the rest of the file is lost with it."""

    reason: str
    text: str
    ends_file: bool = False


class RawRow(NamedTuple):
    """A row as it was found. `line` counts from 1 (in Parquet files and on the Hub: the row)."""

    file: str
    line: int
    value: Any


@dataclass
class Source:
    """Where rows come from. `rows` may be read once for stdin, any number of times otherwise.

    The rows of `documents` are their sections, which are counted as they are read. Where rows are `given`, those
    are all.
    """

    name: str
    files: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    documents: bool = False
    sections: SectionCounts = field(default_factory=SectionCounts)
    hub_split: str = PrepareDefaults.split
    hub_config: str | None = None
    bytes_read: int = 0
    given: Sequence[RawRow] | None = None

    @property
    def bytes_total(self) -> int | None:
        """Size of the input in bytes as stored, where it is known."""
        return sum(path.stat().st_size for path in self.files) if self.files else None

    def rows(self) -> Iterator[RawRow]:
        """Each row with its place, `Malformed` in place of those that could not be read.

        Raises:
            DataError: the Hub has no such dataset, or a file cannot be read at all.
            FileError: the file system refused.
        """
        self.sections = SectionCounts()
        if self.given is not None:
            yield from self.given
        elif self.name == "-":
            stdin = sys.stdin.buffer
            pairs = _document_rows(stdin.read(), "stdin", self.sections) if self.documents else _json_rows(stdin)
            for line, value in pairs:
                yield RawRow("stdin", line, value)
        elif self.files:
            done = 0
            for path in self.files:
                name = shown_path(path)
                with explain_os_errors(path), path.open("rb", buffering=_BUFFER) as file:
                    if self.documents:
                        pairs = _document_rows(file.read(), name, self.sections)
                    else:
                        pairs = _file_rows(path, file)
                    for line, value in pairs:
                        if line & 4095 == 0:
                            self.bytes_read = done + (0 if file.closed else file.tell())
                        # What RawRow(…) does, without the Python function that it is: this is done for every row.
                        yield tuple.__new__(RawRow, (name, line, value))
                done += path.stat().st_size
                self.bytes_read = done
        else:
            yield from _hub_rows(self.name, self.hub_config, self.hub_split)


def find_source(
    dataset: str,
    *,
    split: str = PrepareDefaults.split,
    config_name: str | None = None,
    leave_out: Collection[Path] = (),
    format: Format = PrepareDefaults.format,
    kinds: DocumentKinds = SECTIONED,
) -> Source:
    """Decide what `dataset` names: `-` (stdin), a file, a folder or a pattern (less `leave_out`), else a Hub dataset.

    Documents are read where `format` is sections, and where it is auto and there are no data files.

    Raises:
        DataError: nothing is there, or nothing that can be read as `format`.
    """
    if dataset == "-":
        return Source("-", documents=format == "sections")
    path = Path(dataset)
    known = {p.resolve() for p in leave_out}
    if path.is_dir():
        inside = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and p.resolve() not in known]
        # Hidden folders, such as .git and .venv, hold texts that are nobody's documents.
        in_sight = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        return _source_of(str(path), f"the folder {path} holds", inside, in_sight, format, kinds)
    if path.exists():
        document = kinds.include(path.name)
        if format == "sections" and not document:
            raise DataError(f"{path} is no document", hint=kinds.hint)
        return Source(str(path), files=[path], documents=document and format in ("auto", "sections"))
    if glob.has_magic(dataset):
        # `Path.glob` takes no absolute patterns.
        found = map(Path, glob.glob(dataset, recursive=True))  # noqa: PTH207
        matches = [p for p in found if p.is_file() and p.resolve() not in known]
        if not matches:
            raise DataError(f"no file matches {dataset}", hint="check the pattern; ** stands for folders in folders")
        return _source_of(dataset, f"{dataset} matches", matches, matches, format, kinds)
    suffixes = (".gz", *kinds.suffixes)
    if data_suffix(path) or path.suffix in suffixes or format == "sections" or not _HUB_NAME.fullmatch(dataset):
        raise DataError(f"no such file or folder: {dataset}", hint="check the path; `ls` shows what is there")
    return Source(HUB_DATASETS.get(dataset, dataset), hub_split=split, hub_config=config_name)


def _source_of(
    name: str, found: str, inside: list[Path], in_sight: list[Path], format: Format, kinds: DocumentKinds
) -> Source:
    """The source that the files `inside` are: the data files among them, or the documents among those `in_sight`."""
    data = sorted(p for p in inside if data_suffix(p))
    documents = sorted(p for p in in_sight if kinds.include(p.name))
    if format == "sections" and not documents:
        raise DataError(f"{found} no document", hint=kinds.hint)
    as_documents = format == "sections" or (format == "auto" and not data and bool(documents))
    files = documents if as_documents else data
    if not files:
        raise DataError(f"{found} no data file", hint=f"it needs one of {', '.join(SUFFIXES)}, or .gz of these")
    taken = set(files)
    ignored = sorted(p for p in (in_sight if as_documents else inside) if p not in taken)
    return Source(name, files=files, ignored=ignored, documents=as_documents)


def data_suffix(path: Path) -> str | None:
    """The suffix that says how to read `path`, `.gz` left out; None where it is not a data file."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _file_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    suffix = data_suffix(path)
    if suffix is None:
        raise DataError(f"{path}: unknown kind of file", hint=f"use one of {', '.join(SUFFIXES)}, or .gz of these")
    zipped = path.name.lower().endswith(".gz")
    plain: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if zipped else file
    pairs: Iterable[tuple[int, Any]]
    if suffix == ".parquet":
        pairs = _parquet_rows(io.BytesIO(plain.read()) if zipped else plain, path)
    elif suffix in (".csv", ".tsv"):
        pairs = _csv_rows(plain, "\t" if suffix == ".tsv" else ",")
    else:
        pairs = _json_rows(plain)
    try:
        yield from pairs
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}", hint="the file is damaged or not what its name says"
        ) from error


def shown_path(path: Path) -> str:
    """The name of a file as text that can be written: the system allows names that are no UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def _document_rows(content: bytes, name: str, counts: SectionCounts) -> Iterator[tuple[int, Any]]:
    """The sections of a document that have text, each at its heading's line; the others are counted."""
    counts.documents += 1
    line, text = decode_document(content)
    if isinstance(text, Malformed):
        yield line, text
        return
    document = split_document(text)
    if not document.sections:
        yield 1, {"source": name, "headings": [], "text": document.leading}
        return
    counts.leading += bool(document.leading)
    for section in document.sections:
        counts.sections += 1
        if section.text:
            yield section.line, {"source": name, "headings": section.headings, "text": section.text}
        else:
            counts.empty += 1


def decode_document(content: bytes) -> tuple[int, str | Malformed]:
    """The text of a document, or what is wrong with it, and the line where that stands."""
    try:
        return 1, content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as bad:
        line = 1 + content.count(b"\n", 0, bad.start)
        shown = content[:200].decode(errors="replace")
        return line, Malformed(f"invalid UTF-8 at byte {bad.start + 1} of the document", shown)


def _json_rows(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """JSON Lines, a JSON array, or JSON values one after the other: told apart by the first line."""
    # An array may stand on a single line: what tells the kind must not be the whole of it.
    first, start = file.readline(_CHUNK).removeprefix(_BOM), 1
    while first and not first.strip():
        start += first.count(b"\n")
        first = file.readline(_CHUNK)
    if first.lstrip().startswith(b"["):
        yield from _streamed_json(file, first, start)
        return
    if first and not first.endswith(b"\n"):
        first += file.readline()
    head = first.strip()
    if head.startswith(b"{") and not head.endswith(b"}") and not _is_json(head):
        # An object spread over lines, or JSON Lines with a broken first line: then the second is an object of its own.
        second = file.readline()
        if not _is_json(second.strip()):
            yield from _streamed_json(file, first + second, start)
            return
        yield start, _parse_line(first)
        first, start = second, start + 1
    if first:
        yield start, _parse_line(first)
    loads = orjson.loads
    for number, line in enumerate(file, start + 1):
        try:
            yield number, loads(line)
        except orjson.JSONDecodeError:
            if line.strip():
                yield number, _parse_line(line)


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _parse_line(line: bytes) -> Any:
    line = line.rstrip()
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        text = line.decode("utf-8", errors="replace").strip()
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as bad:
            return Malformed(f"invalid UTF-8 at byte {bad.start + 1} of the row", text)
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} of the row"
        half = "holds half of a surrogate pair: " if "surrogate" in error.msg else ""
        return Malformed(f"invalid JSON at {where}: {half}{error.msg}", text)


def _streamed_json(file: IO[bytes], head: bytes, line: int) -> Iterator[tuple[int, Any]]:
    """The elements of an array (or values one after the other), decoded as they come, with the line each begins on."""
    # Bytes that are no UTF-8 become surrogates, which are bytes again when their element is parsed.
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    scan = json.JSONDecoder().raw_decode
    buffer, chunk, size = "", head, _CHUNK
    before = ""  # what stands before the position: see _ARRAY_MARKS
    while True:
        ended = not chunk
        buffer += decode(chunk, final=ended)
        position = 0
        while True:
            begin = _skip_space(buffer, position)
            line += buffer.count("\n", position, begin)
            position = begin
            if position == len(buffer):
                break
            mark = buffer[position]
            if (before, mark) in _ARRAY_MARKS:
                before = _ARRAY_MARKS[before, mark]
                position += 1
                continue
            if before in ("element", "]"):
                reason = "a comma is missing" if before == "element" else "there is more after the end of the array"
                yield line, _unreadable(reason, buffer[position:])
                return
            try:
                _, end = scan(buffer, position)
            except (ValueError, RecursionError) as error:
                if not ended and _may_be_cut_off(error, buffer):
                    break
                where, reason = line, str(error)
                if isinstance(error, json.JSONDecodeError):
                    where, reason = line + buffer.count("\n", position, error.pos), error.msg
                yield where, _unreadable(reason, buffer[position:])
                return
            if len(buffer) - end < _LONGEST_WORD and not ended:
                break  # a number at the very end may go on in the next chunk
            # An element goes by the same rules as a line of JSON Lines.
            yield line, _parse_line(buffer[position:end].encode("utf-8", "surrogateescape"))
            before = "element" if before in ("[", ",") else "value"
            line += buffer.count("\n", position, end)
            position = end
        buffer = buffer[position:]
        if ended:
            if before in ("[", ",", "element"):
                yield line, _unreadable("the array is not closed", "")
            return
        # An element larger than a chunk is scanned again with each one: growing chunks keep that linear.
        size = max(_CHUNK, 2 * len(buffer))
        chunk = file.read(size)


def _may_be_cut_off(error: Exception, buffer: str) -> bool:
    """Whether `error` may be due to the end of the buffer only."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(buffer) - _LONGEST_WORD


def _unreadable(reason: str, text: str) -> Malformed:
    shown = text[:200].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return Malformed(f"invalid JSON: {reason}; the rest of the file is not read", shown, ends_file=True)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _csv_rows(file: IO[bytes], delimiter: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)
    # Bytes that are no UTF-8 become surrogates, so that the row they stand in can be named.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
            raw = delimiter.join(cells).encode("utf-8", "surrogateescape")
            raw.decode()
        except StopIteration:
            return
        except csv.Error as error:
            bad = Malformed(f"invalid CSV: {error}", "")
        except UnicodeDecodeError as error:
            bad = Malformed(f"invalid UTF-8: {error.reason}", raw.decode("utf-8", "replace"))
        else:
            if not columns:
                columns = cells
            elif len(cells) > len(columns):
                yield line, Malformed("more fields than the header has columns", delimiter.join(cells))
            elif cells:
                yield line, dict(zip(columns, cells, strict=False))
            continue
        yield line, bad
        if not columns:
            return  # without its header no row can be understood


def _parquet_rows(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        number = 0
        for batch in parquet.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield number, value
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}", hint="check how it was written") from error


def _hub_rows(name: str, config_name: str | None, split: str) -> Iterator[RawRow]:
    import datasets

    datasets.disable_progress_bars()
    try:
        stream = datasets.load_dataset(name, config_name, split=split, streaming=True)
        for number, row in enumerate(stream, 1):
            yield RawRow(f"{name}[{split}]", number, row)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"'{name}' is no file here, and the Hub did not give it: {first_line}",
            hint="check the name (and --split and --config-name of tt prepare); HF_TOKEN opens gated datasets, "
            "HF_ENDPOINT names a mirror",
        ) from error
