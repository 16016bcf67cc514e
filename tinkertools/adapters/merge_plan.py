"""What a merge will do, found and found possible before anything is written: a home for every tensor of an adapter."""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tinkertools.adapters.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tinkertools.adapters.tensor_files import (
    TORCH_TYPES,
    Tensor,
    TensorFile,
    blocks_of,
    make_head,
    read_factor,
    read_tensor_file,
)
from tinkertools.errors import ModelError, RunError
from tinkertools.files import explain_os_errors

CONFIG = "config.json"
SINGLE_SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What is taken over from the base as it is, its licence with it: neither its card, nor its code, nor weights in other
# formats.
COPIED_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "processor_config.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md", "USE_POLICY.md",
)  # fmt: skip

_OUTPUT_LAYER = "lm_head.weight"
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# PEFT writes the embeddings' own weights beside the factors of an output layer.
_COPY = re.compile(r"base_model\.model\.(?P<module>.+?)(?:\.base_layer)?\.weight")

# What in an adapter's configuration means more than W + scale · B A, where it is neither null, false nor empty.
_NOT_PLAIN = (
    "use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "layer_replication", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config",
)  # fmt: skip
# Beginnings that leave the base's weights as they are; the others (PiSSA, OLoRA, LoftQ, CorDA) change them too.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")

_VENDOR = (
    "fused layers and experts (gpt-oss, Qwen3.5's split projections, mixtures of experts) are for the vendor's "
    "`tinker-cookbook`; anything else wants the base model that the adapter was trained on"
)

# Room for the index, the state and what a file system needs for itself.
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Delta:
    """What is added to a weight: scale · B A."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class Piece:
    """A tensor of the merged model: the base's `source`, under its `name` there, with what is added to it."""

    name: str
    source: Tensor
    delta: Delta | None


@dataclass(frozen=True)
class Shard:
    """A file of the merged model: what stands before its data, and its tensors in the order of the file."""

    name: str
    source: Path
    head: bytes
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """How long the file will be."""
        return len(self.head) + sum(piece.source.bytes for piece in self.pieces)


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do: found, and found possible, before anything is written.

    `untied` says that the output layer becomes a tensor of its own; `bytes_needed` is what the merged folder takes on
    disk. `copies` are tensors of the adapter that only repeat the base's. `files` are its small files (all but weights)
    by name, and `fingerprint` stands for all inputs.
    """

    base: Path
    adapter: Path
    shards: tuple[Shard, ...]
    untied: bool
    bytes_needed: int
    copies: frozenset[str]
    files: dict[str, bytes]
    fingerprint: str


def plan_merge(base: Path, adapter: Path) -> MergePlan:
    """Find a home in the model at `base` for every tensor of the adapter, and what the merged folder will hold.

    Raises:
        ModelError: the base's files are incomplete or not readable, or hold a weight that cannot take a delta.
        RunError: the adapter is not readable, is more than plain LoRA, or has tensors without a home: all are named.
    """
    config = _read_object(base / CONFIG, ModelError, "name a folder with a model in Hugging Face's layout")
    files, index = _base_files(base)
    homes = {tensor.name: tensor for file in files for tensor in file.tensors}
    settings = _read_object(adapter / ADAPTER_CONFIG, RunError, "name a folder with an adapter in PEFT's layout")
    _refuse_more_than_lora(adapter, settings)
    weights = read_tensor_file(adapter / ADAPTER_WEIGHTS, RunError, "download the adapter again")

    embedding = _input_embedding(homes)
    # Without an output layer among its weights a model has the input embedding for it, unless it says otherwise.
    tied = _tied(config) is not False if _OUTPUT_LAYER not in homes else bool(_tied(config))
    if tied and embedding and _OUTPUT_LAYER not in homes:
        homes[_OUTPUT_LAYER] = embedding
    copies = _copies(weights, files, homes)
    deltas = _deltas(weights, settings, homes, embedding, copies)
    untied = tied and _OUTPUT_LAYER in deltas
    if untied and homes[_OUTPUT_LAYER] != embedding:
        _check_same(files, embedding, homes[_OUTPUT_LAYER])

    shards = tuple(
        _shard(file, deltas, embedding if untied and not _has(files, _OUTPUT_LAYER) else None) for file in files
    )
    with explain_os_errors(base):
        small = {name: (base / name).read_bytes() for name in COPIED_FILES if (base / name).is_file()}
        small[CONFIG] = _untied_config(config) if untied else (base / CONFIG).read_bytes()
    if index is not None:
        small[INDEX] = _index(index, shards)
    return MergePlan(
        base=base,
        adapter=adapter,
        shards=shards,
        untied=untied,
        bytes_needed=sum(shard.bytes for shard in shards) + sum(map(len, small.values())) + _SPARE_BYTES,
        copies=copies,
        files=small,
        fingerprint=_fingerprint(files, adapter, small),
    )


# What the base and the adapter hold


def _base_files(base: Path) -> tuple[list[TensorFile], dict[str, Any] | None]:
    """The headers of the base's shards, by name, and its index where it has one."""
    again = "download the base model again"
    index: dict[str, Any] | None = None
    names = [SINGLE_SHARD]
    if (base / INDEX).is_file():
        index = _read_object(base / INDEX, ModelError, again)
        places = index.get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ModelError(f"{base / INDEX} has no weight_map", hint=again)
        names = sorted(set(places.values()))
        if odd := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise ModelError(f"{base / INDEX} names {listed(odd)}, which is no shard beside it", hint=again)
    if missing := [name for name in names if not (base / name).is_file()]:
        raise ModelError(f"{base} has no {listed(missing)}", hint=f"{again}: its weights are needed as safetensors")
    files = [read_tensor_file(base / name, ModelError, again) for name in names]
    found: dict[str, str] = {}
    for file in files:
        for tensor in file.tensors:
            if tensor.name in found:
                raise ModelError(f"{tensor.name} is both in {found[tensor.name]} and in {file.path.name}", hint=again)
            found[tensor.name] = file.path.name
    if index is not None and (lost := sorted({name for name, _ in index["weight_map"].items() - found.items()})):
        raise ModelError(f"{listed(lost)} stands not where {base / INDEX} says", hint=again)
    return files, index


