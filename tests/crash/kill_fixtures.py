"""One fork server and one uninterrupted run for all tests of kills in this process."""

from collections.abc import Iterator

import pytest
from killing import ForkServer, Straight, fork_server, run_straight


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with fork_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def straight(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """A run that nothing happened to."""
    return run_straight(server, tmp_path_factory.mktemp("straight"))
