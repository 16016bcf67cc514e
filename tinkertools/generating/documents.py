"""Documents to ask about, from files, stdin, a bucket or a database, and the parts that they are cut into."""

import io
import re
import sqlite3
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tinkertools.chat.sections import SUFFIXES as TEXT_SUFFIXES
from tinkertools.chat.sources import DocumentKinds, Malformed, decode_document, find_source, shown_path
from tinkertools.errors import DataError, UsageError
from tinkertools.files import explain_os_errors
from tinkertools.reporting import ProgressMaker

_SUFFIXES = (*TEXT_SUFFIXES, ".pdf")
KINDS = DocumentKinds(_SUFFIXES, f"--generate reads {', '.join(_SUFFIXES)}, and with --query an SQLite file")
BUCKET = "s3://"
INSTALL = "python -m pip install 'tinkertools[documents]'"

# Most characters of a part: some pages, which leave room for instructions and answers in any model's context.
PART_CHARACTERS = 6000

# Where a part may end, the best first: before a heading, after a paragraph, a line, a sentence, a word.
_BORDERS = (
    re.compile(r"\n(?=#{1,6}[ \t])"),
    re.compile(r"\n[ \t]*\n"),
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?])\s|(?<=[。！？])"),
    re.compile(r"\s"),
)


@dataclass(frozen=True)
class Document:
    """A document's name, which is its place for people, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Unread:
    """A document that cannot be asked about: it is empty, or cannot be read, and why."""

    name: str
    kind: Literal["empty", "unreadable"]
    reason: str


@dataclass
class Documents:
    """What was found under a name: documents, those that cannot be used, and files that are none."""

    name: str
    found: list[Document] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def add(self, name: str, text: str | Malformed) -> None:
        """Take a document in, or what is in place of its text."""
        if isinstance(text, Malformed):
            self.unread.append(Unread(name, "unreadable", text.reason))
        elif not text.strip():
            self.unread.append(Unread(name, "empty", "it holds no text"))
        else:
            self.found.append(Document(name, text))


def read_documents(dataset: str, query: str | None, leave_out: Collection[Path], progress: ProgressMaker) -> Documents:
    """All documents that `dataset` names; they are held in memory.

    Args:
        dataset: a file, a folder, a pattern, `-` (stdin), `s3://bucket/prefix`, or with a `query` an SQLite file.
        query: a SELECT of which each row is a document.
        leave_out: files that are no documents.
        progress: makes the display of the work.

    Raises:
        DataError: there is nothing, or it cannot be read at all.
        UsageError: a library for it is missing.
    """
    if query is not None:
        return _rows(Path(dataset), query)
    if dataset == "-":
        documents = Documents("stdin")
        documents.add("stdin", decode_document(sys.stdin.buffer.read())[1])
        return documents
    if dataset.startswith(BUCKET):
        return _bucket(dataset, progress)
    source = find_source(dataset, leave_out=leave_out, format="sections", kinds=KINDS)
    documents = Documents(source.name, ignored=[shown_path(path) for path in source.ignored])
    _check_pdf([path.name for path in source.files])
    with progress("read", len(source.files), "documents") as report:
        for done, path in enumerate(source.files, 1):
            with explain_os_errors(path):
                content = path.read_bytes()
            documents.add(shown_path(path), text_of(path.name, content))
            report(done)
    return documents


def text_of(name: str, content: bytes) -> str | Malformed:
    """The text of a document by its name's suffix, or what is wrong with it."""
    return _pdf_text(content) if _is_pdf(name) else decode_document(content)[1]


def cut(text: str, most: int = PART_CHARACTERS) -> list[str]:
    """The parts of a text, each of at most so many characters; joined they are the text.

    A cut is made in the second half of what a part may hold: before the last heading there, else after the last
    paragraph, line, sentence or word.
    """
    parts, start = [], 0
    while len(text) - start > most:
        end = _border(text, start + most // 2, start + most)
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]] if text else []


def _border(text: str, low: int, high: int) -> int:
    for border in _BORDERS:
        ends = [found.end() for found in border.finditer(text, low, high) if found.end() > low]
        if ends:
            return ends[-1]
    return high


