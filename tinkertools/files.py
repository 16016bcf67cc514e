"""Files and directories that appear whole or not at all: written beside, flushed to disk, renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tinkertools.errors import DiskFullError, FileError

# The end of a hint, where nothing is lost by beginning anew.
AGAIN = ", then run the same command again"


def beside(path: Path) -> Path:
    """The temporary neighbour under which `path` is written until it is complete."""
    return path.with_name(f".{path.name}.part-{os.getpid()}")


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn what the file system says about `path` into a `FileError`."""
    try:
        yield
    except OSError as error:
        raise file_error(error, path) from error


def file_error(error: OSError, path: Path | None = None) -> FileError:
    """The plain words for an error of the file system."""
    where = str(path if path is not None else error.filename or "a file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"the disk is full: {where} could not be written", hint=f"free some space{AGAIN}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FileError(f"no permission: {where}", hint="choose another path, or change its permissions")
    if error.errno == errno.ENOENT:
        return FileError(f"not found: {where}", hint="check the path")
    if error.errno == errno.EISDIR:
        return FileError(f"{where} is a directory, not a file", hint="name a file")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return FileError(f"{where}: a file stands where a directory is needed", hint="choose another path")
    return FileError(f"{where}: {error.strerror or error}")


def check_writable_file(path: Path) -> None:
    """Refuse an output path that can never become a file, before any work is done for it.

    Raises:
        FileError: `path` is a directory, or a parent of it is a file.
    """
    if path.is_dir():
        raise FileError(f"{path} is a directory, not a file", hint=f"name a file, for example {path / 'output.json'}")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise FileError(f"{parent} is a file, so {path} cannot be written", hint="choose another path")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write that appears as `path` when the block ends well, and not at all otherwise.

    Raises:
        FileError: the file system refused.
    """
    with whole_files(path) as (file,):
        yield file


@contextmanager
def whole_files(first: Path, *more: Path) -> Iterator[list[BinaryIO]]:
    """Files that appear together when the block ends well: all are flushed to disk before the first gets its name.

    `first` gets its name last, so where it stands the others do; it is the one that errors name.

    Raises:
        FileError: the file system refused.
    """
    paths = (*more, first)
    for path in paths:
        check_writable_file(path)
    with explain_os_errors(first), ExitStack() as cleanup:
        files: list[BinaryIO] = []
        for path in (first, *more):
            cleanup.callback(_remove_if_empty, [parent for parent in path.parents if not parent.exists()])
            path.parent.mkdir(parents=True, exist_ok=True)
            cleanup.callback(beside(path).unlink, missing_ok=True)
            files.append(cleanup.enter_context(beside(path).open("wb", buffering=1 << 20)))
        yield files
        for file in files:
            sync(file)
            file.close()
        for path in paths:
            beside(path).replace(path)
            sync_directory(path.parent)


def _remove_if_empty(directories: list[Path]) -> None:
    """Remove what was made for files that did not come to be; the innermost first."""
    for directory in directories:
        with suppress(OSError):  # it holds files, as it should
            directory.rmdir()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file whole."""
    with whole_file(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole."""
    import orjson

    write_bytes(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that appears as `path` when the block ends well, and replaces what stood there."""
    part = beside(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            publish_directory(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def publish_directory(part: Path, path: Path) -> None:
    """Rename the complete directory `part` to `path`, which it replaces."""
    sync_tree(part)
    # A directory cannot replace a full one in a single step: the old one steps aside for a moment.
    aside = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.replace(aside)
    part.replace(path)
    sync_directory(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sync(file: BinaryIO) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_tree(directory: Path) -> None:
    """Flush all files of a directory to the disk."""
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable (where the system lets a directory be opened)."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
