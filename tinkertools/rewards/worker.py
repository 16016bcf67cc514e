"""A process in which rewards of the user run, as `workers` starts it.

Tasks come from one pipe and outcomes go to another, each pickled after four bytes that say how long it is. What the
user's code prints goes to stderr.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import io
import math
import os
import pickle
import re
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkertools.rewards.samples import Rewarded, Sample

# A reply that is longer than this is cut: it is shown in a line.
_LONGEST = 300


@dataclass(frozen=True)
class Regex:
    """Rewards answers in which a pattern is found."""

    pattern: str

    def load(self) -> Callable[[Sample], Any]:
        """The function that rewards."""
        compiled = re.compile(self.pattern)
        return lambda sample: 1.0 if compiled.search(sample.answer) else 0.0


@dataclass(frozen=True)
class Function:
    """A function of the user's.

    Attributes:
        where: the name of a module, or the path of a file.
        name: of the function there.
        is_file: whether `where` is a path.
    """

    where: str
    name: str
    is_file: bool

    def load(self) -> Callable[[Sample], Any]:
        """Import it, with the working directory importable."""
        sys.path.insert(0, str(Path.cwd()))
        if self.is_file:
            path = Path(self.where)
            # Files beside it are importable, as they are beside a script.
            sys.path.insert(0, str(path.resolve().parent))
            # Not the file's own name, which may be that of a library.
            spec = importlib.util.spec_from_file_location(f"reward_of_{path.stem}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(self.where)
        function = module
        for part in self.name.split("."):
            function = getattr(function, part)
        if not callable(function):
            raise TypeError(f"{self.name} is of type {type(function).__name__}, and no function")
        return function


Rule = Regex | Function


def main(requests: str, replies: str) -> None:
    """Load what is to be run, say whether its calls are awaited, and run samples until the pipe ends.

    Args:
        requests: the descriptor of the pipe to read.
        replies: of the one to write.
    """
    # Standard output is data of the command that started this.
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    # What the user's code takes for its own input is empty.
    with open(os.devnull) as null:  # noqa: PTH123
        os.dup2(null.fileno(), 0)
    source = os.fdopen(int(requests), "rb")
    answers = os.fdopen(int(replies), "wb")
    rule, memory, timeout = receive(source)
    _limit_memory(memory)
    try:
        function = rule.load()
        awaited = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object whose call is a coroutine
        )
    except BaseException as error:  # noqa: BLE001 - SystemExit in a module is a failure to load it, too
        _send(answers, _described(error))
        return
    _send(answers, awaited)
    asyncio.run(_serve(function, awaited, timeout, source, answers))


def packed(value: Any) -> bytes:
    """A value as it goes through a pipe."""
    content = pickle.dumps(value)
    return len(content).to_bytes(4, "big") + content


def _send(file: io.BufferedWriter, value: Any) -> None:
    file.write(packed(value))
    file.flush()


def receive(file: io.BufferedReader) -> Any:
    """The next value of a pipe.

    Raises:
        EOFError: there is none.
    """
    size = file.read(4)
    content = file.read(int.from_bytes(size, "big")) if len(size) == 4 else b""
    if not content:
        raise EOFError
    return pickle.loads(content)


async def _serve(
    function: Callable[[Sample], Any],
    awaited: bool,
    timeout: float,
    source: io.BufferedReader,
    answers: io.BufferedWriter,
) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def answer(number: int, sample: Sample) -> None:
        _send(answers, (number, await _rewarded(function, sample, timeout)))

    arrived: asyncio.Queue[tuple[int, Sample] | None] = asyncio.Queue()

    def read() -> None:
        with contextlib.suppress(EOFError, RuntimeError):  # the loop has ended meanwhile
            while True:
                loop.call_soon_threadsafe(arrived.put_nowait, receive(source))
        # The process that asks has gone, whatever the user's code still does.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while (asked := await arrived.get()) is not None:
        if awaited:
            tasks.add(task := asyncio.create_task(answer(*asked)))
            task.add_done_callback(tasks.discard)
        else:
            await answer(*asked)


async def _rewarded(function: Callable[[Sample], Any], sample: Sample, timeout: float) -> Rewarded:
    # One that never waits for anything is not stopped by this, but by the end of this process.
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            value = function(sample)
            if inspect.isawaitable(value):
                value = await value
        return _checked(value)
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises, SystemExit too, is this sample's
        if limit.expired():
            return Rewarded(None, no_end(timeout))
        return Rewarded(None, _described(error))


def no_end(seconds: float) -> str:
    """What is said of a sample that took too long."""
    return f"no end after {seconds:g} s"


def _checked(value: Any) -> Rewarded:
    """What was returned, where it is a number: also one of numpy or torch, or a bool."""
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        return Rewarded(None, f"returned {_line(repr(value))}, which is no number")
    number = float(value)
    return Rewarded(number) if math.isfinite(number) else Rewarded(None, f"returned {number}")


def _described(error: BaseException) -> str:
    """An error and its place in the user's code, in a line."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != __file__]
    inner = [one for one in frames if not one.filename.startswith("<frozen importlib")]
    where = f" ({Path(inner[-1].filename).name}:{inner[-1].lineno})" if inner else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({Path(error.filename).name}:{error.lineno})"
        return _line(f"{type(error).__name__}: {error.msg}") + where
    return _line(f"{type(error).__name__}: {error}".rstrip(": ")) + where


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _limit_memory(size: int | None) -> None:
    """Have the process fail by itself before it takes the memory of all others."""
    if size is None:
        return
    try:
        import resource
    except ImportError:  # not on Windows
        return
    with contextlib.suppress(OSError, ValueError):  # macOS takes no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    with contextlib.suppress(OSError):
        # On Linux: the first to go where memory ends all the same.
        Path("/proc/self/oom_score_adj").write_text("1000")