def spread(pairs: int, parts: int) -> list[int]:
    """How many of a document's pairs to ask for in each of its parts: evenly, so that with few pairs some have none."""
    return [(i + 1) * pairs // parts - i * pairs // parts for i in range(parts)]


def _is_pdf(name: str) -> bool:
    return name.lower().endswith(".pdf")


def _check_pdf(names: list[str]) -> None:
    """Refuse documents that need a library which is not there, before any work is done."""
    import importlib.util

    pdf = next((name for name in names if _is_pdf(name)), None)
    if pdf is not None and importlib.util.find_spec("pypdf") is None:
        raise UsageError(f"{pdf}: to read PDF files the library pypdf is needed, and it is not installed", hint=INSTALL)


def _pdf_text(content: bytes) -> str | Malformed:
    """The text of a PDF's pages, blank lines between them."""
    import logging

    import pypdf

    # It tells the log what it mends in files; what it cannot mend is raised.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        # Some are encrypted with an empty password: anybody may read those.
        if reader.is_encrypted and not reader.decrypt(""):
            return Malformed("the PDF is encrypted with a password", "")
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    except Exception as error:  # noqa: BLE001 - a broken file raises whatever its bytes lead to
        return Malformed(f"the PDF cannot be read: {' '.join(str(error).split()) or type(error).__name__}", "")
    # Broken tables of characters give halves of surrogate pairs.
    return text.encode("utf-8", "replace").decode()


def _bucket(dataset: str, progress: ProgressMaker) -> Documents:
    """The documents of a bucket, of a folder in it, or those that a pattern matches; the environment has the keys."""
    try:
        import s3fs
    except ImportError:
        raise UsageError(f"{dataset}: to read buckets the library s3fs is needed", hint=INSTALL) from None
    documents = Documents(dataset)
    files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    with _explained(dataset):
        listed = sorted(files.glob(dataset) if re.search(r"[*?\[]", dataset) else files.find(dataset))
        beginning = dataset.removeprefix(BUCKET).rstrip("/")
        listed = [name for name in listed if not _hidden(name, beginning) and not name.endswith("/")]
        wanted = [name for name in listed if KINDS.include(name)]
        documents.ignored = [f"{BUCKET}{name}" for name in listed if not KINDS.include(name)]
        if not wanted:
            raise DataError(f"{dataset} holds no document", hint=KINDS.hint)
        _check_pdf(wanted)
        with progress("read", len(wanted), "documents") as report:
            for done, name in enumerate(wanted, 1):
                try:
                    content = text_of(name, files.cat_file(name))
                except (FileNotFoundError, PermissionError) as error:  # of this one alone
                    content = Malformed(f"the server does not give it: {' '.join(str(error).split())}", "")
                documents.add(f"{BUCKET}{name}", content)
                report(done)
    return documents


def _hidden(name: str, beginning: str) -> bool:
    """Whether a name has a part that begins with a dot, below what was asked for."""
    return any(part.startswith(".") for part in name.removeprefix(beginning).split("/"))


@contextmanager
def _explained(dataset: str) -> Iterator[None]:
    """Turn what the client of a bucket raises into a `DataError`."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise DataError(
            f"{dataset}: there are no keys for it",
            hint="export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…, and AWS_ENDPOINT_URL=… for other servers",
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{dataset}: there is no such bucket or object", hint="check the name") from error
    except (OSError, BotoCoreError, ClientError, ValueError) as error:
        raise DataError(
            f"{dataset} cannot be read: {' '.join(str(error).split()) or type(error).__name__}",
            hint="AWS_ENDPOINT_URL names the server, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY the keys",
        ) from error


def _rows(database: Path, query: str) -> Documents:
    """The rows of a query as documents: the text columns of each, blank lines between them. Nothing is written."""
    if not database.is_file():
        raise DataError(f"no such file: {database}", hint="--query asks an SQLite file, which --dataset names")
    documents = Documents(str(database))
    try:
        for number, text in enumerate(_texts(database, query), 1):
            documents.add(f"{shown_path(database)}:{number}", text)
    except sqlite3.Error as error:
        raise DataError(
            f"{database}: the query cannot be answered: {error}",
            hint='--query takes one SELECT, for example --query "SELECT title, body FROM articles"',
        ) from error
    if not documents.found and not documents.unread:
        raise DataError(f"{database}: the query gives no rows", hint="check its conditions")
    return documents


def _texts(database: Path, query: str) -> Iterator[str | Malformed]:
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
    try:
        # Half a character in one row is no reason to lose the others: it can be seen, and named.
        connection.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
        connection.set_authorizer(_reads_only)
        for row in connection.execute(query):
            text = "\n\n".join(value for value in row if isinstance(value, str) and value.strip())
            try:
                text.encode()
            except UnicodeEncodeError:
                yield Malformed("the row is not UTF-8", "")
            else:
                yield text
    finally:
        connection.close()


def _reads_only(action: int, *_: str | None) -> int:
    """Refuse what is no reading: a file that is attached, for one, would be made where there is none."""
    reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY
