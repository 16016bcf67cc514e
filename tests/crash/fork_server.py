"""A process that has imported what `tt` needs and computed nothing; every `tt` asked of it is a fork of it.

It is a program of its own: one JSON request a line on stdin, one JSON answer a line on stdout. A fork has no threads
and no results of its parent's, so it computes what a fresh process computes, without 8 seconds of imports.

In a child the functions through which files change are replaced by ones that count: each call is a point, at which the
child can be told to die (SIGKILL, so nothing of it runs after) or to stop. The product knows nothing of this.
"""

import builtins
import contextlib
import gc
import importlib
import io
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Imported by the parent, so that children need not: what `tt train` has loaded when it ends.
MODULES = (
    "torch", "torch.profiler._cupti_monitor", "numpy.ctypeslib", "safetensors.torch", "transformers", "peft", "tinker",
    "peft.utils.transformers_weight_conversion", "transformers.models.qwen3.modeling_qwen3", "matplotlib.figure",
    "matplotlib.backends.backend_svg", "tinkertools.cli", "tinkertools.loop", "tinkertools.engines", "tinkertools.data",
    "tinkertools.local.service", "tinkertools.local.training", "tinkertools.local.checkpoints", "tinkertools.runs.log",
    "tinkertools.runs.plots", "tinkertools.runs.directory", "tinkertools.chat.sources", "tinkertools.chat.rendering",
    "tinkertools.chat.templates", "tinkertools.chat.records", "tinkertools.chat.vendor", "tinkertools.chat.batching",
)  # fmt: skip

