"""The filter of system calls, as the kernel would run it, on both machines."""

import struct

import pytest

from tinkertools.rewards.sandbox import policy

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the filter says of a call: an interpreter of the few instructions that it has."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, audit or AUDIT[machine], 0, *words)
    code = list(struct.iter_unpack("=HBBI", policy.seccomp_filter(machine)))
    at, value = 0, 0
    while True:
        operation, true, false, k = code[at]
        at += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        elif operation == 0x54:
            value &= k
        elif operation == 0x15:
            at += true if value == k else false
        elif operation == 0x35:
            at += true if value >= k else false
        else:
            assert operation == 0x06
            return int(k)


NULL, POINTER, HIGH = 0, 0x7FFF00001000, 0x7FFF << 32


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("numbers", "arguments", "decision"),
    [
        ((0, 63), (), ALLOW),  # read
        ((231, 94), (0,), ALLOW),  # exit_group
        ((59, 221), (), EPERM),  # execve
        ((62, 129), (1, 9), EPERM),  # kill
        ((41, 198), (2, 1, 0), EPERM),  # socket
        ((42, 203), (), EPERM),  # connect
        ((101, 117), (16,), EPERM),  # ptrace
        ((425, 425), (), EPERM),  # io_uring_setup
        ((435, 435), (), ENOSYS),  # clone3
        ((56, 220), (17,), EPERM),  # clone with SIGCHLD: a process
        ((56, 220), (0x3D0F00,), ALLOW),  # as threads are made
        ((257, 56), (0, POINTER, 0o1000), EPERM),  # openat: O_RDONLY | O_TRUNC
        ((257, 56), (0, POINTER, 0o1101), ALLOW),  # O_WRONLY | O_CREAT | O_TRUNC
        ((257, 56), (0, POINTER, 0), ALLOW),
        ((72, 25), (3, 8, 1), EPERM),  # fcntl: F_SETOWN
        ((72, 25), (3, 4, 0), ALLOW),  # F_SETFL
        ((16, 29), (0, 0x5412), EPERM),  # ioctl: TIOCSTI
        ((16, 29), (0, 0x5401), ALLOW),  # TCGETS
        ((302, 261), (0, 9, NULL, POINTER), ALLOW),  # prlimit64 that reads
        ((302, 261), (0, 9, POINTER, NULL), EPERM),
        ((302, 261), (0, 9, HIGH, NULL), EPERM),
        ((302, 261), (1, 9, NULL, POINTER), EPERM),
        ((53, 199), (1, 0x80801, 0), ALLOW),  # socketpair: AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK
        ((53, 199), (1, 2, 0), EPERM),
        ((44, 206), (3, POINTER, 1, 0, NULL), ALLOW),  # send
        ((44, 206), (3, POINTER, 1, 0, POINTER), EPERM),  # sendto
    ],
)
def test_the_filter_decides(machine: str, numbers: tuple[int, int], arguments: tuple[int, ...], decision: int) -> None:
    number = numbers[0] if machine == "x86_64" else numbers[1]
    assert decide(machine, number, *arguments) == decision
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
    assert decide(machine, number, *arguments, audit=AUDIT[other]) == KILL
    assert decide(machine, number | 0x40000000, *arguments) == KILL