def _refuse_more_than_lora(adapter: Path, settings: dict[str, Any]) -> None:
    odd = [f"{key}={settings[key]!r}" for key in _NOT_PLAIN if settings.get(key)]
    if (kind := settings.get("peft_type", "LORA")) != "LORA":
        odd.append(f"peft_type={kind!r}")
    if (bias := settings.get("bias")) not in (None, "none"):
        odd.append(f"bias={bias!r}")
    if (beginning := settings.get("init_lora_weights")) not in _PLAIN_BEGINNINGS:
        odd.append(f"init_lora_weights={beginning!r}")
    if odd:
        raise RunError(
            f"{adapter / ADAPTER_CONFIG} says {', '.join(odd)}: that is more than plain LoRA, which is what is merged",
            hint="merge it with PEFT's merge_and_unload, or upload the adapter itself",
        )


def _deltas(
    weights: TensorFile,
    settings: dict[str, Any],
    homes: dict[str, Tensor],
    embedding: Tensor | None,
    copies: frozenset[str],
) -> dict[str, Delta]:
    """What is added to which tensor of the base, by its name.

    Raises:
        ModelError, RunError: a tensor has no home, or one that does not fit.
    """
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    problems: dict[str, list[str]] = defaultdict(list)
    for tensor in weights.tensors:
        match = _FACTOR.fullmatch(tensor.name)
        if tensor.name in copies:
            continue
        if not match:
            problems["is neither a lora_A or lora_B weight nor the base's own"].append(tensor.name)
        elif len(tensor.shape) != 2:
            problems[f"has {len(tensor.shape)} dimensions, where a linear layer's has 2"].append(tensor.name)
        elif tensor.dtype not in TORCH_TYPES:
            problems[f"is of type {tensor.dtype}"].append(tensor.name)
        else:
            pairs[match["module"]][match["factor"]] = tensor
    deltas: dict[str, Delta] = {}
    quantized: list[str] = []
    for module, pair in pairs.items():
        names = [tensor.name for tensor in pair.values()]
        home = _home(module, homes)
        if len(pair) != 2:
            problems["stands alone: A without B, or B without A"] += names
        elif home is None:
            problems["has no weight in the base"] += names
        elif home in deltas:
            problems["is a second pair for the same weight"] += names
        elif embedding and home == embedding.name:
            problems["belongs to the input embedding, which is no linear layer"] += names
        elif homes[home].dtype not in TORCH_TYPES:
            quantized.append(f"{home} ({homes[home].dtype})")
        else:
            a, b, weight = pair["A"], pair["B"], homes[home]
            if weight.shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1] or not a.shape[0]:
                shapes = f"B {list(b.shape)} times A {list(a.shape)} does not fit {list(weight.shape)}"
                problems[f"has another shape than its weight ({shapes})"] += names
            else:
                deltas[home] = Delta(a, b, _scale(settings, module, a.shape[0]))
    if problems:
        words = "; ".join(f"{listed(names)} {problem}" for problem, names in problems.items())
        raise RunError(f"{weights.path} cannot be merged: {words}", hint=_VENDOR)
    if quantized:
        raise ModelError(
            f"the base's {listed(quantized)} is quantized: a delta cannot be added to it",
            hint="name the base model in bfloat16, float16 or float32",
        )
    if not deltas:
        raise RunError(f"{weights.path} holds no tensors", hint="download the adapter again")
    _check_finite(weights, deltas.values())
    return deltas


