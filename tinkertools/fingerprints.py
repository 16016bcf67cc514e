"""Fingerprints of what a run is made from, by which it is known again when the run goes on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import orjson

from tinkertools.config import Engine
from tinkertools.files import explain_os_errors

if TYPE_CHECKING:
    from tinkertools.chat.rendering import Renderer
    from tinkertools.runs.directory import Weights

# Of each tensor, this many bytes at its beginning and its end are read: to read a model of 16 GB takes a minute.
_SAMPLE = 4096
# What other files than safetensors are read of.
_SAMPLES = 64
# The length of a header, before it, in safetensors' own format.
_LENGTH = 8


def fingerprints(renderer: "Renderer", base_model: str, engine: Engine) -> dict[str, str | None]:
    """Of the tokenizer, the chat template, the renderer and the base model: those that there are.

    The vendor's renderers hold tokenizer and template; the name and version of theirs stand for both.
    """
    identity = renderer.identity
    found: dict[str, str | None] = {"renderer": identity["renderer"], "base_model": of_base_model(base_model, engine)}
    for name in ("tokenizer", "chat_template"):
        if name in identity:
            found[name] = _hash(identity[name].encode())
    return found


def of_weights(weights: "Weights") -> str:
    """The fingerprint of an adapter: of its file, or its path on a server."""
    from tinkertools.adapters.peft_files import ADAPTER_WEIGHTS

    directory = weights.directory
    if directory is None:
        return weights.name
    with explain_os_errors(directory), (directory / ADAPTER_WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_base_model(base_model: str, engine: Engine) -> str | None:
    """The fingerprint of a base model: its name on a server, the commit of what is in the Hub's cache, else its files'.

    Of a folder that is `config.json`, and of each file of weights the name, the size, the header, and the first and
    last bytes of every tensor: whatever training or conversion made of them shows there. None where nothing is known.
    """
    if engine == "tinker":
        return base_model
    folder = Path(base_model)
    if folder.is_dir():
        with explain_os_errors(folder):
            return _of_folder(folder)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(base_model, "config.json")
    return f"commit {Path(cached).parent.name}" if isinstance(cached, str) else None


def _of_folder(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for path in files:
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb", buffering=0) as file:
            places = _places_of_tensors(file, size) if path.suffix == ".safetensors" else _places(size)
            for start, length in places:
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _places_of_tensors(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """The header, and the beginning and end of each tensor, as start and length."""
    length = int.from_bytes(file.read(_LENGTH), "little")
    if _LENGTH + length > size:
        yield from _places(size)  # no safetensors: who loads it will say so
        return
    header = file.read(length)
    first = _LENGTH + length
    yield 0, first
    try:
        entries = [entry for name, entry in orjson.loads(header).items() if name != "__metadata__"]
        tensors = sorted((int(start), int(end)) for start, end in (entry["data_offsets"] for entry in entries))
    except (ValueError, KeyError, TypeError, AttributeError):
        yield from _places(size)
        return
    for start, end in tensors:
        yield first + start, min(_SAMPLE, end - start)
        yield first + max(start, end - _SAMPLE), min(_SAMPLE, end - start)


def _places(size: int) -> Iterator[tuple[int, int]]:
    """Samples all over a file."""
    for number in range(_SAMPLES):
        yield (max(0, size - _SAMPLE) * number) // (_SAMPLES - 1), _SAMPLE


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
