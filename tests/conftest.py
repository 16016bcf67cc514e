"""What tests share: the command line in this process, a tiny model, and where real data are."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tinkertools.cli import build
from tinkertools.shipped import STARTER_MODEL

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

    from tinkertools.local import ServiceClient

# Several processes test at once: one thread each, or they wait for each other's. Torch is not imported yet.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Who starts tests in the background has them ignore Ctrl-C, and all that they start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Hubs are on the loopback here. Their library reads this once, when it is imported.
os.environ.pop("HF_HUB_OFFLINE", None)

# Examples take as long as the machine needs; what is asserted never depends on it.
settings.register_profile("tests", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parents[1]

# Servers are started and models made once for all files that ask for them: what several import by name would be made
# for each.
pytest_plugins = ["hub_fixtures", "judge_fixtures", "model_families", "server_fixtures"]

# One server is enough for all tests of these files.
_ON_ONE_WORKER = ("test_conformance.py", "test_skyrl.py", "test_skyrl_methods.py")


# What takes minutes begins first, so that no worker is left alone with it at the end.
_FIRST = (*_ON_ONE_WORKER, "test_quality.py", "test_main_job.py", "test_starter_script.py", "test_real_data.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the tests; and what asks SkyRL, which takes its time to compile, is slow."""
    items.sort(key=lambda item: item.path.name not in _FIRST)
    for item in items:
        if item.path.name in _ON_ONE_WORKER and item.get_closest_marker("long") is None:
            item.add_marker("slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Any test on any worker, but for files that need one worker. The plugin's marks for it are lost on pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", maxsplit=1)[0]
            return "one worker" if file.endswith(_ON_ONE_WORKER) else nodeid

    return Scheduler(config, log)


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, its data and its talk."""

    code: int
    out: str
    err: str

    @property
    def flat(self) -> str:
        """The talk without the line breaks of the terminal's width."""
        return " ".join(self.err.split())


Tt = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No server, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_API_BASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tt:
    """Run `tt` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            build()(args=[str(a) for a in arguments], prog_name="tt")
            code: object = 0
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return Result(int(str(code or 0)), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real datasets that do not ship."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real datasets are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def starter() -> str:
    """The starter model."""
    return str(STARTER_MODEL)


def make_tiny_model(seed: int = 0, **changes: object) -> "Qwen3ForCausalLM":
    """Random weights with everything that a larger model has: grouped heads, several layers, tied embeddings."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, object] = {
        "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
        "tie_word_embeddings": True, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    config = Qwen3Config(**(sizes | changes))  # type: ignore[arg-type]
    model = Qwen3ForCausalLM(config)
    # Larger weights than at initialisation: logits that differ, so that a wrong one shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.eval()
    return model


def save_model(model: "Qwen3ForCausalLM", folder: Path) -> str:
    """A model with the starter's tokenizer and chat template as a folder in Hugging Face's layout."""
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER_MODEL).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model of random weights in float32."""
    return save_model(make_tiny_model(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model whose steps need more memory than its process does."""
    model = make_tiny_model(
        hidden_size=128, intermediate_size=1024, num_hidden_layers=6, head_dim=32, max_position_embeddings=4096
    )
    return save_model(model, tmp_path_factory.mktemp("models") / "deep")


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with an output layer of its own: a random tied model only ever repeats its last token."""
    model = make_tiny_model(seed=1, tie_word_embeddings=False)
    return save_model(model, tmp_path_factory.mktemp("models") / "untied")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[ServiceClient]":
    """The embedded engine on the processor."""
    from tinkertools.local import ServiceClient

    with ServiceClient(store=tmp_path_factory.mktemp("store"), device="cpu") as client:
        yield client


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment for a `tt` in a process of its own: no key, no server."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("TINKER_", "HF_"))}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)