def _home(module: str, homes: dict[str, Tensor]) -> str | None:
    """The weight of the base that a module of the adapter belongs to."""
    if module.rpartition(".")[2] in ("unembed_tokens", "lm_head"):
        names = [_OUTPUT_LAYER]
    else:
        names = [f"{module}.weight", f"{module}.weight".replace(".attn.", ".self_attn.")]
    return next((name for name in names if name in homes), None)


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """The factor of B A: PEFT's, which takes the first pattern that matches the end of the module's name."""
    alpha = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise RunError(f"the adapter's lora_alpha is {alpha!r}, not a number", hint="download the adapter again")
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _check_finite(weights: TensorFile, deltas: Iterable[Delta]) -> None:
    with weights.path.open("rb") as file:
        for tensor in (tensor for delta in deltas for tensor in (delta.a, delta.b)):
            if not read_factor(file, tensor).isfinite().all():
                raise RunError(
                    f"{tensor.name} of {weights.path} holds NaN or infinity: the training diverged",
                    hint="take an earlier checkpoint, or train again with a lower --learning-rate",
                )


def _input_embedding(homes: dict[str, Tensor]) -> Tensor | None:
    found = [tensor for name, tensor in homes.items() if name.endswith("embed_tokens.weight")]
    return found[0] if len(found) == 1 else None


def _tied(config: dict[str, Any]) -> bool | None:
    """Whether the output layer is the input embedding, where the configuration says so."""
    said = [part["tie_word_embeddings"] for part in _parts(config) if part.get("tie_word_embeddings") is not None]
    return any(said) if said else None


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    text = config.get("text_config")
    return [config, text] if isinstance(text, dict) else [config]


def _untied_config(config: dict[str, Any]) -> bytes:
    for part in _parts(config):
        part["tie_word_embeddings"] = False
    return orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _has(files: Iterable[TensorFile], name: str) -> bool:
    return any(tensor.name == name for file in files for tensor in file.tensors)


def _check_same(files: Iterable[TensorFile], embedding: Tensor | None, output: Tensor) -> None:
    """Refuse a base that says its output layer is the input embedding, but holds another one: it could be either."""
    paths = {tensor: file.path for file in files for tensor in file.tensors}
    if not embedding or not _same(paths[embedding], embedding, paths[output], output):
        raise ModelError(
            f"the base's {CONFIG} says tie_word_embeddings, but its {output.name} is not its input embedding",
            hint=f"set tie_word_embeddings in {CONFIG} to what the model was trained with",
        )


