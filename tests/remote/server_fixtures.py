"""A server that all tests of SkyRL share, and commands on the versions of the SDK that it understands."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import (
    KEPT,
    KEY,
    ROOT,
    SERVER,
    SURROUNDINGS,
    TOOLS,
    Ran,
    Run,
    Sdk,
    SkyRL,
    Start,
    ended,
    python_surroundings,
)


@pytest.fixture(scope="session")
def served(starter: str) -> str:
    """A small model that can answer, in bfloat16, its output layer tied to the input embedding."""
    return starter


@pytest.fixture(scope="session")
def skyrl(served: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SkyRL]:
    """A SkyRL server with that model. All that ask it run on one worker."""
    if not SERVER.is_file():
        pytest.skip(f"the script that starts SkyRL is not at {SERVER}")
    if not shutil.which("uv", path=TOOLS):
        pytest.skip("SkyRL is started by uv, which is not installed")
    if python_surroundings() is None:
        pytest.skip("SkyRL needs Python 3.12, and this machine has none")
    server = SkyRL(served, tmp_path_factory.mktemp("skyrl"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def sdk() -> Sdk:
    """A folder with one version of the SDK, for the front of PYTHONPATH. What it needs is installed already."""

    def folder_of(version: str) -> Path:
        folder = KEPT / "sdk" / version
        if folder.is_dir():
            return folder
        # Two workers may do this at once: the first that is ready wins.
        making = folder.with_name(f"{version}-{uuid.uuid4().hex}")
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(making), f"tinker=={version}"]
        done = subprocess.run(command, env=SURROUNDINGS, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(making, ignore_errors=True)
            pytest.skip(f"tinker=={version} cannot be installed: {done.stderr.strip()[-500:]}")
        try:
            making.rename(folder)
        except OSError:
            shutil.rmtree(making)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tt` runs, with the runs of all tests of this folder."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="session")
def start(sdk: Sdk, workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start `python ARGUMENTS` on a version of the SDK, with the planted key; None is the version installed."""
    cache = tmp_path_factory.mktemp("cache")

    def started(version: str | None, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
        own = {"TINKER_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(cache), "COLUMNS": "300"}
        own |= environment
        path = [str(ROOT), SURROUNDINGS.get("PYTHONPATH", "")]
        own["PYTHONPATH"] = os.pathsep.join([*([str(sdk(version))] if version else []), *filter(None, path)])
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=SURROUNDINGS | own, cwd=workplace, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return started


@pytest.fixture(scope="session")
def remote_tt(start: Start) -> Run:
    """Run `tt` on a version of the SDK to its end."""

    def run(version: str | None, *arguments: object) -> Ran:
        return ended(start(version, "-m", "tinkertools", *arguments))

    return run
