"""Rendered data comes back as it was, and only for what it was rendered from."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkertools.chat import cache
from tinkertools.chat.conversations import Conversation
from tinkertools.chat.examples import Example, Image
from tinkertools.chat.rendering import RenderedData, load_renderer
from tinkertools.config import TrainOnWhat
from tinkertools.shipped import STARTER_MODEL


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def conversation(text: str = "a", **more: Any) -> Conversation:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}]
    return {"messages": messages, **more}  # type: ignore[typeddict-item]


def rendered(*sizes: int) -> RenderedData:
    examples = [
        Example(np.arange(size, dtype=np.int32), np.linspace(0, 1, size, dtype=np.float32)) for size in sizes
    ]  # fmt: skip
    return RenderedData(examples, np.arange(len(sizes), dtype=np.int32) // 2)


def test_what_is_kept_comes_back() -> None:
    path = cache.cache_folder() / "x.npz"
    assert cache.load(path) is None
    data = rendered(3, 1, 4)
    assert cache.save(path, data) is None
    found = cache.load(path)
    assert found is not None
    assert found.origins.tolist() == [0, 0, 1]
    for one, other in zip(found.examples, data.examples, strict=True):
        assert (one.tokens.dtype, one.weights.dtype) == (np.dtype(np.int32), np.dtype(np.float32))
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.weights.tolist() == other.weights.tolist()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip", b"no zip"])
def test_a_damaged_file_is_not_there(damage: bytes) -> None:
    path = cache.cache_folder() / "x.npz"
    cache.save(path, rendered(3))
    path.write_bytes(damage)
    assert cache.load(path) is None


def test_a_cut_file_is_not_there() -> None:
    path = cache.cache_folder() / "x.npz"
    cache.save(path, rendered(300))
    path.write_bytes(path.read_bytes()[:-50])
    assert cache.load(path) is None


def test_the_name_says_everything_that_decides() -> None:
    def name(what: TrainOnWhat = "ALL_ASSISTANT_MESSAGES", model: str = str(STARTER_MODEL), **more: Any) -> Path:
        data = cache.fingerprint([conversation(**more)])
        return cache.cache_file(data, load_renderer(model, "auto", what))

    names = [
        name(),
        name(text="c"),
        name(tools=[{"type": "function", "function": {"name": "f"}}]),
        name(what="LAST_ASSISTANT_MESSAGE"),
        name(model="Qwen/Qwen3-8B"),
        name(model="openai/gpt-oss-20b"),
    ]
    assert len(set(names)) == len(names)
    assert name() == names[0]
    # Where a conversation came from is not trained on.
    assert name(metadata={"source": "x.md"}) == names[0]


def test_another_chat_template_is_another_file(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(STARTER_MODEL, folder)
    before = cache.cache_file("data", load_renderer(str(folder)))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\\n", "assistant \\n"))
    assert cache.cache_file("data", load_renderer(str(folder))) != before


def test_other_code_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    folder = tmp_path / "chat"
    shutil.copytree(Path(cache.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "__file__", str(folder / "cache.py"))
    renderer = load_renderer(str(STARTER_MODEL), "auto", "ALL_ASSISTANT_MESSAGES")
    names = {cache.cache_file("data", renderer)}
    files = sorted(folder.rglob("*.py"))
    assert any(file.parent != folder for file in files)
    for file in files:
        file.write_text(file.read_text() + "\n")
        names.add(cache.cache_file("data", renderer))
    assert len(names) == 1 + len(files)


def test_only_the_last_used_are_kept() -> None:
    folder = cache.cache_folder()
    for number in range(9):
        cache.save(folder / f"{number}.npz", rendered(2))
        os.utime(folder / f"{number}.npz", (number, number))
    cache.load(folder / "2.npz")
    cache.save(folder / "new.npz", rendered(2))
    assert sorted(path.stem for path in folder.iterdir()) == ["2", "3", "4", "5", "6", "7", "8", "new"]


def test_why_data_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Example(np.zeros(2, np.int32), np.zeros(2, np.float32), (Image(0, 1, b"", "png"),))
    data = RenderedData([seen], np.zeros(1, np.int32))
    assert cache.save(cache.cache_folder() / "x.npz", data) == "data with images is not kept"
    file = cache.cache_folder().parent.parent / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    problem = cache.save(cache.cache_folder() / "x.npz", rendered(2))
    assert problem is not None and str(file) in problem