def _copies(weights: TensorFile, files: Iterable[TensorFile], homes: dict[str, Tensor]) -> frozenset[str]:
    """The tensors of the adapter that are the base's own, byte for byte: there is nothing to add."""
    paths = {tensor: file.path for file in files for tensor in file.tensors}
    found: set[str] = set()
    for tensor in weights.tensors:
        match = None if _FACTOR.fullmatch(tensor.name) else _COPY.fullmatch(tensor.name)
        home = homes.get(f"{match['module']}.weight") if match else None
        if home and _same(weights.path, tensor, paths[home], home):
            found.add(tensor.name)
    return frozenset(found)


def _same(path: Path, tensor: Tensor, other_path: Path, other: Tensor) -> bool:
    """Whether two tensors are the same, byte for byte."""
    if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
        return False
    blocks = zip(blocks_of(path, tensor), blocks_of(other_path, other), strict=True)
    return all(np.array_equal(first, second) for first, second in blocks)


# What the merged folder will hold


def _shard(file: TensorFile, deltas: dict[str, Delta], embedding: Tensor | None) -> Shard:
    """The merged file of a base's shard; after `embedding` it gets an output layer of its own."""
    pieces: list[Piece] = []
    for tensor in file.tensors:
        pieces.append(Piece(tensor.name, tensor, deltas.get(tensor.name)))
        if tensor == embedding:
            pieces.append(Piece(_OUTPUT_LAYER, tensor, deltas[_OUTPUT_LAYER]))
    head = file.head
    if len(pieces) > len(file.tensors):
        parts = ((piece.name, piece.source.dtype, piece.source.shape, piece.source.bytes) for piece in pieces)
        head = make_head(file.metadata, parts)
    return Shard(file.path.name, file.path, head, tuple(pieces))


def _index(index: dict[str, Any], shards: Iterable[Shard]) -> bytes:
    """The base's index, right for the merged shards: `total_size` is in bytes, `total_parameters` in values."""
    places = {piece.name: (shard.name, piece.source) for shard in shards for piece in shard.pieces}
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(tensor.bytes for _, tensor in places.values())
    if isinstance(metadata.get("total_parameters"), int):
        added = [tensor for name, (_, tensor) in places.items() if name not in index["weight_map"]]
        metadata["total_parameters"] += sum(math.prod(tensor.shape) for tensor in added)
    weight_map = {name: places[name][0] for name in sorted(places)}
    return orjson.dumps({"metadata": metadata, "weight_map": weight_map}, option=orjson.OPT_INDENT_2)


def _fingerprint(files: Iterable[TensorFile], adapter: Path, small: dict[str, bytes]) -> str:
    """What stands for all inputs: the base's shards by header, place and time, the rest by content."""
    found = hashlib.sha256()
    for file in files:
        status = file.path.stat()
        found.update(f"{file.path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode() + file.head)
    for name, content in sorted(small.items()):
        found.update(f"{name} {len(content)}\n".encode() + content)
    found.update((adapter / ADAPTER_CONFIG).read_bytes())
    with (adapter / ADAPTER_WEIGHTS).open("rb") as weights:
        return found.hexdigest() + hashlib.file_digest(weights, "sha256").hexdigest()


# Words


def _read_object(path: Path, error: Callable[..., Exception], hint: str) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as cause:
        raise error(f"{path} is not readable: {cause}", hint=hint) from cause
    if not isinstance(found, dict):
        raise error(f"{path} is not a JSON object", hint=hint)
    return found


def listed(names: Iterable[str]) -> str:
    """Every name, those of the same layer in several blocks together: `model.layers.{0,1,2}.mlp.up_proj.weight`."""
    numbers: dict[str, list[str]] = defaultdict(list)
    for name in names:
        match = re.search(r"\.(\d+)\.", name)
        shape = f"{name[: match.start(1)]}{{}}{name[match.end(1) :]}" if match else name
        numbers[shape].append(match[1] if match else "")
    return ", ".join(
        shape.replace("{}", found[0] if len(found) == 1 else f"{{{','.join(found)}}}", 1)
        for shape, found in numbers.items()
    )
