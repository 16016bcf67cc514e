"""The process in which a program of a model runs: it shuts itself in, loads the program, and runs tests when told to.

It is imported without its package, and has nothing but the standard library. REQUESTS and REPLIES, the descriptors that
`main` is given, are pipes with frames: four bytes that say how long, then the content. The first
frames are the filter of system calls, the folders to read, the limits, a token and the program. Each test then is a
kind, a token and a text. Whoever answers with a token has been told it; the next one is sent after that.
"""

import builtins
import ctypes
import os
import resource
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

PASSED, FAILED, VALUE, UNSAFE = b"+", b"-", b"=", b"!"
RUN, EVALUATE = b"run", b"evaluate"
TOKEN_LENGTH = 16

# Rights of Landlock by their bits; each version of it knows more of them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_KNOWN_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _PATH_BENEATH = 444, 445, 446, 1
_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER = 1, 22, 38, 2
_SIGKILL = 9
# A value that is shown is cut; one that is compared may be longer, and is refused beyond that.
_LONGEST_ERROR, _LONGEST_VALUE, _DEEPEST_VALUE = 300, 500_000, 50


def main(requests: str, replies: str, parent: str) -> None:
    """Serve until the pipe ends.

    Args:
        requests: the descriptor of the pipe to read.
        replies: of the one to write.
        parent: the number of the process that started this one.
    """
    # Names of this module that a program could replace are bound here first.
    read_all, write_all, code_of, run, evaluate = _reader(int(requests)), _writer(int(replies)), compile, exec, eval
    describe, plainly, kept, system = _described, _plain, dict(vars(builtins)), sys
    filter_, folders, limits, token, source = (read_all() for _ in range(5))
    try:
        _shut_in(filter_, folders.decode().split("\0"), [int(one) for one in limits.split()], int(parent))
    except OSError as error:
        write_all(token + UNSAFE + str(error).encode())
        return
    # A module of its own: dataclasses and pickle look their classes' modules up.
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    names = module.__dict__
    try:
        run(code_of(source.decode(), "solution.py", "exec"), names)
        answer = PASSED
    except BaseException as error:  # noqa: BLE001 - SystemExit, too, is the program's failure
        answer = FAILED + describe(error)
    write_all(token + answer)
    while kind := read_all():
        token, text = read_all(), read_all().decode()
        system.settrace(None)
        system.setprofile(None)
        vars(builtins).update(kept)
        try:
            if kind == EVALUATE:
                answer = VALUE + plainly(evaluate(code_of(text, "test", "eval"), names)).encode()
            else:
                run(code_of(text, "test", "exec"), names)
                answer = PASSED
        except BaseException as error:  # noqa: BLE001 - as above
            answer = FAILED + describe(error)
        write_all(token + answer)


def _reader(requests: int) -> Callable[[], bytes]:
    read, error = os.read, EOFError

    def exactly(size: int) -> bytes:
        found = b""
        while len(found) < size:
            if not (more := read(requests, size - len(found))):
                raise error
            found += more
        return found

    def frame() -> bytes:
        try:
            return exactly(int.from_bytes(exactly(4), "big"))
        except error:
            return b""

    return frame


def _writer(replies: int) -> Callable[[bytes], None]:
    write = os.write

    def frame(content: bytes) -> None:
        content = len(content).to_bytes(4, "big") + content
        while content:
            content = content[write(replies, content) :]

    return frame


def _described(error: BaseException) -> bytes:
    """An error in a line; its words are the program's, and may be an error themselves."""
    try:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
    except BaseException:  # noqa: BLE001 - as in `main`
        text = type(error).__name__
    return " ".join(text[:_LONGEST_ERROR].split()).encode(errors="replace")


def _plain(value: Any, depth: int = 0) -> str:
    """A value as a literal, without anything that a class of the program's decides about it.

    Raises:
        TypeError: it is none of Python's plain values; a number that is none is not equal to any, either.
        ValueError: it is too large.
    """
    if depth > _DEEPEST_VALUE:
        raise ValueError("a value that is nested too deeply")
    if value is None or value is True or value is False:
        return str(value)
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            if hasattr(kind, "__len__") and kind.__len__(value) > _LONGEST_VALUE:
                raise ValueError("a value that is too large")
            text = write(value, depth + 1)
            if len(text) > _LONGEST_VALUE:
                raise ValueError("a value that is too large")
            return text
    for module, name in (("fractions", "Fraction"), ("decimal", "Decimal")):
        # Not imported for the programs that do without.
        if (exact := getattr(sys.modules.get(module), name, None)) and isinstance(value, exact):
            return _ratio(*exact.as_integer_ratio(value))
    raise TypeError(f"a value of type {type(value).__name__}, where the test expects plain data")


