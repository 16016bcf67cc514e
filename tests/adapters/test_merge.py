"""The streaming merge against PEFT's `merge_and_unload`, and what it refuses."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import mostly_slow
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tinkertools.adapters import merge as merging
from tinkertools.adapters import merge_blocks, tensor_files
from tinkertools.adapters.merge import INDEX, MERGE_STATE, SINGLE_SHARD, MergePlan, merge, plan_merge, verify_merge
from tinkertools.errors import FileError, ModelError, RunError, TinkertoolsError

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UNEMBED = "base_model.model.model.unembed_tokens."
IDS = torch.arange(24).view(2, 12) * 5
# How far a value can be off after it was rounded to the type: half a unit in the last of 8, 11 and 24 bits.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def make_base(
    folder: Path,
    *,
    family: str = "qwen3",
    tied: bool,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    **sizes: int,
) -> Path:
    """A model of random weights as a folder, with a tokenizer's file, a card and weights in another format."""
    values: dict[str, Any] = {
        "vocab_size": 128, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
        "tie_word_embeddings": tied, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(3)
    model: Any = (
        Qwen3ForCausalLM(Qwen3Config(**(values | sizes)))
        if family == "qwen3"
        else LlamaForCausalLM(LlamaConfig(**(values | sizes)))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# A card")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    return folder


def make_adapter(
    folder: Path, base: Path, *, rank: int = 4, dtype: torch.dtype = torch.float32, output: bool, **config: Any
) -> Path:
    """An adapter of random factors as servers write it: the output layer is `unembed_tokens`."""
    model = untied(base)
    names = [*LAYERS, "lm_head"] if output else LAYERS
    settings: dict[str, Any] = {"r": rank, "lora_alpha": 32, "target_modules": names, "task_type": "CAUSAL_LM"}
    peft = get_peft_model(model, LoraConfig(**(settings | config)))
    peft.save_pretrained(str(folder), save_embedding_layers=False)
    tensors = load_file(folder / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        spread = 0.3 / math.sqrt(tensor.shape[1])
        tensors[name] = (torch.randn(tensor.shape, generator=generator) * spread).to(dtype)
    tensors = {name.replace("base_model.model.lm_head.", UNEMBED): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def untied(base: Path) -> Any:
    """The base in float32, its output layer a matrix of its own."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


def merged_by_peft(base: Path, adapter: Path, work: Path) -> Any:
    """The model that PEFT merges, all in float32."""
    copy = work / "for peft"
    shutil.copytree(adapter, copy)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors = {name.replace(UNEMBED, "base_model.model.lm_head."): t.float() for name, t in tensors.items()}
    save_file(tensors, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    return PeftModel.from_pretrained(untied(base), str(copy)).merge_and_unload()


def run(plan: MergePlan, out: Path) -> list[str]:
    """Merge; the notes that were reported."""
    notes: list[str] = []
    merge(plan, out, lambda done, note="": notes.append(note))
    return notes


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def check_against_peft(base: Path, adapter: Path, work: Path, *, output: bool, usual: bool = True) -> None:
    """Every weight is PEFT's, rounded once to the base's type; the logits are those of such weights.

    Of a model of `usual` shape they are near those without rounding, too.
    """
    plan = plan_merge(base, adapter)
    run(plan, work / "out")
    verify_merge(plan, work / "out")
    before, after = tensors_of(base), tensors_of(work / "out")
    reference = merged_by_peft(base, adapter, work)
    weights = reference.state_dict()
    dtype = before["model.embed_tokens.weight"].dtype
    was_tied = "lm_head.weight" not in before
    assert plan.untied == (was_tied and output)
    assert after.keys() == before.keys() | ({"lm_head.weight"} if plan.untied else set())
    for name, tensor in after.items():
        assert tensor.dtype == dtype
        changed = name.split(".")[-2] in LAYERS or (name == "lm_head.weight" and output)
        if changed:
            # Once rounded to the base's type; and PEFT's float32 sums are in another order.
            torch.testing.assert_close(tensor.float(), weights[name], rtol=ROUNDING[dtype] * 1.01, atol=2e-6)
            assert name not in before or raw(tensor) != raw(before[name])
        else:
            assert raw(tensor) == raw(before[name])
    loaded: Any = AutoModelForCausalLM.from_pretrained(work / "out", dtype=torch.float32)
    if output:
        assert not loaded.config.tie_word_embeddings
    torch.testing.assert_close(loaded.get_input_embeddings().weight, before["model.embed_tokens.weight"].float())
    with torch.no_grad():
        found, wanted, unmerged = loaded(IDS).logits, reference(IDS).logits, untied(base)(IDS).logits
        # Its model with weights that are rounded as the merged ones are.
        reference.load_state_dict({name: tensor.float() for name, tensor in after.items()}, strict=False)
        rounded = reference(IDS).logits
    torch.testing.assert_close(found, rounded, atol=1e-5, rtol=1e-4)
    if usual:
        # Some dozen roundings one after another, which mostly cancel; not where a norm is over a few values only.
        near = 16 * ROUNDING[dtype] * float(wanted.abs().max()) + 1e-5
        assert float((found - wanted).abs().max()) < near
        assert float((unmerged - wanted).abs().max()) > near


@pytest.mark.parametrize("output", [False, True], ids=["layers", "layers and output layer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "kind", mostly_slow([("qwen3", True), ("qwen3", False), ("llama", False), ("llama", True)], 2), ids=str
)
def test_merge_is_pefts(kind: tuple[str, bool], dtype: torch.dtype, output: bool, tmp_path: Path) -> None:
    family, tied = kind
    base = make_base(tmp_path / "base", family=family, tied=tied, dtype=dtype)
    adapter = make_adapter(tmp_path / "adapter", base, output=output)
    check_against_peft(base, adapter, tmp_path, output=output)


@settings(max_examples=12)
@given(
    rank=st.one_of(st.integers(1, 128), st.sampled_from([1, 128])),
    heads=st.integers(1, 3),
    wide=st.integers(1, 40),
    words=st.integers(120, 200),
    tied=st.booleans(),
    output=st.booleans(),
    base_type=st.sampled_from([torch.bfloat16, torch.float32]),
    adapter_type=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    rslora=st.booleans(),
)
def test_any_shape_merges_as_pefts_does(
    tmp_path_factory: pytest.TempPathFactory, rank: int, heads: int, wide: int, words: int, tied: bool, output: bool,
    base_type: torch.dtype, adapter_type: torch.dtype, rslora: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("shape")
    sizes: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": 8 * heads,
        "intermediate_size": wide,
        "num_attention_heads": heads,
    }
    base = make_base(folder / "base", tied=tied, dtype=base_type, **sizes)
    # A scale of 32 √rank / rank would drown the base: its logits then say nothing.
    adapter = make_adapter(
        folder / "adapter", base, rank=rank, dtype=adapter_type, output=output, use_rslora=rslora,
        lora_alpha=2 if rslora else 32,
    )  # fmt: skip
    check_against_peft(base, adapter, folder, output=output, usual=False)


def test_blocks_of_rows_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_blocks, "BLOCK_VALUES", 40)
    for module in (merge_blocks, merging, tensor_files):
        monkeypatch.setattr(module, "BLOCK_BYTES", 160)
    base = make_base(tmp_path / "base", tied=True, dtype=torch.bfloat16)
    check_against_peft(base, make_adapter(tmp_path / "adapter", base, output=True), tmp_path, output=True)


def test_copies_of_the_embeddings_are_no_deltas(tmp_path: Path) -> None:
    """PEFT writes them where the output layer has factors."""
    base = make_base(tmp_path / "base", tied=False)
    adapter = make_adapter(tmp_path / "adapter", base, output=True)
    before = tensors_of(base)
    copies = {
        "base_model.model.lm_head.base_layer.weight": before["lm_head.weight"],
        "base_model.model.model.embed_tokens.weight": before["model.embed_tokens.weight"],
    }
    rewrite(adapter, **copies)
    assert plan_merge(base, adapter).copies == copies.keys()
    check_against_peft(base, adapter, tmp_path, output=True)


def test_patterns_of_rank_and_alpha_are_pefts(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=False)
    patterns: dict[str, Any] = {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
        "alpha_pattern": {r"layers\.0\..*_proj": 5},
    }
    adapter = make_adapter(tmp_path / "adapter", base, output=False, **patterns)
    check_against_peft(base, adapter, tmp_path, output=False)


def sharded(folder: Path) -> tuple[Path, Path]:
    base = make_base(folder / "base", tied=True, dtype=torch.bfloat16, shard="5KB")
    return base, make_adapter(folder / "adapter", base, output=True)


def test_shards_are_those_of_the_base(tmp_path: Path) -> None:
    base, adapter = sharded(tmp_path)
    for name in ("LICENSE", "README.md", "modeling.py"):  # its terms go with the weights; its card and code do not
        (base / name).write_text(name)
    check_against_peft(base, adapter, tmp_path, output=True)
    out = tmp_path / "out"
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(file.name for file in out.iterdir()) == sorted(
        [MERGE_STATE, "LICENSE", "config.json", "generation_config.json", INDEX, "tokenizer.json", *shards]
    )
    index, before = json.loads((out / INDEX).read_text()), json.loads((base / INDEX).read_text())
    places = before["weight_map"]
    assert index["weight_map"] == places | {"lm_head.weight": places["model.embed_tokens.weight"]}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_of(out).values())
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in tensors_of(out).values())
    needed = sum(file.stat().st_size for file in out.iterdir())
    assert needed <= plan_merge(base, adapter).bytes_needed <= needed + 2**20


def test_a_merge_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    base, adapter = sharded(tmp_path)
    plan = plan_merge(base, adapter)
    run(plan, tmp_path / "whole")
    out, names = tmp_path / "out", [shard.name for shard in plan.shards]

    def stop(done: float, note: str = "") -> None:
        if note == names[2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(plan, out, stop)
    assert sorted(file.name for file in out.iterdir()) == sorted([MERGE_STATE, *names[:2]])
    (out / f".{names[2]}.part-1").write_bytes(b"of a process that was killed")
    kept = (out / names[0]).stat().st_ino
    notes = run(plan_merge(base, adapter), out)
    assert notes[:2] == [f"{name} is there" for name in names[:2]]
    assert set(names[2:]) < set(notes)
    assert (out / names[0]).stat().st_ino == kept
    for file in (tmp_path / "whole").iterdir():
        assert file.name == MERGE_STATE or (out / file.name).read_bytes() == file.read_bytes()
    assert len(list(out.iterdir())) == len(list((tmp_path / "whole").iterdir()))
    assert run(plan, out)[:-1] == [f"{name} is there" for name in names]


def test_another_adapter_begins_anew(tmp_path: Path) -> None:
    base, adapter = sharded(tmp_path)
    run(plan_merge(base, adapter), tmp_path / "out")
    other = make_adapter(tmp_path / "other", base, rank=3, output=False)
    plan = plan_merge(base, other)
    assert not any("is there" in note for note in run(plan, tmp_path / "out"))
    verify_merge(plan, tmp_path / "out")


def test_an_untied_text_model_inside_another(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, output=True)
    config = json.loads((base / "config.json").read_text())
    text = {"text_config": {"tie_word_embeddings": True, "hidden_size": 16}}
    (base / "config.json").write_text(json.dumps(config | text))
    written = json.loads(plan_merge(base, adapter).files["config.json"])
    assert written["tie_word_embeddings"] is written["text_config"]["tie_word_embeddings"] is False


def test_a_tied_base_with_a_stored_output_layer(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, output=True)
    tensors = tensors_of(base)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / SINGLE_SHARD, metadata={"format": "pt"})
    plan = plan_merge(base, adapter)
    assert plan.untied
    run(plan, tmp_path / "out")
    verify_merge(plan, tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert raw(after["model.embed_tokens.weight"]) == raw(tensors["model.embed_tokens.weight"])
    assert raw(after["lm_head.weight"]) != raw(tensors["lm_head.weight"])
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, base / SINGLE_SHARD, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head.weight is not its input embedding"):
        plan_merge(base, adapter)


def rewrite(adapter: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of an adapter by the end of their names' module: None removes."""
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file) | {name: tensor for name, tensor in changes.items() if tensor is not None}
    save_file({n: t for n, t in tensors.items() if n not in changes or changes[n] is not None}, file)


UP = "base_model.model.model.layers.{}.mlp.up_proj.lora_{}.weight"


def test_names_of_attention_without_self(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=False)
    adapter = make_adapter(tmp_path / "adapter", base, output=False)
    expected = plan_merge(base, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {n.replace(".self_attn.", ".attn."): t for n, t in tensors.items()}, adapter / "adapter_model.safetensors"
    )
    plan = plan_merge(base, adapter)
    run(plan, tmp_path / "out")
    verify_merge(plan, tmp_path / "out")
    assert {p.name for p in plan.shards[0].pieces if p.delta} == {p.name for p in expected.shards[0].pieces if p.delta}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model.model.model.layers.0.mlp.experts.w1.lora_A.weight": torch.ones(4, 4, 16)}, "experts.w1.lora_A"),
        ({"base_model.model.model.layers.0.mlp.gate_up_proj.lora_A.weight": torch.ones(4, 16),
          "base_model.model.model.layers.0.mlp.gate_up_proj.lora_B.weight": torch.ones(48, 4)},
         r"gate_up_proj.lora_A.weight, .*gate_up_proj.lora_B.weight has no weight in the base"),
        ({UP.format(0, "B"): None, UP.format(1, "B"): None},
         r"layers\.\{0,1\}\.mlp\.up_proj\.lora_A.weight stands alone"),
        ({UP.format(0, "B"): torch.ones(25, 4)}, r"layers\.0\.mlp\.up_proj.*\[25, 4\].*does not fit \[24, 16\]"),
        ({UP.format(0, "A"): torch.ones(5, 16)}, r"layers\.0\.mlp\.up_proj.*does not fit"),
        ({UP.format(0, "A"): torch.full((4, 16), torch.nan)}, r"up_proj.lora_A.weight .* NaN"),
        ({UP.format(0, "A"): torch.ones(4, 16, dtype=torch.int32)}, r"up_proj.lora_A.weight is of type I32"),
        ({"base_model.model.model.embed_tokens.lora_A.weight": torch.ones(4, 16),
          "base_model.model.model.embed_tokens.lora_B.weight": torch.ones(128, 4)}, "embed_tokens.* input embedding"),
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.ones(24)}, "vector is neither"),
        ({"base_model.model.model.embed_tokens.weight": torch.ones(128, 16)}, "embed_tokens.weight is neither"),
        ({UNEMBED + "lora_A.weight": torch.ones(4, 16), UNEMBED + "lora_B.weight": torch.ones(128, 4),
          "base_model.model.lm_head.lora_A.weight": torch.ones(4, 16),
          "base_model.model.lm_head.lora_B.weight": torch.ones(128, 4)}, "second pair"),
    ],
)  # fmt: skip
def test_tensors_without_a_home_are_named(changes: dict[str, torch.Tensor | None], words: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, output=False)
    rewrite(adapter, **changes)
    with pytest.raises(RunError, match=words):
        plan_merge(base, adapter)


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("bias", "lora_only"), ("modules_to_save", ["lm_head"]), ("fan_in_fan_out", True),
     ("peft_type", "IA3"), ("init_lora_weights", "pissa"), ("lora_bias", True), ("target_parameters", ["experts"])],
)  # fmt: skip
def test_what_is_more_than_lora_is_named(key: str, value: object, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, output=False)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(RunError, match=f"{key}="):
        plan_merge(base, adapter)


