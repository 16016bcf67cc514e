"""Archives from a server: unpacked inside their folder or not at all, and made loadable."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tinkertools.adapters.peft_files import make_loadable
from tinkertools.errors import EngineError, RunError
from tinkertools.remote.download import inside, unpack


def archive_of(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as opened:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_plain_files_and_folders(tmp_path: Path, mode: str) -> None:
    parts = [(member("", tarfile.DIRTYPE), b""), (member("./a.json"), b"{}"), (member("in/b"), b"x" * 3_000_000)]
    archive = archive_of(tmp_path / "a.tar", *parts, mode=mode)
    folder = tmp_path / "out"
    folder.mkdir()
    unpack(archive, folder)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {"a.json": b"{}", "in/b": b"x" * 3_000_000}


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil"),
        member("/etc/evil"),
        member("a/../../evil"),
        member("a\\..\\evil"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("hard", tarfile.LNKTYPE, "a.json"),
        member("pipe", tarfile.FIFOTYPE),
        member("dev", tarfile.CHRTYPE),
    ],
    ids=lambda info: info.name,
)
def test_nothing_leaves_the_folder_and_nothing_links(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    archive = archive_of(tmp_path / "a.tar", (bad, b"evil" if bad.isreg() else b""))
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    with pytest.raises(EngineError, match="nothing of it was used"):
        unpack(archive, folder)
    assert [p for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()] == [archive]


@given(st.text(alphabet="./\\a~: \0", max_size=12))
def test_every_name_that_is_taken_lies_inside(name: str) -> None:
    root = Path("/root/folder")
    try:
        path = inside(name)
    except EngineError:
        return
    assert (root / path).resolve().is_relative_to(root)
    assert (root / path).resolve() != root


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinkertools.remote.download._LARGEST", 1000)
    archive = archive_of(tmp_path / "a.tar", (member("small"), b"x" * 600), (member("more"), b"x" * 600))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(EngineError, match="unpacks to more than"):
        unpack(archive, folder)
    assert not (folder / "more").exists()


def test_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    whole = archive_of(tmp_path / "a.tar", (member("a"), bytes(range(256)) * 4000)).read_bytes()
    for content in (b"", b"<html>", whole[: len(whole) // 2]):
        broken = tmp_path / "broken.tar"
        broken.write_bytes(content)
        folder = tmp_path / f"out{len(content)}"
        folder.mkdir()
        with pytest.raises((tarfile.TarError, EOFError, OSError)):
            unpack(broken, folder)


def adapter(folder: Path, names: list[str], config: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_a_servers_adapter_becomes_one_that_peft_loads(tmp_path: Path, targets: str | None) -> None:
    names = [
        f"base_model.model.model.{layer}.lora_{side}.weight"
        for layer in ("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj", "unembed_tokens")
        for side in "AB"
    ]
    folder = adapter(tmp_path / "a", names, {"r": 2, "lora_alpha": 32, "target_modules": targets})
    make_loadable(folder, "Qwen/Qwen3-8B")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config == {
        "base_model_name_or_path": "Qwen/Qwen3-8B",
        "inference_mode": True,
        "lora_alpha": 32,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["lm_head", "q_proj", "up_proj"],
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sorted(tensors) == sorted(n.replace("model.model.unembed_tokens", "model.lm_head") for n in names)
    assert float(tensors["base_model.model.lm_head.lora_B.weight"][0, 0]) == 5.0


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no LoRA weights"):
        make_loadable(adapter(tmp_path / "a", ["model.embed_tokens.weight"], {}), "m")
    broken = adapter(tmp_path / "b", ["x.q_proj.lora_A.weight"], {})
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match="not readable as an adapter"):
        make_loadable(broken, "m")