def _float(value: float, depth: int) -> str:
    text = float.__repr__(value)
    if text == "nan":
        raise ValueError("nan, which equals nothing")
    return text.replace("inf", "1e999")


def _ratio(above: int, below: int) -> str:
    """A fraction as the whole or floating number that equals it."""
    if below == 1:
        return int.__repr__(above)
    if (above / below).as_integer_ratio() != (above, below):
        raise ValueError("a fraction, which equals no floating number")
    return _float(above / below, 0)


def _sequence(kind: Any, start: str, end: str) -> Callable[[Any, int], str]:
    def write(value: Any, depth: int) -> str:
        return start + "".join(_plain(one, depth) + ", " for one in kind.__iter__(value)) + end

    return write


def _set(value: Any, depth: int) -> str:
    items = [_plain(one, depth) for one in value]
    return "{" + ", ".join(items) + "}" if items else "set()"


def _dict(value: dict[Any, Any], depth: int) -> str:
    return "{" + ", ".join(f"{_plain(k, depth)}: {_plain(v, depth)}" for k, v in dict.items(value)) + "}"


# What a subclass says of itself does not count: the methods are those of the plain types.
_WRITERS: tuple[tuple[Any, Callable[[Any, int], str]], ...] = (
    (int, lambda value, depth: int.__repr__(value)),
    (float, _float),
    (complex, lambda value, depth: complex.__repr__(value)),
    (str, lambda value, depth: str.__repr__(value)),
    (bytes, lambda value, depth: bytes.__repr__(value)),
    (bytearray, lambda value, depth: bytes.__repr__(bytes(value))),
    (list, _sequence(list, "[", "]")),
    (tuple, _sequence(tuple, "(", ")")),
    (set, lambda value, depth: _set(set.__iter__(value), depth)),
    (frozenset, lambda value, depth: _set(frozenset.__iter__(value), depth)),
    (dict, _dict),
    (type({}.keys()), lambda value, depth: _set(iter(value), depth)),
)


def _shut_in(filter_: bytes, folders: list[str], limits: list[int], parent: int) -> None:
    """Give up everything that a program is not to have; each step holds until the process ends.

    Raises:
        OSError: the system refuses one of them: nothing may be run then.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def done(result: int, what: str) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")
        return result

    done(libc.prctl(_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        raise OSError("the process that started this one has gone")
    seconds, memory, file_bytes, files = limits
    for which, limit in (
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, files), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0),
    ):  # fmt: skip
        hard = resource.getrlimit(which)[1]
        possible = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (possible, possible))
    # struct __user_cap_header_struct of version 3, and no capability.
    none = ctypes.create_string_buffer(24)
    done(libc.capset(struct.pack("=Ii", 0x20080522, 0), none), "capset")
    done(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _restrict_files(libc, done, folders)
    buffer = ctypes.create_string_buffer(filter_, len(filter_))
    program = struct.pack("@HP", len(filter_) // 8, ctypes.addressof(buffer))
    done(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.c_char_p(program), 0, 0), "PR_SET_SECCOMP")


def _restrict_files(libc: Any, done: Callable[[int, str], int], folders: list[str]) -> None:
    """Have Landlock refuse all but reading the folders, and files in the working directory."""
    null, zero = ctypes.c_void_p(None), ctypes.c_size_t(0)
    version = done(libc.syscall(_CREATE_RULESET, null, zero, 1), "landlock_create_ruleset")
    handled = (1 << _KNOWN_BITS.get(version, 16)) - 1
    # From version 4 on it holds TCP (binding, connecting), from 6 on signals and abstract sockets.
    rules = struct.pack("=QQQ", handled, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = done(libc.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0), "landlock_create_ruleset")
    own = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE
    allowed = [(folder, _READ_FILE | _READ_DIR) for folder in folders]
    for path, rights in [*allowed, (".", own), (os.devnull, _READ_FILE | _WRITE_FILE | _TRUNCATE)]:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        is_folder = os.path.isdir(path)  # noqa: PTH112 - pathlib takes longer to import than all of this
        of_files = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
        rule = struct.pack("=Qi", rights & handled & (handled if is_folder else of_files), opened)
        done(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), "landlock_add_rule")
        os.close(opened)
    done(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
