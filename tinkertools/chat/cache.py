"""Rendered data kept between runs, so that unchanged data is not tokenised again."""

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson

from tinkertools import __version__
from tinkertools.chat.examples import Example
from tinkertools.chat.rendering import RenderedData, Renderer
from tinkertools.errors import FileError
from tinkertools.files import whole_file

# How many sets of rendered data are kept: the last ones used.
_KEPT = 8


def cache_folder() -> Path:
    """Where rendered data is kept: `tinkertools/tokens` under XDG_CACHE_HOME, or under `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tinkertools" / "tokens"


def fingerprint(rows: Sequence[Mapping[str, object]]) -> str:
    """A hash of what is trained on, whatever file it came from."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        line = {key: value for key, value in row.items() if key != "metadata"}
        digest.update(orjson.dumps(line, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))
    return digest.hexdigest()


def cache_file(data_fingerprint: str, renderer: Renderer) -> Path:
    """The file of these data under this renderer: its name is a hash of everything that decides what is in it."""
    digest = hashlib.blake2b(digest_size=16)
    packages = ("tokenizers", "transformers", "tml-renderers")
    parts = [data_fingerprint, __version__, *map(version, packages), *renderer.identity.values()]
    for code in sorted(Path(__file__).parent.rglob("*.py")):
        parts.append(hashlib.blake2b(code.read_bytes()).hexdigest())
    for part in parts:
        digest.update(part.encode() + b"\0")
    return cache_folder() / f"{digest.hexdigest()}.npz"


def load(path: Path) -> RenderedData | None:
    """What `save` kept, or None where there is nothing, or nothing whole."""
    try:
        with np.load(path) as kept:
            tokens, weights, lengths, origins = (kept[name] for name in ("tokens", "weights", "lengths", "origins"))
        os.utime(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    ends = np.concatenate(([0], np.cumsum(lengths))).tolist()
    return RenderedData([Example(tokens[a:b], weights[a:b]) for a, b in pairwise(ends)], origins)


def save(path: Path, data: RenderedData) -> str | None:
    """Keep rendered data; the oldest make room. Returns why not, where that could not be done."""
    if any(example.images for example in data.examples):
        return "data with images is not kept"
    tokens = [example.tokens for example in data.examples]
    weights = [example.weights for example in data.examples]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(
                file,
                tokens=np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
                weights=np.concatenate(weights) if weights else np.zeros(0, np.float32),
                lengths=np.asarray([len(t) for t in tokens], np.int64),
                origins=data.origins,
            )
        kept = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for old in kept[_KEPT:]:
            old.unlink(missing_ok=True)
    except (OSError, FileError) as error:
        return str(error)
    return None
