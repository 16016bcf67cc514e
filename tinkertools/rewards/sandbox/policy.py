"""What the kernel is asked to refuse to a program of a model: the system calls, as a seccomp filter, and the files.

Sources: the kernel's `Documentation/userspace-api/seccomp_filter.rst` and `landlock.rst`, and the tables of numbers in
`asm/unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64).
"""

import ctypes
import os
import platform
import struct
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Numbers of the calls that both machines may make, whatever their arguments. Not here, so refused: whatever makes or
# ends processes, reaches a network, changes owners, modes or times of files (which Landlock does not hold), makes
# directories or links, any rarer one (io_uring, bpf, ptrace, mount, keyctl, memfd_create, …), or one newer than this.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "lseek": (8, 62), "close": (3, 57),
    "close_range": (436, 436), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
    "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "ftruncate": (77, 46), "fallocate": (285, 47), "fsync": (74, 82), "fdatasync": (75, 83),
    "fadvise64": (221, 223), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None),
    "pipe2": (293, 59), "sendfile": (40, 71), "copy_file_range": (326, 285), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19), "recvfrom": (45, 207),
    "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205), "getsockopt": (55, 209),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "mincore": (27, 232), "membarrier": (324, 283), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "sigaltstack": (131, 132),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "pause": (34, None),
    "restart_syscall": (219, 128), "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "set_tid_address": (218, 96), "rseq": (334, 293), "arch_prctl": (158, None), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "exit": (60, 93), "exit_group": (231, 94), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "time": (201, None), "times": (100, 153), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160),
    "getrandom": (318, 278), "getrlimit": (97, 163), "umask": (95, 166), "getpid": (39, 172), "gettid": (186, 178),
    "getppid": (110, 173), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "getcpu": (309, 168),
}  # fmt: skip
_X86_64, _AARCH64 = 0, 1
_MACHINES = {"x86_64": (_X86_64, 0xC000003E), "aarch64": (_AARCH64, 0xC00000B7)}


@dataclass(frozen=True)
class _Word:
    """A condition: half of an argument, under a mask, is a value, or is not.

    Attributes:
        argument: which, from 0.
        value: what it is compared with.
        mask: the bits that are looked at.
        high: whether it is the upper half of the 64 bits.
        equal: False where the value is the one that is refused.
    """

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    high: bool = False
    equal: bool = True


def _is_null(argument: int) -> tuple[_Word, _Word]:
    return _Word(argument, 0), _Word(argument, 0, high=True)


_O_TRUNC, _O_ACCMODE = 0o1000, 0o3
_CLONE_THREAD = 0x10000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF
# Duplicates, flags and locks; not F_SETOWN, with which a pipe sends signals to any process of the user.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

# Calls that are allowed with some arguments: a list of ways, each of conditions that must all hold.
_WITH_ARGUMENTS: dict[str, tuple[tuple[int | None, int | None], list[tuple[_Word, ...]]]] = {
    # Landlock before Linux 6.2 lets a file that may only be read be emptied by opening it.
    "open": ((2, None), [(_Word(1, _O_TRUNC, _O_TRUNC | _O_ACCMODE, equal=False),)]),
    "openat": ((257, 56), [(_Word(2, _O_TRUNC, _O_TRUNC | _O_ACCMODE, equal=False),)]),
    "fcntl": ((72, 25), [(_Word(1, command),) for command in _FCNTL]),
    "ioctl": ((16, 29), [(_Word(1, command),) for command in _IOCTL]),
    # Threads, no processes.
    "clone": ((56, 220), [(_Word(0, _CLONE_THREAD, _CLONE_THREAD),)]),
    # Limits of its own may be read, and none changed.
    "prlimit64": ((302, 261), [(_Word(0, 0), *_is_null(2))]),
    # asyncio wakes itself through a pair of sockets, connected to each other and never to an address.
    "socketpair": ((53, 199), [(_Word(0, _AF_UNIX), _Word(1, _SOCK_STREAM, _SOCK_TYPE))]),
    "sendto": ((44, 206), [_is_null(4)]),
}
# Its flags are behind a pointer, which a filter cannot follow: "not there" has the C library fall back on clone.
_CLONE3 = 435

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
# x86_64 has a second set of numbers from here on.
_X32 = 0x40000000

_LANDLOCK_CREATE_RULESET, _LANDLOCK_VERSION = 444, 1
_SECCOMP_NUMBER = {"x86_64": 317, "aarch64": 277}
_SECCOMP_GET_ACTION_AVAIL = 2


@cache
def seccomp_filter(machine: str) -> bytes:
    """The filter as `struct sock_filter[]`: what is not allowed fails with EPERM.

    Args:
        machine: "x86_64" or "aarch64".
    """
    column, audit = _MACHINES[machine]
    code = [
        (_LOAD, 0, 0, _MACHINE_AT), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL),
        (_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS),
    ]  # fmt: skip
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for numbers, ways in _WITH_ARGUMENTS.values():
        if (number := numbers[column]) is not None:
            block = [one for way in ways for one in _way(way)] + [(_RETURN, 0, 0, _ERRNO | _EPERM)]
            code += [(_EQUAL, 0, len(block), number), *block]
    code.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def _way(conditions: tuple[_Word, ...]) -> list[tuple[int, int, int, int]]:
    """Allow the call where all conditions hold, else go on behind this."""
    code: list[tuple[int, int, int, int]] = []
    # Each condition takes three instructions, and the return one.
    for left, word in zip(range(len(conditions) - 1, -1, -1), conditions, strict=True):
        miss = 3 * left + 1
        held, failed = (0, miss) if word.equal else (miss, 0)
        code += [
            (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * word.argument + 4 * word.high),
            (_AND, 0, 0, word.mask),
            (_EQUAL, held, failed, word.value),
        ]
    return [*code, (_RETURN, 0, 0, _ALLOW)]


@cache
def readable() -> tuple[str, ...]:
    """What a program may read: Python's own files, the system's libraries, time zones and a few devices."""
    python = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("DESTSHARED")}
    python |= {str(Path(os.__file__).parent), str(Path(sys.base_prefix) / "lib"), str(Path(sys.base_prefix) / "lib64")}
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache"]
    devices = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
    found = [*sorted(filter(None, python)), *system, *devices]
    return tuple(path for path in found if Path(path).exists())


@cache
def missing() -> tuple[str, ...]:
    """The means of protection that this system does not have, in words; none where programs can be run."""
    if sys.platform != "linux":
        return (f"seccomp and Landlock, which are Linux's (this is {platform.system()})",)
    machine = platform.machine()
    if machine not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return (f"a seccomp filter for {machine} ({' and '.join(_MACHINES)} have one)",)
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    action = ctypes.c_uint32(_ERRNO)
    if libc.syscall(_SECCOMP_NUMBER[machine], _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action)) != 0:
        found.append("seccomp filters (CONFIG_SECCOMP_FILTER)")
    if libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION) < 1:
        found.append("Landlock (Linux 5.13 and later, with `landlock` among its security modules)")
    return tuple(found)
