"""The data of a merged model's file, block by block: read and computed ahead by some threads, nothing held whole."""

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tinkertools.adapters.merge_plan import Piece, Shard
from tinkertools.adapters.tensor_files import BLOCK_BYTES, BLOCK_VALUES, TORCH_TYPES, bytes_of, fill, read_factor
from tinkertools.errors import ModelError

if TYPE_CHECKING:
    import torch

_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Work:
    """The factors of some rows of a weight, in float32: a (rank, in), b (rows, rank)."""

    a: "torch.Tensor"
    b: "torch.Tensor"
    scale: float


@dataclass(frozen=True)
class Block:
    """Some bytes of a merged tensor, `position` counted in its base's file; `work` where it has a delta."""

    piece: Piece
    path: Path
    position: int
    bytes: memoryview
    work: Work | None


def stream(shard: Shard, adapter: BinaryIO) -> Generator[Block, None, None]:
    """The data of a merged shard, in the file's order; each block is good until the next is asked for.

    Some threads read and compute ahead, each block in one of them: torch's own threads would wait for each other at
    every block, for long where other processes keep the processor busy.
    """
    import torch

    threads = torch.get_num_threads()
    widest = max((piece.source.shape[1] for piece in shard.pieces if piece.delta), default=0)
    buffers = [_Buffer(max(BLOCK_VALUES, widest)) for _ in range(_WORKERS + 2)]
    with ThreadPoolExecutor(_WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ahead: deque[tuple[_Buffer, Future[Block]]] = deque()
        try:
            torch.set_num_threads(1)
            for piece, position, length, work in _block_parts(shard, adapter):
                if not buffers:
                    buffer, block = ahead.popleft()
                    yield block.result()
                    buffers.append(buffer)
                buffer = buffers.pop()
                ahead.append((buffer, pool.submit(_compute, piece, shard.source, position, length, work, buffer)))
            for _, block in ahead:
                yield block.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


class _Buffer:
    """Memory for one block: as bytes of the file, and in float32."""

    def __init__(self, values: int) -> None:
        import torch

        self.raw = torch.empty(values * 4, dtype=torch.uint8)
        self.wide = torch.empty(values, dtype=torch.float32)


def _block_parts(shard: Shard, adapter: BinaryIO) -> Iterator[tuple[Piece, int, int, Work | None]]:
    """What each block of a shard is of: its tensor, place and length in the base's file, and what is added."""
    for piece in shard.pieces:
        tensor = piece.source
        if piece.delta is None:
            for position in range(tensor.start, tensor.end, BLOCK_BYTES):
                yield piece, position, min(BLOCK_BYTES, tensor.end - position), None
            continue
        a, b = read_factor(adapter, piece.delta.a), read_factor(adapter, piece.delta.b)
        rows = max(1, BLOCK_VALUES // max(1, tensor.shape[1]))
        row_bytes = tensor.bytes // max(1, tensor.shape[0])
        for row in range(0, tensor.shape[0], rows):
            work = Work(a, b[row : row + rows], piece.delta.scale)
            yield piece, tensor.start + row * row_bytes, len(work.b) * row_bytes, work


def _compute(piece: Piece, path: Path, position: int, length: int, work: Work | None, buffer: _Buffer) -> Block:
    import torch

    raw = buffer.raw[:length]
    block = Block(piece, path, position, bytes_of(raw), work)
    with path.open("rb", buffering=0) as source:
        source.seek(position)
        fill(source, block.bytes)
    if work:
        weight = raw.view(getattr(torch, TORCH_TYPES[piece.source.dtype])).view(len(work.b), -1)
        wide = buffer.wide[: weight.numel()].view(weight.shape)
        weight.copy_(wide.copy_(weight).addmm_(work.b, work.a, alpha=work.scale))
        if weight.dtype == torch.float16 and not weight.isfinite().all():
            raise ModelError(
                f"{piece.name} with its delta is beyond what float16 can hold",
                hint="name the base model in bfloat16 or float32",
            )
    return block


def within_rounding(block: Block, work: Work, found: memoryview) -> bool:
    """Whether a block is what some order of float32 sums gives: another processor adds in another order.

    A sum of n products in float32 is off by at most n · 2^-24 times the sum of their absolute values (Higham, Accuracy
    and Stability of Numerical Algorithms, 3.1); rounding to the weight's type keeps the order of the two bounds.
    """
    import torch

    dtype = getattr(torch, TORCH_TYPES[block.piece.source.dtype])
    values = torch.frombuffer(found, dtype=dtype).view(len(work.b), -1)
    base = torch.empty_like(values)
    with block.path.open("rb") as source:
        source.seek(block.position)
        fill(source, bytes_of(base))
    a, b = work.a.double(), work.b.double()
    exact = base.double() + work.scale * (b @ a)
    sizes = base.double().abs() + abs(work.scale) * (b.abs() @ a.abs())
    error = (len(a) + 2) * 2.0**-24 * sizes
    return bool((((exact - error).to(dtype) <= values) & (values <= (exact + error).to(dtype))).all())
