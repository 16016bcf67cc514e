"""`tt upload`: what is built, what is checked, and what never leaves the machine."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from model_hub import Account, ModelHub
from peft import PeftModel
from run_files import write_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Tt = Callable[..., Any]
TOKEN = "hf_PlantedTokenOfTheUser0123456789"  # not a real one
PROMPT = [5, 6, 7, 8, 9, 10]


@pytest.fixture
def trained(tt: Tt, untied: str, tmp_path: Path) -> Path:
    """A short run on a tiny model, with a checkpoint."""
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": "yes"}] for q in ("a", "b c", "d e f g")]
    write_rows(tmp_path / "data.jsonl", [{"messages": row} for row in rows])
    options = ["--batch", 3, "--max-steps", 6, "--save-every", 3, "--learning-rate", "1e-2", "--rank", 4]
    found = tt("train", "--base-model", untied, "--data", "data.jsonl", "--run-name", "r", *options)
    assert found.code == 0, found.err
    return Path(found.out.strip())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits.float()  # type: ignore[no-any-return]


def test_an_adapter_is_built_and_shown(tt: Tt, untied: str, trained: Path) -> None:
    found = tt("upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run")
    assert found.code == 0, found.err
    folder = Path(found.out.strip())
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "loss.svg"}
    assert {p.name for p in folder.iterdir()} == names
    assert f"{folder}: 4 files" in found.err
    assert all(f"MB  {name}" in found.err for name in names)
    assert "nothing was sent" in found.err
    assert "checked: PEFT loads the adapter" in found.err
    base: Any = AutoModelForCausalLM.from_pretrained(untied)
    here = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untied), trained / "final_lora_weights")
    assert torch.equal(logits(PeftModel.from_pretrained(base, folder)), logits(here))


def test_nothing_of_this_machine_is_told(tt: Tt, untied: str, trained: Path, tmp_path: Path) -> None:
    found = tt("upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run", "--include-run")
    assert found.code == 0, found.err
    folder = Path(found.out.strip())
    assert {"tinkertools_run.json", "training_log.json"} <= {p.name for p in folder.iterdir()}
    for file in folder.iterdir():
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content, file
        assert str(Path(untied).parent).encode() not in content, file
    settings = json.loads((folder / "tinkertools_run.json").read_text())["config"]
    assert (settings["data"], settings["base_model"], settings["rank"]) == ("data.jsonl", Path(untied).name, 4)
    assert "base_url" not in settings
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == Path(untied).name


def test_the_card_says_how_it_was_trained_and_what_changed(tt: Tt, trained: Path) -> None:
    compared = tt("compare", trained, "--data", "data.jsonl", "--temperature", 0, "--max-tokens", 3)
    assert compared.code == 0, compared.err
    scores = json.loads(Path("comparison_results.json").read_text())["scores"]
    folder = Path(tt("upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run", "--license", "mit").out.strip())
    card = (folder / "README.md").read_text()
    head = card.split("---")[1]
    assert "library_name: peft" in head
    assert "license: mit" in head
    assert re.search(r"\| LoRA rank \| 4 \|", card)
    assert re.search(r"\| data \| data.jsonl \(3 conversations\) \|", card)
    assert f"{scores['base']['nll']:.4f} before, {scores['lora']['nll']:.4f} after" in card
    assert "| prompt | before | after |" in card
    assert 'PeftModel.from_pretrained(base, "me/it")' in card
    assert "`tt upload --merge` makes them): the adapter changes lm_head" in card
    assert "--lora-modules" not in card
    # Results of another adapter are not this one's.
    other = tt("upload", "--run", trained / "checkpoint_step_3", "--hf-repo-id", "me/it", "--dry-run")
    assert "before" not in (Path(other.out.strip()) / "README.md").read_text()


def test_a_base_model_elsewhere_is_not_fetched_for_an_adapter(tt: Tt, trained: Path) -> None:
    found = tt("upload", "--run", trained, "--base-model", "org/Base", "--dry-run")
    assert found.code == 0, found.err
    assert "org/Base is not on this machine: whether the adapter fits it was not checked" in found.err
    folder = Path(found.out.strip())
    assert "base_model: org/Base" in (folder / "README.md").read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/Base"


def test_a_key_stops_it(tt: Tt, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-planted-key-1234567890")
    file = trained / "config.json"
    file.write_text(file.read_text().replace('"created": "', '"created": "tml-planted-key-1234567890 '))
    found = tt("upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run", "--include-run")
    assert found.code == 1
    assert "holds keys or tokens: tinkertools_run.json:" in found.err
    assert "tml-planted" not in found.err + found.out


def test_merged_weights_answer_as_base_and_adapter(tt: Tt, untied: str, trained: Path) -> None:
    found = tt("upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run", "--merge")
    assert found.code == 0, found.err
    folder = Path(found.out.strip())
    assert "adapter_config.json" not in {p.name for p in folder.iterdir()}
    merged: Any = AutoModelForCausalLM.from_pretrained(folder)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untied), trained / "final_lora_weights")
    assert torch.allclose(logits(merged), logits(tuned), atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(untied).chat_template
    assert 'AutoModelForCausalLM.from_pretrained("me/it")' in (folder / "README.md").read_text()
    again = tt("upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run", "--merge")
    assert again.code == 0, again.err


def without_output_layer(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "lm_head" not in name}, file)


def test_what_servers_need_is_sent_with_merged_weights(tt: Tt, trained: Path) -> None:
    command = ["upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run", "--merge"]
    for exports in (["--export", "vllm", "--export", "ollama"], [], ["--export", "ollama"]):
        found = tt(*command, *exports)
        assert found.code == 0, found.err
        folder = Path(found.out.strip())
        for name, server in (("serve_vllm.sh", "vllm"), ("Modelfile", "ollama")):
            assert (f"MB  {name}" in found.err) == (server in exports)
    assert "exec vllm serve . --served-model-name it " in (folder / "serve_vllm.sh").read_text()
    assert (folder / "serve_vllm.sh").stat().st_mode & 0o111 == 0o111
    assert "Ollama's template writes conversations as the chat template does" in found.err
    assert "Ollama does not convert Qwen3ForCausalLM itself" in found.err
    text = (folder / "Modelfile").read_text()
    assert '\nTEMPLATE """{{ range ' in text
    assert '\nPARAMETER stop "<|im_end|>"\n' in text


def test_an_adapter_that_servers_would_not_serve_is_not_built_for_them(tt: Tt, trained: Path) -> None:
    command = ["upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run"]
    for server in ("vllm", "ollama"):
        found = tt(*command, "--export", server)
        assert found.code == 1
        assert f"--export {server}: the adapter changes lm_head" in found.err
        assert "--merge" in found.err
    assert not Path("uploads").exists()
    without_output_layer(trained / "final_lora_weights")
    found = tt(*command, "--export", "vllm")
    assert found.code == 0, found.err
    folder = Path(found.out.strip())
    assert "MB  serve_vllm.sh" in found.err
    assert "--enable-lora --max-lora-rank 8 --lora-modules it=. " in (folder / "serve_vllm.sh").read_text()
    assert "--enable-lora --max-lora-rank 8 --lora-modules it=me/it" in (folder / "README.md").read_text()
    found = tt(*command, "--export", "ollama")
    assert found.code == 1
    assert "does not take adapters of Qwen3ForCausalLM" in found.err


def test_a_key_in_what_servers_need_stops_it(tt: Tt, trained: Path, untied: str, tmp_path: Path) -> None:
    base = shutil.copytree(untied, tmp_path / "base")
    (base / "chat_template.jinja").write_text(f"{TOKEN} {(base / 'chat_template.jinja').read_text()}")
    options = ["--merge", "--export", "ollama", "--base-model", base]
    found = tt("upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run", *options)
    assert found.code == 1
    assert "Modelfile:" in found.err.partition("holds keys or tokens: ")[2]


def test_a_tensor_without_a_home_is_an_error(tt: Tt, trained: Path) -> None:
    file = trained / "final_lora_weights" / "adapter_model.safetensors"
    tensors = load_file(file)
    for side in "AB":
        name = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight"
        tensors[name.replace("q_proj", "qkv")] = tensors.pop(name)
    save_file(tensors, file)
    for kind in ("--merge", "--adapter-only"):
        found = tt("upload", "--run", trained, "--hf-repo-id", "me/it", "--dry-run", kind)
        assert found.code == 1
        assert "model.layers.0.self_attn.qkv.lora_A.weight" in found.err


def test_it_is_pushed_once(tt: Tt, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with ModelHub({TOKEN: Account("me")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        found = tt("upload", "--run", trained, "--hf-repo-id", "me/it")
        assert found.code == 0, found.err
        assert f"made the private repository {hub.url}/me/it" in found.err
        assert found.out.startswith(f"{hub.url}/me/it/commit/")
        again = tt("upload", "--run", trained, "--hf-repo-id", "me/it")
        assert again.code == 0, again.err
        assert "nothing to send" in again.err


def test_without_a_token_nothing_is_built(
    tt: Tt, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    found = tt("upload", "--run", trained, "--hf-repo-id", "me/it")
    assert found.code == 1
    assert "no Hugging Face token" in found.err
    assert not Path("uploads").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no --hf-repo-id"),
        (["--hf-repo-id", "nobody"], "nobody"),
        (["--dry-run", "--export", "tgi"], "--export tgi: no such server"),
        (["--run", "a", "--checkpoint-path", "b", "--dry-run"], "name two things"),
    ],
)
def test_wrong_usage(tt: Tt, arguments: list[str], words: str) -> None:
    found = tt("upload", *arguments)
    assert found.code == 2
    assert words in found.err
