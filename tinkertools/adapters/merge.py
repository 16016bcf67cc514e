"""A LoRA adapter merged into its base model's files: W + scale · B A, one shard after another, nothing held whole.

`plan_merge` finds a home for every tensor before anything is written, `merge` writes the folder, `verify_merge` reads
it back. A weight W is (out, in), A is (rank, in), B is (out, rank); scale is lora_alpha / rank, or lora_alpha / √rank
with `use_rslora` (https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2312.03732). The arithmetic is in float32
and is rounded once, to the type of the base's weight.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson

from tinkertools.adapters.merge_blocks import stream, within_rounding
from tinkertools.adapters.merge_plan import INDEX, SINGLE_SHARD, MergePlan, listed, plan_merge
from tinkertools.adapters.peft_files import ADAPTER_WEIGHTS
from tinkertools.adapters.tensor_files import BLOCK_BYTES, fill, read_tensor_file
from tinkertools.errors import FileError, ModelError, RunError
from tinkertools.files import AGAIN, explain_os_errors, whole_file, write_bytes
from tinkertools.reporting import Report

__all__ = ["INDEX", "MERGE_STATE", "SINGLE_SHARD", "MergePlan", "merge", "plan_merge", "verify_merge"]

# Stays in the folder, so that the same merge run again finds what is finished; it is no part of the model.
MERGE_STATE = ".merge_state.json"


def merge(plan: MergePlan, out: Path, report: Report) -> None:
    """Write the merged model's folder; what an interrupted merge of the same inputs finished is not written again.

    `report` is told how many of the plan's `bytes_needed` are done. A shard appears whole or not at all.

    Raises:
        FileError: `out` holds other files, the disk has no room, or the file system refused.
        ModelError: a weight in float16 grows beyond what float16 can hold.
    """
    with explain_os_errors(out):
        finished = _prepare(plan, out)
    done = 0
    with (plan.adapter / ADAPTER_WEIGHTS).open("rb") as adapter:
        for shard in plan.shards:
            path = out / shard.name
            if finished.get(shard.name) == _stamp(path):
                done += shard.bytes
                report(done, f"{shard.name} is there")
                continue
            with (
                whole_file(path) as file,
                closing(stream(shard, adapter)) as blocks,
                ThreadPoolExecutor(1) as flusher,
            ):
                file.write(shard.head)
                done += len(shard.head)
                flushing = flusher.submit(os.fsync, file.fileno())
                for block in blocks:
                    file.write(block.bytes)
                    done += len(block.bytes)
                    report(done, shard.name)
                    if flushing.done():
                        # The disk works while the processor does, not after it.
                        flushing.result()
                        flushing = flusher.submit(os.fsync, file.fileno())
                flushing.result()
            finished[shard.name] = _stamp(path)
            _write_state(plan, out, finished)
    for name, content in plan.files.items():
        write_bytes(out / name, content)
    report(plan.bytes_needed, "merged")


def verify_merge(plan: MergePlan, out: Path) -> None:
    """Read a merged folder back, tensor by tensor, against its base and its adapter.

    Every pair of the adapter is in one weight of the plan; each such weight is what is computed again, to the last bit
    or within the error bound of float32; all other tensors, the names, types, shapes and small files are the same
    bytes; the index is right.

    Raises:
        ModelError: something is not: the first that is not is named.
        RunError: the adapter has a tensor that the plan does nothing with.
    """
    again = "download the adapter again"
    unused = {tensor.name for tensor in read_tensor_file(plan.adapter / ADAPTER_WEIGHTS, RunError, again).tensors}
    unused -= plan.copies
    for piece in (piece for shard in plan.shards for piece in shard.pieces):
        if piece.delta:
            unused -= {piece.delta.a.name, piece.delta.b.name}
    if unused:
        raise RunError(f"the merge leaves out {listed(unused)} of {plan.adapter}", hint="plan it again")
    expected = {shard.name for shard in plan.shards}
    for path in sorted(out.glob("*.safetensors")):
        if path.name not in expected:
            _wrong(out, f"{path.name} is no file of the merged model")
    for name, content in plan.files.items():
        with explain_os_errors(out / name):
            if (out / name).read_bytes() != content:
                _wrong(out, f"{name} is not what was written")
    with (plan.adapter / ADAPTER_WEIGHTS).open("rb") as adapter:
        for shard in plan.shards:
            path = out / shard.name
            with (
                explain_os_errors(path),
                path.open("rb", buffering=0) as file,
                closing(stream(shard, adapter)) as blocks,
            ):
                if os.fstat(file.fileno()).st_size != shard.bytes or file.read(len(shard.head)) != shard.head:
                    _wrong(out, f"{shard.name} holds other tensors, or is cut short")
                found = bytearray(BLOCK_BYTES)
                for block in blocks:
                    found = found if len(block.bytes) <= len(found) else bytearray(len(block.bytes))
                    values = memoryview(found)[: len(block.bytes)]
                    fill(file, values)
                    if not np.array_equal(values, block.bytes) and not (
                        block.work and within_rounding(block, block.work, values)
                    ):
                        what = "the base's weight with its delta" if block.work else "the base's tensor"
                        _wrong(out, f"{block.piece.name} in {shard.name} is not {what}")


# The folder


def _prepare(plan: MergePlan, out: Path) -> dict[str, list[int]]:
    """Make `out` ready: the stamps of the shards that are finished there."""
    for name, inputs in (("base model", plan.base), ("adapter", plan.adapter)):
        if out.resolve() == inputs.resolve():
            raise FileError(f"{out} is the {name} itself", hint="name another folder for the merged model")
    state: dict[str, Any] = {}
    if (out / MERGE_STATE).is_file():
        with suppress(ValueError):
            state = orjson.loads((out / MERGE_STATE).read_bytes())
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(f"{out} holds other files", hint="name a new or an empty folder for the merged model")
    if not isinstance(state, dict) or state.get("fingerprint") != plan.fingerprint:
        for name in state.get("files", []) if isinstance(state, dict) else []:
            (out / Path(str(name)).name).unlink(missing_ok=True)
        state = {}
    out.mkdir(parents=True, exist_ok=True)
    for shard in plan.shards:  # what a killed merge left
        for part in out.glob(f".{shard.name}.part-*"):
            part.unlink()
    finished = {
        s.name: stamp for s in plan.shards if (stamp := state.get("shards", {}).get(s.name)) == _stamp(out / s.name)
    }
    there = sum(shard.bytes for shard in plan.shards if shard.name in finished)
    replaced = sum((out / s.name).stat().st_size for s in plan.shards if (out / s.name).is_file()) - there
    free = shutil.disk_usage(out).free
    needed = plan.bytes_needed - there
    if free + replaced < needed:
        raise FileError(
            f"{out} has {free / 1e9:.2f} GB free, and the merged model needs {needed / 1e9:.2f} GB",
            hint=f"free some space{AGAIN}",
        )
    _write_state(plan, out, finished)
    return finished


def _stamp(path: Path) -> list[int]:
    """What tells that a file is still the one that was written; nothing of a file that is not there."""
    with suppress(OSError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return []


def _write_state(plan: MergePlan, out: Path, finished: dict[str, list[int]]) -> None:
    names = [*(shard.name for shard in plan.shards), *plan.files]
    state = {"fingerprint": plan.fingerprint, "files": names, "shards": finished}
    write_bytes(out / MERGE_STATE, orjson.dumps(state))


def _wrong(out: Path, problem: str) -> NoReturn:
    raise ModelError(f"the merged model in {out} is wrong: {problem}", hint=f"remove {out} and merge again")
