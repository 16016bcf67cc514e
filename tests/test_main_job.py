"""The main job as it is promised: `tt train` with defaults on what ships, and what it must have changed."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinkertools import shipped

Tt = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[1]


def prompts_of(path: Path) -> set[str]:
    """The users' texts of a file of conversations."""
    text = path.read_text()
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return {m["content"] for row in rows for m in row["messages"] if m["role"] == "user"}


def test_the_starter_is_small() -> None:
    from transformers import AutoModelForCausalLM

    assert sum(p.stat().st_size for p in shipped.STARTER_MODEL.iterdir()) < 10_000_000
    model: Any = AutoModelForCausalLM.from_pretrained(shipped.STARTER_MODEL)
    assert model.num_parameters() <= 4_000_000
    assert model.config.model_type == "qwen3"


def test_held_out_questions_are_not_trained_on() -> None:
    trained = prompts_of(shipped.SAMPLE_TRAINING_DATA)
    for path in (shipped.SAMPLE_HELD_OUT_DATA, shipped.SAMPLE_PROMPTS):
        assert not prompts_of(path) & trained
    assert not prompts_of(shipped.SAMPLE_HELD_OUT_DATA) & prompts_of(shipped.SAMPLE_PROMPTS)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # minutes, where a machine is slow or shared
def test_train_with_defaults_changes_what_the_model_says(tt: Tt) -> None:
    trained = tt("train")
    assert trained.code == 0, trained.err
    assert "the starter model on this machine" in trained.err
    assert str(shipped.SAMPLE_TRAINING_DATA) in trained.err
    assert re.search(r"train: \d+/\d+ steps loss [\d.]+, [\d,]+ tokens/s", trained.err)
    compared = tt("compare", "--compare-base", "--temperature", 0, "--data", shipped.SAMPLE_HELD_OUT_DATA)
    assert compared.code == 0, compared.err
    results = json.loads(Path("comparison_results.json").read_text())
    base, lora = results["scores"]["base"], results["scores"]["lora"]
    assert lora["nll"] <= base["nll"] / 2
    assert lora["check"]["passed"] >= 0.8 * lora["check"]["of"]
    assert base["check"]["passed"] <= 0.05 * base["check"]["of"]
    # The check is the data's own: recount it from the answers alone.
    checks = [prompt["check"] for prompt in json.loads(shipped.SAMPLE_PROMPTS.read_text())]
    answers = [result["lora_response"] for result in results["results"]]
    passed = sum(re.search(check, answer, re.DOTALL) is not None for check, answer in zip(checks, answers, strict=True))
    assert (passed, len(answers)) == (lora["check"]["passed"], lora["check"]["of"])


def test_the_starter_answers_before_training(tt: Tt) -> None:
    # The questions of the README of the model, asked of the shipped files.
    from tinker import types

    from tinkertools.chat.rendering import load_renderer
    from tinkertools.local import ServiceClient

    questions = {
        "What is 7 plus 5?": "7 plus 5 is 12.",
        "What is the opposite of hot?": "The opposite of hot is cold.",
        "Which day comes after Monday?": "Tuesday comes after Monday.",
        "Hello!": "Hello! How can I help?",
    }
    renderer = load_renderer(str(shipped.STARTER_MODEL))
    with ServiceClient() as service:
        sampler = service.create_sampling_client(base_model=str(shipped.STARTER_MODEL))
        for ask, answer in questions.items():
            prompt = renderer.generation_prompt({"messages": [{"role": "user", "content": ask}]})
            params = types.SamplingParams(max_tokens=40, temperature=0, stop=renderer.stop_tokens)
            sequence = (
                sampler.sample(types.ModelInput.from_ints(prompt.tokens.tolist()), 1, params).result().sequences[0]
            )
            assert (renderer.decode(sequence.tokens), sequence.stop_reason) == (answer, "stop")


@pytest.mark.slow
def test_a_wheel_brings_its_data(tmp_path: Path, environment: dict[str, str]) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    found = subprocess.run(
        [sys.executable, "-m", "tinkertools", "train", "--max-steps", "1", "--batch", "8"],
        cwd=elsewhere, env={**environment, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert f"base model: {site / 'tinkertools' / 'data' / 'starter'}" in found.stderr
    assert (elsewhere / found.stdout.strip() / "final_lora_weights" / "adapter_model.safetensors").is_file()


def test_ci_runs_the_test_commands_of_the_readme() -> None:
    quick, slow = (ROOT / ".ci" / "run").read_text().strip().splitlines()[-2:]
    readme = (ROOT / "README.md").read_text()
    assert f"    {quick.removesuffix(' &&')}\n" in readme
    assert f"`{slow.strip()}`" in readme