def test_quantized_weights_are_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=False)
    adapter = make_adapter(tmp_path / "adapter", base, output=False)
    tensors = tensors_of(base)
    name = "model.layers.1.mlp.up_proj.weight"
    for dtype in (torch.float8_e4m3fn, torch.int8):
        save_file(tensors | {name: tensors[name].to(dtype)}, base / SINGLE_SHARD, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=rf"{name} \((F8_E4M3|I8)\).* quantized"):
            plan_merge(base, adapter)


def test_an_overflow_of_float16_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=False, dtype=torch.float16)
    adapter = make_adapter(tmp_path / "adapter", base, output=False)
    rewrite(adapter, **{UP.format(0, "A"): torch.full((4, 16), 1e3), UP.format(0, "B"): torch.full((24, 4), 1e3)})
    with pytest.raises(ModelError, match=r"layers.0.mlp.up_proj.weight .* float16"):
        run(plan_merge(base, adapter), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_incomplete_bases_are_refused(tmp_path: Path) -> None:
    base, adapter = sharded(tmp_path)
    shard = sorted(base.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    for broken in (content[:-1], content[:5], b"", content + b"x"):
        shard.write_bytes(broken)
        with pytest.raises(ModelError, match=shard.name):
            plan_merge(base, adapter)
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        plan_merge(base, adapter)
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["x"] = "../x.safetensors"
    (base / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"\.\./x"):
        plan_merge(base, adapter)


def test_nothing_is_written_where_it_should_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = sharded(tmp_path)
    plan = plan_merge(base, adapter)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for out in (base, adapter, tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(FileError):
            run(plan, out)
    usage = shutil.disk_usage(tmp_path)._replace(free=plan.bytes_needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FileError, match=r"0\.00 GB free, and the merged model needs 0\.00 GB"):
        run(plan, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def damage(path: Path, name: str, byte: int = 1) -> None:
    """Flip some bits of a tensor's first value."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start = json.loads(content[8 : 8 + length])[name]["data_offsets"][0]
    content[8 + length + start + byte] ^= 0x18
    path.write_bytes(content)


def test_verification_notices_what_is_wrong(tmp_path: Path) -> None:
    base, adapter = sharded(tmp_path)
    plan, out = plan_merge(base, adapter), tmp_path / "out"
    run(plan, out)
    verify_merge(plan, out)
    places = json.loads((out / INDEX).read_text())["weight_map"]

    def notices(words: str, error: type[TinkertoolsError] = ModelError) -> None:
        with pytest.raises(error, match=words):
            verify_merge(plan, out)

    def mended(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        verify_merge(plan, out)

    for name in (
        "model.layers.0.mlp.up_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ):
        for byte in (0, 1):
            path = out / places[name]
            content = path.read_bytes()
            damage(path, name, byte)
            notices(name)
            mended(path, content)
    # A delta that was not added: the base's own shard, of the same header.
    up = out / places["model.layers.0.mlp.up_proj.weight"]
    content = up.read_bytes()
    up.write_bytes((base / up.name).read_bytes())
    notices("not the base's weight with its delta")
    mended(up, content)
    for path, broken in ((up, content[:-2]), (up, b""), (out / INDEX, b"{}"), (out / "config.json", b"{}")):
        content = path.read_bytes()
        path.write_bytes(broken)
        notices(path.name)
        path.unlink()
        notices(path.name, TinkertoolsError)
        mended(path, content)
    (out / "model-extra.safetensors").write_bytes(b"")
    notices("model-extra")


def test_verification_accounts_for_every_tensor_of_the_adapter(tmp_path: Path) -> None:
    base, adapter = sharded(tmp_path)
    smaller = make_adapter(tmp_path / "smaller", base, output=False)
    plan = plan_merge(base, smaller)
    run(plan, tmp_path / "out")
    shutil.copy(adapter / "adapter_model.safetensors", smaller)
    with pytest.raises(RunError, match="unembed_tokens"):
        verify_merge(plan, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_verification_allows_another_order_of_sums(dtype: torch.dtype, tmp_path: Path) -> None:
    """What another processor computes: in float64 here, then rounded twice."""
    base = make_base(tmp_path / "base", tied=False, dtype=dtype)
    adapter = make_adapter(tmp_path / "adapter", base, rank=64, output=False)
    plan, out = plan_merge(base, adapter), tmp_path / "out"
    run(plan, out)
    factors, after = load_file(adapter / "adapter_model.safetensors"), tensors_of(out)
    for name, weight in tensors_of(base).items():
        a = factors.get(f"base_model.model.{name}".replace(".weight", ".lora_A.weight"))
        if a is not None:
            b = factors[f"base_model.model.{name}".replace(".weight", ".lora_B.weight")]
            after[name] = (weight.double() + 32 / 64 * (b.double() @ a.double())).float().to(dtype)
    head = (out / SINGLE_SHARD).read_bytes()
    save_file(after, out / SINGLE_SHARD, metadata={"format": "pt"})
    assert (out / SINGLE_SHARD).read_bytes()[:64] == head[:64]
    verify_merge(plan, out)