_REAL_WRITE, _REAL_OPEN, _REAL_READLINK = os.write, os.open, os.readlink
_PAGE = 4096
_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Points:
    """The points of one child under a folder: their labels go to a file, and one of them can be its end."""

    def __init__(self, root: Path, journal: Path, fault: dict[str, Any] | None) -> None:
        self._root = os.path.realpath(root)
        self._journal = _REAL_OPEN(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._fault = fault or {}
        self._lock = threading.RLock()
        self._seen: Counter[str] = Counter()
        self._index = -1

    def where(self, target: Any, dir_fd: int | None = None) -> str | None:
        """A path or a descriptor as a name under the root, the same in every process; None where it is elsewhere."""
        if isinstance(target, int):
            path = _REAL_READLINK(f"/proc/self/fd/{target}")
        else:
            path = os.fsdecode(target)
            if dir_fd is not None:
                path = f"{_REAL_READLINK(f'/proc/self/fd/{dir_fd}')}/{path}"
            path = os.path.abspath(path)  # noqa: PTH100 - a link is itself what changes
        if not path.startswith(self._root + "/"):
            return None
        name = path.removeprefix(self._root + "/").removesuffix(" (deleted)")
        return re.sub(r"[0-9a-f]{32}", "ID", name.replace(str(os.getpid()), "PID"))

    def reach(self, label: str, last: Callable[[], object] | None = None) -> None:
        """A point. Where it is the one that was asked for: `last` is done, and then nothing more."""
        with self._lock:
            self._index += 1
            self._seen[label] += 1
            _REAL_WRITE(self._journal, f"{label}\n".encode())
            fault = self._fault
            if fault.get("index") == self._index or (
                fault.get("label") == label and fault["occurrence"] == self._seen[label]
            ):
                if last:
                    last()
                os.kill(os.getpid(), signal.SIGSTOP if fault.get("stop") else signal.SIGKILL)

    def write(self, descriptor: int, start: int, data: Any, write: Callable[[memoryview], int]) -> int:
        """Two points: nothing is written yet, and about half of it is."""
        name = self.where(descriptor)
        view = memoryview(data).cast("B")
        if name is None or not view:
            return write(view)
        self.reach(f"write {name}")
        half = len(view) // 2
        if start < os.fstat(descriptor).st_size:
            # What overwrites is copied page by page, and a kill comes between two pages or not at all. To what grows
            # the test is harder than any kill.
            half += -(start + half) % _PAGE
        if 0 < half < len(view):
            self.reach(f"write half of {name}", lambda: write(view[:half]))
        return write(view)


def replace_calls(points: Points) -> None:
    """Make every call that changes a file under the root a point."""
    for name in ("unlink", "remove", "rmdir", "mkdir", "truncate", "ftruncate", "fsync", "fdatasync", "utime"):
        setattr(os, name, _on_one(points, name, getattr(os, name)))
    for name in ("replace", "rename", "link", "symlink"):
        setattr(os, name, _on_two(points, name, getattr(os, name)))
    os.write, os.pwrite = _writing(points, os.write), _writing(points, os.pwrite)
    for name in ("writev", "pwritev", "sendfile", "copy_file_range", "posix_fallocate"):
        position = 1 if name == "copy_file_range" else 0
        setattr(os, name, _on_one(points, name, getattr(os, name), position))
    os.open = _opening(points, os.open)
    io.open = builtins.open = _file_opening(points, io.open)
    checkpoints: Any = importlib.import_module("tinkertools.local.checkpoints")
    checkpoints.save_file = _tensors_saving(points, checkpoints.save_file)
    # Drawing takes a third of so short a run, and is not what is tested.
    figure: Any = importlib.import_module("matplotlib.figure")
    figure.Figure.savefig = _save_figure


def _save_figure(_: Any, target: Any, **options: Any) -> None:
    """What stands for a picture, in a file or in memory."""
    if isinstance(target, io.BytesIO):
        target.write(b"<svg/>")
    else:
        Path(target).write_text("<svg/>")


def _on_one(points: Points, name: str, real: Callable[..., Any], position: int = 0) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if (where := points.where(args[position], options.get("dir_fd"))) is not None:
            points.reach(f"{name} {where}")
        return real(*args, **options)

    return call


def _on_two(points: Points, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(source: Any, target: Any, **options: Any) -> Any:
        where = points.where(target, options.get("dst_dir_fd"))
        if where is not None:
            points.reach(f"{name} {points.where(source, options.get('src_dir_fd'))} to {where}")
        return real(source, target, **options)

    return call


def _writing(points: Points, real: Callable[..., int]) -> Callable[..., int]:
    def call(descriptor: int, data: Any, *place: int) -> int:
        if points.where(descriptor) is None:
            return real(descriptor, data, *place)
        start = place[0] if place else os.lseek(descriptor, 0, os.SEEK_CUR)
        return points.write(descriptor, start, data, lambda part: real(descriptor, part, *place))

    return call


def _opening(points: Points, real: Callable[..., int]) -> Callable[..., int]:
    def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & _CHANGING and (where := points.where(path, dir_fd)) is not None:
            points.reach(f"open {where}")
        return real(path, flags, mode, dir_fd=dir_fd)

    return call


def _file_opening(points: Points, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None,
        closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        where = points.where(file) if set(mode) & set("wax+") else None
        if where is None:
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            points.reach(f"open {where}")
        raw = Raw(points, where, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffered = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    return call


class Raw(io.FileIO):
    """A file whose writes are points as the system sees them: after the buffer, whose content dies with the process."""

    def __init__(self, points: Points, where: str, *args: Any) -> None:
        super().__init__(*args)
        self._points, self._where = points, where

    def write(self, data: Any) -> int:
        return self._points.write(self.fileno(), self.tell(), data, super().write)

    def truncate(self, size: int | None = None) -> int:
        self._points.reach(f"truncate {self._where}")
        return super().truncate(size)


def _tensors_saving(points: Points, real: Callable[..., None]) -> Callable[..., None]:
    """The library writes from Rust: half of its file is written here."""
    from safetensors.torch import save

    def call(tensors: Any, filename: Any, metadata: Any = None) -> None:
        where = points.where(filename)
        if where is None:
            return real(tensors, filename, metadata)

        def half() -> None:
            content = save(tensors, metadata)
            descriptor = _REAL_OPEN(filename, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            _REAL_WRITE(descriptor, content[: len(content) // 2])

        points.reach(f"save_file {where}")
        points.reach(f"save_file half of {where}", half)
        real(tensors, filename, metadata)
        return None

    return call


def become_tt(request: dict[str, Any]) -> None:
    """In a child: run `tt`, as a process that was started for it."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    for number, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        opened = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["tt", *request["arguments"]]
    fault = request["fault"]
    replace_calls(Points(Path(request["cwd"]), Path(request["points"]), fault))
    if fault and fault["cpu_seconds"] is not None:
        # The default action of this signal is SIGKILL's: the kernel ends the process wherever it is. Its timer counts
        # what the process computes, so that the instant is about the same on a busy machine.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, fault["cpu_seconds"])
    from tinkertools.cli import main

    main()


def start(request: dict[str, Any]) -> int:
    """Fork a child that is `tt`; return its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        become_tt(request)
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    except BaseException:  # noqa: BLE001 - this is where the process ends
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            threading._shutdown()  # type: ignore[attr-defined]
        os._exit(code)


def wait(child: int) -> dict[str, Any]:
    """How a child ended or stopped, and the seconds that it computed."""
    _, status, usage = os.wait4(child, os.WUNTRACED)
    computed = round(usage.ru_utime + usage.ru_stime, 3)
    if os.WIFSTOPPED(status):
        return {"stopped": True}
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status), "computed": computed}
    return {"code": os.WEXITSTATUS(status), "computed": computed}


def serve() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in io.TextIOWrapper(io.FileIO(0, closefd=False)):
        request = json.loads(line)
        answer = {"pid": start(request)} if request["do"] == "start" else wait(request["pid"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
