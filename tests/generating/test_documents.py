"""Documents from files, PDF, SQLite and a bucket: what is read, and what of the rest is said."""

import io
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinkertools.errors import DataError, UsageError
from tinkertools.generating.documents import Document, Documents, Unread, read_documents
from tinkertools.reporting import Report


@contextmanager
def silent(what: str, total: float | None, unit: str) -> Iterator[Report]:
    yield lambda done, note="": None


def read(dataset: str | Path, query: str | None = None) -> Documents:
    return read_documents(str(dataset), query, [], silent)


def make_pdf(*pages: str) -> bytes:
    """A PDF with a line of text a page, written by hand."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        font = "<< /Font << /F1 3 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /Resources {font} /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    made, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return made + f"{end}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(made)}\n%%EOF\n".encode()


def encrypted(content: bytes, password: str) -> bytes:
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(content))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_a_folder_of_all_kinds(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    files = {
        "a.md": b"\xef\xbb\xbf# Title\n\ntext\n",
        "b.TXT": "Füchsin".encode(),
        "c.pdf": make_pdf("Kestrel one", "Kestrel two"),
        "d.pdf": make_pdf(""),
        "e.pdf": encrypted(make_pdf("secret"), "hunter2"),
        "f.pdf": encrypted(make_pdf("for all to read"), ""),
        "g.pdf": b"%PDF-1.4\nbroken",
        "h.txt": b"caf\xe9",
        "i.txt": b" \n\n",
        "j.csv": b"a,b\n",
        ".git/k.md": b"hidden",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = read(tmp_path)
    at = str(tmp_path) + "/"
    assert [(one.name.removeprefix(at), one.text) for one in found.found] == [
        ("a.md", "# Title\n\ntext\n"),
        ("b.TXT", "Füchsin"),
        ("c.pdf", "Kestrel one\n\nKestrel two"),
        ("f.pdf", "for all to read"),
    ]
    assert [(one.name.removeprefix(at), one.kind) for one in found.unread] == [
        ("d.pdf", "empty"),
        ("e.pdf", "unreadable"),
        ("g.pdf", "unreadable"),
        ("h.txt", "unreadable"),
        ("i.txt", "empty"),
    ]
    reasons = {one.name.removeprefix(at): one.reason for one in found.unread}
    assert reasons["e.pdf"] == "the PDF is encrypted with a password"
    assert reasons["g.pdf"].startswith("the PDF cannot be read: ")
    assert reasons["h.txt"] == "invalid UTF-8 at byte 4 of the document"
    assert found.ignored == [f"{at}j.csv"]
    assert [one.name for one in read(f"{tmp_path}/*.md").found] == [f"{at}a.md"]
    assert len(read(tmp_path / "c.pdf").found) == 1


def test_what_holds_no_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a,b\n")
    for dataset in (tmp_path, tmp_path / "a.csv", f"{tmp_path}/*.csv"):
        with pytest.raises(DataError, match="no document") as caught:
            read(dataset)
        assert caught.value.hint == "--generate reads .md, .markdown, .txt, .pdf, and with --query an SQLite file"
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "nowhere.pdf")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe")))
    assert read("-").found == [Document("stdin", "from a pipe")]


def test_what_is_missing_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf("x"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for dataset, library in ((tmp_path, "pypdf"), ("s3://bucket/docs", "s3fs")):
        with pytest.raises(UsageError, match=library) as caught:
            read(dataset)
        assert caught.value.hint == "python -m pip install 'tinkertools[documents]'"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a b?.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table articles (id integer, title text, body text, picture blob)")
        rows: list[tuple[Any, ...]] = [
            (1, "Kestrel", "An engine.", b"\x00"), (2, None, "Füchsin", None), (3, " ", None, None),
        ]  # fmt: skip
        connection.executemany("insert into articles values (?, ?, ?, ?)", rows)
        connection.execute("insert into articles values (4, cast(x'636166e9' as text), 'b', null)")
    connection.close()
    return path


def test_rows_of_a_query_are_documents(database: Path) -> None:
    before = database.read_bytes()
    found = read(database, "WITH a AS (SELECT * FROM articles) SELECT * FROM a ORDER BY id")
    assert found.found == [Document(f"{database}:1", "Kestrel\n\nAn engine."), Document(f"{database}:2", "Füchsin")]
    assert found.unread == [
        Unread(f"{database}:3", "empty", "it holds no text"),
        Unread(f"{database}:4", "unreadable", "the row is not UTF-8"),
    ]
    assert len(read(database, "SELECT upper(title) FROM articles WHERE id = 1").found) == 1
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM articles",
        "SELECT 1; SELECT 2",
        "ATTACH DATABASE 'other.sqlite' AS other",
        "PRAGMA journal_mode = wal",
        "VACUUM INTO 'other.sqlite'",
        "SELECT nothing FROM articles",
        "",
        "SELECT body FROM articles WHERE id > 9",
    ],
)
def test_a_query_only_reads(database: Path, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(database.parent)
    before = database.read_bytes()
    with pytest.raises(DataError, match="query") as caught:
        read(database, query)
    assert caught.value.hint
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no database, though a file that is long enough to be taken for one" * 20)
    with pytest.raises(DataError, match="file is not a database"):
        read(tmp_path / "a.txt", "SELECT * FROM a")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "b.sqlite", "SELECT 1")
    assert not (tmp_path / "b.sqlite").exists()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket on the loopback, and the keys to it in the environment."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTED", "AWS_SECRET_ACCESS_KEY": "planted-5f0e7c2a91",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


def test_documents_in_a_bucket(bucket: Any) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("pypdf")
    for name, content in {
        "docs/a.md": b"# A\n", "docs/more/b.pdf": make_pdf("Kestrel"), "docs/c.csv": b"1,2", "docs/.git/d.md": b"x",
        "docs/e.txt": b"caf\xe9", "other/f.md": b"f",
    }.items():  # fmt: skip
        bucket.put_object(Bucket="bucket", Key=name, Body=content)
    found = read("s3://bucket/docs")
    assert found.found == [
        Document("s3://bucket/docs/a.md", "# A\n"),
        Document("s3://bucket/docs/more/b.pdf", "Kestrel"),
    ]
    assert [one.name for one in found.unread] == ["s3://bucket/docs/e.txt"]
    assert found.ignored == ["s3://bucket/docs/c.csv"]
    assert [one.name for one in read("s3://bucket/other/f.md").found] == ["s3://bucket/other/f.md"]
    assert len(read("s3://bucket/**/*.md").found) == 2
    with pytest.raises(DataError, match="no document"):
        read("s3://bucket/nothing")


def test_a_bucket_that_is_not_there(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    with pytest.raises(DataError, match=r"no such bucket|no document"):
        read("s3://nowhere/docs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="cannot be read") as caught:
        read("s3://bucket/docs")
    assert "AWS_ENDPOINT_URL" in (caught.value.hint or "")
    assert "planted-5f0e7c2a91" not in caught.value.message


def test_an_object_that_goes_while_others_are_read(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name in "abc":
        bucket.put_object(Bucket="bucket", Key=f"gone/{name}.md", Body=name.encode())
    give = s3fs.S3FileSystem._cat_file

    async def gone(self: Any, path: str, *args: Any, **options: Any) -> bytes:
        if path == "bucket/gone/b.md":
            bucket.delete_object(Bucket="bucket", Key="gone/b.md")
        return bytes(await give(self, path, *args, **options))

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", gone)
    found = read("s3://bucket/gone")
    assert [one.text for one in found.found] == ["a", "c"]
    [unread] = found.unread
    assert (unread.name, unread.kind) == ("s3://bucket/gone/b.md", "unreadable")
    assert unread.reason.startswith("the server does not give it: ")
