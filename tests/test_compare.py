"""`tt test` and `tt compare`: answers and scores of base and adapter, as a table and as JSON."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from run_files import write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinkertools.answers import Answer
from tinkertools.chat.conversations import Conversation
from tinkertools.comparison import Found, Model
from tinkertools.errors import DataError
from tinkertools.prompts import Prompt, load_prompts
from tinkertools.results import build

Tt = Callable[..., Any]
MESSAGES = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def trained(tt: Tt, tiny: str, tmp_path: Path) -> Path:
    """A run that has learnt to say `yes`, with the data it was trained on."""
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": "yes"}] for q in ("a", "b c", "d e f g")]
    write_rows(tmp_path / "data.jsonl", [{"messages": row} for row in rows])
    (tmp_path / "prompts.json").write_text(json.dumps(["a", [{"role": "user", "content": "b c"}]]))
    options = ["--batch", 3, "--max-steps", 60, "--learning-rate", "1e-2", "--save-every", 0]
    found = tt("train", "--base-model", tiny, "--data", "data.jsonl", *options)
    assert found.code == 0, found.err
    return Path(found.out.strip())


def independent_nll(model: Any, tokenizer: Any, data: Path) -> tuple[float, int]:
    """Masked NLL by plain transformers, one conversation at a time, and the number of trained tokens."""
    total, count = 0.0, 0
    for line in data.read_text().splitlines():
        ask, answer = json.loads(line)["messages"]
        prompt = tokenizer.encode(f"<|im_start|>user\n{ask['content']}<|im_end|>\n<|im_start|>assistant\n")
        wanted = tokenizer.encode(f"{answer['content']}<|im_end|>")
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + wanted])).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(wanted))
        count += len(wanted)
    return total / count, count


def test_compare_with_the_base(tt: Tt, tiny: str, trained: Path) -> None:
    found = tt(
        "compare", "--compare-base", "--data", "data.jsonl", "--test-prompts", "prompts.json", "--temperature", 0,
        "--max-tokens", 5,
    )  # fmt: skip
    assert found.code == 0, found.err
    results = json.loads(Path("comparison_results.json").read_text())
    assert set(results) == {
        "version", "created", "base_model", "lora_weights", "settings", "versions", "models", "results", "likelihood",
        "scores", "comparisons",
    }  # fmt: skip
    assert (results["base_model"], results["lora_weights"]) == (tiny, str(trained / "final_lora_weights"))
    assert results["settings"] == {
        "max_tokens": 5, "temperature": 0.0, "seed": 0, "data": "data.jsonl", "check": None, "judge": None,
        "compare_base": True,
    }  # fmt: skip
    keys = {"prompt", "reference", "lora_response", "base_response", "answers"}
    assert [set(r) for r in results["results"]] == [keys] * 2
    assert [r["prompt"][-1]["content"] for r in results["results"]] == ["a", "b c"]
    assert [r["lora_response"] for r in results["results"]] == ["yes", "yes"]
    assert all(r["base_response"] != "yes" for r in results["results"])

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    base_nll, count = independent_nll(plain, tokenizer, Path("data.jsonl"))
    tuned = PeftModel.from_pretrained(plain, trained / "final_lora_weights")
    tuned_nll, _ = independent_nll(tuned, tokenizer, Path("data.jsonl"))
    assert tuned_nll < 0.1 < base_nll
    for label, nll in (("base", base_nll), ("lora", tuned_nll)):
        score = results["scores"][label]
        assert score["nll"] == pytest.approx(nll, abs=1e-4)
        assert score["perplexity"] == pytest.approx(math.exp(nll), rel=1e-3)
        assert score["trained_tokens"] == count
    [comparison] = results["comparisons"]
    examples = results["likelihood"]["examples"]
    changes = {
        number: (example["nll"]["lora"] - example["nll"]["base"]) / example["trained_tokens"]
        for number, example in enumerate(examples)
    }
    assert [entry["example"] for entry in comparison["improved"]] == sorted(changes, key=changes.__getitem__)
    assert [entry["difference"] for entry in comparison["improved"]] == pytest.approx(sorted(changes.values()))
    assert comparison["worsened"] == []
    most = examples[min(changes, key=changes.__getitem__)]["messages"][0]["content"]
    assert f"improved most: {min(changes.values()):+.2f} on “{most}”" in found.err
    for words in ("prompt", "base", trained.name[:12], "yes", "NLL per trained token", f"{base_nll:.4f}", f"{count}"):
        assert words in found.out


def test_test_answers_with_the_adapter(tt: Tt, tiny: str, trained: Path) -> None:
    Path("checked.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}], "check": "^yes$"}) + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "b c"}], "check": "^no$"}) + "\n"
    )  # fmt: skip
    found = tt(
        "test", "--lora-weights", trained, "--test-prompts", "checked.jsonl", "--temperature", 0, "--output", "o/r.json"
    )
    assert found.code == 0, found.err
    results = json.loads(Path("o/r.json").read_text())
    assert [r["lora_response"] for r in results["results"]] == ["yes", "yes"]
    assert set(results["results"][0]) == {"prompt", "reference", "lora_response", "answers"}
    assert [r["answers"]["lora"]["check"] for r in results["results"]] == [True, False]
    assert results["scores"]["lora"]["check"] == {"passed": 1, "of": 2}
    assert results["comparisons"] == []
    assert "1 of 2 (50%)" in found.out


def test_several_adapters_have_labels(tt: Tt, trained: Path) -> None:
    found = tt("compare", trained, trained / "final_lora_weights", "--test-prompts", "prompts.json", "--temperature", 0)
    assert found.code == 0, found.err
    results = json.loads(Path("comparison_results.json").read_text())
    labels = ["base", trained.name, f"{trained.name}/final_lora_weights"]
    assert [list(r["responses"]) for r in results["results"]] == [labels] * 2
    assert all(r["responses"][labels[1]] == r["responses"][labels[2]] == "yes" for r in results["results"])


def test_a_seed_repeats_the_answers(tt: Tt, trained: Path) -> None:
    texts = []
    for seed in (1, 1, 2):
        assert tt("compare", "--test-prompts", "prompts.json", "--temperature", 1.5, "--seed", seed).code == 0
        results = json.loads(Path("comparison_results.json").read_text())["results"]
        texts.append([r["base_response"] for r in results])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("command", ["test", "compare"])
def test_ctrl_c_writes_no_results(trained: Path, tmp_path: Path, environment: dict[str, str], command: str) -> None:
    before = set(tmp_path.rglob("*"))
    process = subprocess.Popen(
        [sys.executable, "-m", "tinkertools", command], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("adapter: ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-2:] == [
        "error: stopped; what was answered is kept", "  → run the same command again: only the rest is asked",
    ]  # fmt: skip
    # An answer may have come first.
    assert all(path.name.endswith(".kept.jsonl") for path in set(tmp_path.rglob("*")) - before)


def test_answers_are_shown_as_they_are(tt: Tt, trained: Path) -> None:
    Path("prompts.json").write_text(json.dumps(["[bold]a[/bold] :smile: [/]"]))
    found = tt("test", "--test-prompts", "prompts.json", "--max-tokens", 1)
    assert found.code == 0, found.err
    assert "[bold]a[/bold] :smile: [/]" in found.out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["Hello!", "Hi."]', ["Hello!", "Hi."]),
        ('"Hello!"', ["Hello!"]),
        ('[[{"role":"user","content":"Hello!"}]]', ["Hello!"]),
        ('{"messages":[{"role":"user","content":"Hello!"},{"role":"assistant","content":"left out"}]}', ["Hello!"]),
        ('"one"\n\n{"messages":[{"role":"user","content":"two"}]}\n', ["one", "two"]),
    ],
)
def test_forms_of_prompt_files(tmp_path: Path, content: str, expected: list[str]) -> None:
    path = tmp_path / "prompts"
    path.write_text(content)
    prompts = load_prompts(path)
    assert [prompt.messages[-1]["content"] for prompt in prompts] == expected
    assert all(prompt.messages[-1]["role"] == "user" for prompt in prompts)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("[]", "holds no prompts"),
        ('"a"\n{oops', r":2: invalid JSON at column 2"),
        ("[1]", "prompt 1: expected a string, a list of messages, or an object with messages"),
        ('["a", {"text": "b"}]', "prompt 2: expected a string"),
        ('[[{"role":"user"}]]', r"prompt 1: messages\[0\].content: is missing"),
        ('[[{"role":"system","content":"a"}]]', r"prompt 1: messages: the user says nothing"),
        (
            '[[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"assistant","content":"c"}]]',
            "prompt 1: the last message must be the user's",
        ),
        ('[{"messages":[{"role":"user","content":"a"}],"check":"("}]', "prompt 1: check is not a regular expression"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "prompts"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        load_prompts(path)


def test_checks_are_counted_among_prompts_that_have_one() -> None:
    said: Conversation = {"messages": MESSAGES}
    prompts = [Prompt(said, "^Ahoy.*!$"), Prompt(said), Prompt(said, "no")]
    base = Model("base", None, "m")
    for third in (Answer("yes"), Answer(None, "the server said no")):
        answers = [Answer("Ahoy,\nyou!", None, 3, "stop"), Answer("x", None, 1, "length"), third]
        found = Found([base], prompts, {"base": answers})
        results = build(found, {}, None, {}, with_base=True)
        assert results["scores"]["base"]["check"] == {"passed": 1, "of": 2}
        assert [entry["answers"]["base"].get("check") for entry in results["results"]] == [True, None, False]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["test"], 1, "no run under checkpoints"),
        (["compare", "nothing"], 1, "no adapter at nothing"),
        (["compare", "--output", "."], 1, ". is a directory, not a file"),
        (["compare", "--judge-rate", "5"], 2, "none is named"),
    ],
)
def test_nothing_to_test(tt: Tt, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    found = tt(*arguments)
    assert (found.code, found.out) == (code, "")
    assert words in found.err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_compared(tt: Tt, trained: Path, untied: str) -> None:
    assert "leave nothing to compare" in tt("compare", "--no-compare-base").err
    missing = tt("test", "--test-prompts", "missing.json")
    assert (missing.code, "not found: missing.json" in missing.err) == (1, True)
    other = tt("train", "--base-model", untied, "--data", "data.jsonl", "--batch", 3, "--max-steps", 1)
    mixed = tt("compare", trained, other.out.strip(), "--test-prompts", "prompts.json", "--max-tokens", 2)
    assert (mixed.code, "note: these adapters have different base models" in mixed.err) == (0, True)
    config = trained / "final_lora_weights" / "adapter_config.json"
    config.write_text(config.read_text().replace("base_model_name_or_path", "other_key"))
    nameless = tt("test", "--lora-weights", trained)
    assert (nameless.code, "does not say which base model" in nameless.err) == (1, True)
    tensors = trained / "final_lora_weights" / "adapter_model.safetensors"
    config.write_text(config.read_text().replace("other_key", "base_model_name_or_path"))
    from safetensors.torch import load_file, save_file

    renamed = {name.replace("layers.1.", "layers.7."): t for name, t in load_file(tensors).items()}
    save_file(renamed, tensors)
    inert = tt("test", "--lora-weights", trained)
    assert (inert.code, "tensors do not fit" in inert.err) == (1, True)


def test_a_prompt_without_an_answer_is_told_in_its_place(tt: Tt, tiny: str, trained: Path) -> None:
    Path("some.json").write_text(json.dumps(["a", "word " * 200, "b c"]))
    found = tt("test", "--test-prompts", "some.json", "--temperature", 0, "--max-tokens", 5)
    assert found.code == 1
    assert "1 of 3 prompts got no answer, the first: a sequence of" in found.err
    assert "lora_test_results.json has all the others" in found.err
    first, second, third = json.loads(Path("lora_test_results.json").read_text())["results"]
    assert (first["lora_response"], third["lora_response"]) == ("yes", "yes")
    assert second["lora_response"] is None
    assert "the model takes 128" in second["errors"]["lora_response"]
    assert "[no answer: a sequence of" in " ".join(found.out.replace("│", " ").split())


@pytest.mark.parametrize("options", [["--data-prompts", 3], ["--data", "data.jsonl", "--data-prompts", -1]])
@pytest.mark.parametrize("command", ["test", "compare"])
def test_prompts_of_the_data_need_data(tt: Tt, trained: Path, command: str, options: list[object]) -> None:
    found = tt(command, *options)
    assert (found.code, found.out) == (2, "")
    assert "it is how many conversations of --data are asked as well" in found.err
