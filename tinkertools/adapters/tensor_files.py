"""The headers of safetensors files, read and written by hand, so that tensors can be streamed past.

The format, https://github.com/huggingface/safetensors#format: the header's length (8 bytes, little endian), the header
(JSON: `{NAME: {"dtype", "shape", "data_offsets": [start, end]}, "__metadata__": {…}}`), then the tensors' bytes without
holes, which the offsets count from the header's end.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from tinkertools.errors import ModelError, TinkertoolsError

if TYPE_CHECKING:
    import torch

# Bytes of one value.
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}

# What can be computed with, by its name in torch.
TORCH_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# How much is copied or computed at once: little enough for the processor's cache.
BLOCK_VALUES = 1 << 20
BLOCK_BYTES = 4 * BLOCK_VALUES

# No header is longer: the format's own limit.
_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Tensor:
    """Where a tensor stands: its bytes are those from `start` to `end` of its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """How long it is in its file."""
        return self.end - self.start


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file: what stands before its data (length and header), and its tensors in the file's order."""

    path: Path
    head: bytes
    metadata: dict[str, str]
    tensors: tuple[Tensor, ...]


def read_tensor_file(path: Path, error: type[TinkertoolsError], hint: str) -> TensorFile:
    """Read the header of a safetensors file, and check that its data are there.

    Raises:
        TinkertoolsError: of the class `error`, with `hint`: it is no such file, or cut short.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError("no header, or cut short")
            text = file.read(length)
        entries = orjson.loads(text)
        metadata = entries.pop(_METADATA, None) or {}
        tensors = sorted((_tensor(name, entry, 8 + length) for name, entry in entries.items()), key=_place)
        end = 8 + length
        for tensor in tensors:
            if tensor.start != end:
                raise ValueError(f"the place of {tensor.name} overlaps another's, or leaves a hole")
            end = tensor.end
        if end != size:
            raise ValueError(f"{size:,} bytes long where its header tells of {end:,}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise error(f"{path} is not readable as safetensors: {cause}", hint=hint) from cause
    return TensorFile(path, length.to_bytes(8, "little") + text, metadata, tuple(tensors))


def make_head(metadata: dict[str, str], tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """What stands before the data: `tensors` are names, types, shapes and lengths in bytes, in the data's order."""
    entries: dict[str, object] = {_METADATA: metadata} if metadata else {}
    end = 0
    for name, dtype, shape, length in tensors:
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + length]}
        end += length
    text = orjson.dumps(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _tensor(name: str, entry: dict[str, object], origin: int) -> Tensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise TypeError(f"{name} has no type, shape or place")
    if not all(isinstance(value, int) and value >= 0 for value in (*shape, *offsets)):
        raise TypeError(f"{name} has a shape or place that is none")
    start, end = offsets
    if end < start or (dtype in ITEM_BYTES and end - start != ITEM_BYTES[dtype] * math.prod(shape)):
        raise ValueError(f"the length of {name} does not fit its shape")
    return Tensor(name, dtype, tuple(shape), origin + start, origin + end)


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.start, tensor.end


def blocks_of(path: Path, tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes; each block is good until the next is asked for."""
    buffer = memoryview(bytearray(min(BLOCK_BYTES, tensor.bytes)))
    with path.open("rb", buffering=0) as source:
        source.seek(tensor.start)
        for position in range(tensor.start, tensor.end, BLOCK_BYTES):
            block = buffer[: tensor.end - position]
            fill(source, block)
            yield block


def fill(source: BinaryIO, block: memoryview) -> None:
    """Read a block whole.

    Raises:
        ModelError: the file ends before it.
    """
    while len(block):
        count = source.readinto(block)  # type: ignore[attr-defined]
        if not count:
            raise ModelError(f"{source.name} became shorter while it was read", hint="write or download it again")
        block = block[count:]


def bytes_of(tensor: "torch.Tensor") -> memoryview:
    """The memory of a tensor, to read a file into or to write to one."""
    import torch

    found: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(found)


def read_factor(file: BinaryIO, tensor: Tensor) -> "torch.Tensor":
    """A or B of an adapter in float32."""
    import torch

    found = torch.empty(tensor.shape, dtype=getattr(torch, TORCH_TYPES[tensor.dtype]))
    file.seek(tensor.start)
    fill(file, bytes_of(found))
    return found.float()
