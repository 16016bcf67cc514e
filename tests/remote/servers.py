"""What tests of real servers need: a server on this machine's CPU that can be stopped and started."""

import json
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT.parent / "shared" / "servers" / "skyrl.sh"

# Before tests change anything in it: what is installed and compiled for them is kept between runs.
SURROUNDINGS = {k: v for k, v in os.environ.items() if not k.startswith(("TINKER_", "HF_"))}
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinkertools-tests"

# Where programs are looked for: those that were installed with the tests come first.
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), SURROUNDINGS.get("PATH", os.defpath)])

# Servers of one's own take any key that begins so. It must never be seen again.
KEY = "tml-planted-key-1234567890"

# The newest SDK that SkyRL understands, and the oldest that `tt` does.
NEWEST, OLDEST = "0.24.1", "0.16.1"

# This machine computes in float32, to the digit what the model is. The server's bfloat16 goes as far as the
# likelihoods. Between 8 and 16, where the largest logits and the logarithms of their sums are, its steps are 1/16, and
# rounding is off by half a step at most. A logprob comes of two such roundings, and the layers before them may add as
# much again. Two logits further apart than that keep their order.
ROUNDED = 1 / 8
# The mean of many is less: 1/48 where two roundings are added. A scale that is wrong by a twentieth is off by 1/12.
ROUNDED_MEAN = 1 / 32

# Seconds until the server is up; its first start may download gigabytes.
START_SECONDS = 600
# Seconds that one command may take. No result depends on it.
COMMAND_SECONDS = 400


@dataclass(frozen=True)
class Ran:
    """What a command in a process of its own left."""

    code: int
    out: str
    err: str


Sdk = Callable[[str], Path]
Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., Ran]


def python_surroundings() -> dict[str, str] | None:
    """What leads the server's script to a Python 3.12, which SkyRL needs; None where this machine has none."""
    homes = (os.environ.get("HOME"), pwd.getpwuid(os.getuid()).pw_dir)
    roots = [os.environ.get("PYENV_ROOT"), *(f"{home}/.pyenv" for home in homes if home)]
    for root in filter(None, roots):
        if any(Path(root).glob("versions/3.12*/bin/python")):
            return {"PYENV_ROOT": root}
    uv = shutil.which("uv", path=TOOLS)
    found = uv and subprocess.run([uv, "python", "find", "3.12"], capture_output=True, check=False).returncode == 0
    return {} if found else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def is_taken(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class SkyRL:
    """A server that can be stopped in the middle of anything, and started again where it was."""

    model: str
    work: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it has loaded its model."""
        log = self.work / "server.log"
        kept = {
            # The first step of each shape takes seconds to compile, at each start anew.
            "JAX_COMPILATION_CACHE_DIR": str(KEPT / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "HF_HUB_OFFLINE": "1",
            # Lines of the log are not broken.
            "COLUMNS": "300",
            # Certificates that a machine or its network brings count for uv as they do for pip.
            "UV_SYSTEM_CERTS": "1",
            "PATH": TOOLS,
            **(python_surroundings() or {}),
        }
        with log.open("ab") as output:
            seen = output.tell()
            self.process = subprocess.Popen(
                ["bash", str(SERVER), self.model, str(self.port), str(self.work)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=SURROUNDINGS | kept, cwd=self.work, start_new_session=True,
            )  # fmt: skip
        given_up = time.monotonic() + START_SECONDS
        while not (b"Starting background engine" in log.read_bytes()[seen:] and self.answers()):
            if self.process.poll() is not None or time.monotonic() > given_up:
                self.stop()
                pytest.fail(f"the server did not start:\n{log.read_text()[-5000:]}")
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/api/v1/healthz", timeout=5).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """Kill all of it at once."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        while is_taken(self.port):
            time.sleep(0.05)

    def requests(self, model: str) -> list[tuple[str, dict[str, Any]]]:
        """What the server has done to a model, in order: kind and contents. What it has not done is left out."""
        with closing(sqlite3.connect(f"file:{self.work / 'tinker.db'}?mode=ro", uri=True, timeout=60)) as database:
            rows = database.execute(
                "SELECT request_type, request_data FROM futures WHERE model_id = ? AND status = 'COMPLETED' "
                "ORDER BY request_id",
                [model],
            ).fetchall()
        return [(kind, json.loads(contents)) for kind, contents in rows]


def ended(process: "subprocess.Popen[str]") -> Ran:
    """What a command left; the key is never in it."""
    try:
        out, err = process.communicate(timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"no end in {COMMAND_SECONDS} s:\n{out}{err}")
    assert KEY not in out + err
    return Ran(process.returncode, out, err)


def until_state(run: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a run has recorded a state to go on from."""
    given_up = time.monotonic() + COMMAND_SECONDS
    while not (run / "training_state" / "state.json").is_file():
        if process.poll() is not None or time.monotonic() > given_up:
            process.kill()
            pytest.fail(f"no state: {process.communicate()}")
        time.sleep(0.02)
