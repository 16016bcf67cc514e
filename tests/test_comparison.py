"""`tt compare` and `tt test` as a whole: numbers against plain transformers and peft, interrupted, and misused."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_fixtures import Serve
from judge_server import KEY
from model_hub import ModelHub
from peft import LoraConfig, PeftModel, get_peft_model
from run_files import write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tinkertools import comparison
from tinkertools.adapters.hub import push
from tinkertools.answers import Answer, answers, score
from tinkertools.asking.asker import Keeper
from tinkertools.cli import build
from tinkertools.evidence import statistics
from tinkertools.local.sampling import SamplingClient
from tinkertools.shipped import STARTER_MODEL

Tt = Callable[..., Any]
Messages = list[dict[str, str]]

OUTPUT = Path("comparison_results.json")
KEPT = Path(".comparison_results.json.kept.jsonl")
QUICK = ("--temperature", 0, "--max-tokens", 6)


def said(*texts: str, system: str | None = None) -> Messages:
    """A conversation, in which user and assistant take turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


# Of many lengths, with one turn and several, and texts of more bytes than letters.
CONVERSATIONS = [
    said("a", "yes"),
    said("What is Knoll known for?", "Knoll is known for its paper."),
    said("b c", "no", "d?", "A longer answer, with commas, and more of it than before.", "e", "f"),
    said("wie heißt du?", "Füchsin 🦊"),
    said("q", "x", system="Be brief."),
    said(" ".join(["word"] * 30), "so many words"),
    said("count", "1 2 3 4 5 6 7 8 9 10 11 12"),
    said("z", "…"),
    said("hello", "Ahoy! 3 plus 4 is 7 by my lantern."),
    said("u", "v", "w", "x", "y", "z"),
    said("k", "l\nm\n\nn"),
    said("long", " ".join(["tide"] * 20)),
]


def write(path: str, conversations: list[Messages]) -> Path:
    """A data file."""
    return write_rows(Path(path), [{"messages": each} for each in conversations])


def make_adapter(base: str, folder: Path, seed: int = 0) -> Path:
    """An adapter of random weights, made by peft alone."""
    torch.manual_seed(seed)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=layers, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(plain, config).save_pretrained(str(folder))
    return folder


@dataclasses.dataclass
class Plain:
    """A model in plain transformers and peft, asked one conversation at a time."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, base: str, adapter: Path | None = None) -> "Plain":
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
        return cls(model.eval(), AutoTokenizer.from_pretrained(base))

    def score(self, messages: Messages) -> tuple[float, int, int]:
        """Σ −log p of the assistant's tokens and ends of turn, their number, and the bytes of the assistant's texts."""
        ids: list[int] = []
        trained: list[bool] = []
        for message in messages:
            wanted = message["role"] == "assistant"
            for text, counts in (
                (f"<|im_start|>{message['role']}\n", False),
                (f"{message['content']}<|im_end|>", wanted),
                ("\n", False),
            ):
                tokens = self.tokenizer.encode(text)
                ids += tokens
                trained += [counts] * len(tokens)
        with torch.no_grad():
            logprobs = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nll = -sum(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)) if trained[i])
        written = sum(len(m["content"].encode()) for m in messages if m["role"] == "assistant")
        return nll, sum(trained), written


@pytest.fixture(scope="session")
def adapter(untied: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the untied model."""
    return make_adapter(untied, tmp_path_factory.mktemp("adapters") / "first")


@pytest.fixture(scope="session")
def second(untied: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one."""
    return make_adapter(untied, tmp_path_factory.mktemp("adapters") / "second", seed=1)


@pytest.fixture(scope="session")
def stopping(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt to say `yes`, with a checkpoint at step 20."""
    folder = tmp_path_factory.mktemp("stopping")
    data = folder / "data.jsonl"
    write_rows(data, [{"messages": said(q, "yes")} for q in ("a", "b c", "d e f g")])
    options = ["--batch", "3", "--max-steps", "40", "--learning-rate", "1e-2", "--save-every", "20"]
    arguments = ["train", "--base-model", tiny, "--data", str(data), *options, "--output-dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_API_BASE"):
            patch.delenv(name, raising=False)
        build()(args=arguments, prog_name="tt")
    assert not stopped.value.code
    (run,) = folder.glob("*/final_lora_weights")
    return run.parent


@pytest.fixture(scope="session")
def other_words(untied: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The untied model with a tokenizer of its own, which makes more tokens of the same text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("models") / "other words"
    AutoModelForCausalLM.from_pretrained(untied).save_pretrained(folder)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words.train_from_iterator(
        ["user assistant system words"],
        trainers.BpeTrainer(vocab_size=270, special_tokens=control, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = (STARTER_MODEL / "chat_template.jinja").read_text()
    fast.save_pretrained(folder)
    return str(folder)


def results_of(path: Path = OUTPUT) -> Any:
    """What was written; `NaN` and `Infinity` are no JSON."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def assert_numbers(results: Any, label: str, plain: Plain, counted: list[Messages]) -> list[tuple[float, int, int]]:
    """The scores of a model are those of plain transformers."""
    found = [plain.score(messages) for messages in counted]
    nll, tokens, size = (sum(column) for column in zip(*found, strict=True))
    score = results["scores"][label]
    assert score["nll"] == pytest.approx(nll / tokens, abs=1e-4)
    assert score["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert score["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, abs=1e-4)
    assert score["trained_tokens"] == tokens
    by_messages = {json.dumps(one["messages"]): one for one in results["likelihood"]["examples"]}
    for messages, (each, _, _) in zip(counted, found, strict=True):
        assert by_messages[json.dumps(messages)]["nll"][label] == pytest.approx(each, abs=1e-4 * max(1, abs(each)))
    return found


# --- numbers


def test_numbers_are_those_of_plain_transformers(tt: Tt, untied: str, adapter: Path) -> None:
    write("data.jsonl", CONVERSATIONS)
    Path("prompts.json").write_text('["a"]')
    found = tt("compare", adapter, "--data", "data.jsonl", "--test-prompts", "prompts.json", *QUICK)
    assert found.code == 0, found.err
    results = results_of()
    base = assert_numbers(results, "base", Plain.load(untied), CONVERSATIONS)
    tuned = assert_numbers(results, "lora", Plain.load(untied, adapter), CONVERSATIONS)
    assert [(one["messages"], one["trained_tokens"], one["bytes"]) for one in results["likelihood"]["examples"]] == [
        (messages, tokens, size) for messages, (_, tokens, size) in zip(CONVERSATIONS, base, strict=True)
    ]

    (comparison,) = results["comparisons"]
    assert (comparison["of"], comparison["against"], comparison["unit"]) == ("lora", "base", "nll")
    ours, theirs, weights = [a for a, _, _ in tuned], [b for b, _, _ in base], [float(n) for _, n, _ in tuned]
    expected = statistics.mean_difference(ours, theirs, weights)
    for name in ("mean", "low", "high"):
        assert comparison["difference"][name] == pytest.approx(getattr(expected, name), abs=2e-4), name
    assert (comparison["difference"]["examples"], comparison["difference"]["level"]) == (12, 0.95)
    assert comparison["difference"]["mean"] == pytest.approx(
        results["scores"]["lora"]["nll"] - results["scores"]["base"]["nll"], abs=1e-9
    )
    won = sum(a < b for a, b in zip(ours, theirs, strict=True))
    assert (comparison["wins"]["won"], comparison["wins"]["tied"], comparison["wins"]["lost"]) == (won, 0, 12 - won)
    assert f"{results['scores']['base']['nll']:.4f}" in found.out

    # Exactly what `evidence` makes of the numbers in the file.
    examples = results["likelihood"]["examples"]
    ours, theirs = ([one["nll"][label] for one in examples] for label in ("lora", "base"))
    exact = statistics.mean_difference(ours, theirs, [float(one["trained_tokens"]) for one in examples])
    assert comparison["difference"] == dataclasses.asdict(exact) | {"note": None}
    assert not KEPT.exists()


def test_test_scores_as_compare_does(tt: Tt, untied: str, adapter: Path) -> None:
    write("data.jsonl", CONVERSATIONS[:3])
    found = tt("test", "--lora-weights", adapter, "--data", "data.jsonl", "--data-prompts", 2, *QUICK)
    assert found.code == 0, found.err
    results = results_of(Path("lora_test_results.json"))
    assert_numbers(results, "lora", Plain.load(untied, adapter), CONVERSATIONS[:3])
    assert results["comparisons"] == []
    assert [one["reference"] for one in results["results"]] == ["yes", "Knoll is known for its paper."]
    assert list(results["models"]) == ["lora"]
    assert not Path(".lora_test_results.json.kept.jsonl").exists()


def test_a_model_does_not_differ_from_itself(tt: Tt, adapter: Path) -> None:
    write("data.jsonl", CONVERSATIONS)
    found = tt(
        "compare", adapter, adapter, "--no-compare-base", "--data", "data.jsonl", "--data-prompts", 5, *QUICK,
        "--report", "page.html",
    )  # fmt: skip
    assert found.code == 0, found.err
    results = results_of()
    assert list(results["models"]) == ["first", "first (2)"]
    for one in results["results"]:
        assert one["responses"]["first"].encode() == one["responses"]["first (2)"].encode()
    (comparison,) = results["comparisons"]
    assert [comparison["difference"][name] for name in ("mean", "low", "high")] == [0, 0, 0]
    assert (comparison["wins"]["won"], comparison["wins"]["tied"], comparison["wins"]["lost"]) == (0, 12, 0)
    assert "no difference found" in found.err
    assert "no difference found" in Path("page.html").read_text()


# --- interrupted


@dataclasses.dataclass
class Watched:
    """The requests that models were sent, and when to break off: before this answer or score is there."""

    asked: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)
    left: int | None = None

    def count(self, kind: str) -> int:
        return sum(asked == kind for asked, _ in self.asked)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()
    sample, logprobs = SamplingClient.sample, SamplingClient.compute_logprobs

    def watched_sample(self: SamplingClient, *args: Any, **options: Any) -> Any:
        seen.asked.append(("answer", self._adapter))
        return sample(self, *args, **options)

    def watched_logprobs(self: SamplingClient, *args: Any, **options: Any) -> Any:
        seen.asked.append(("score", self._adapter))
        return logprobs(self, *args, **options)

    def broken_off(coming: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def some(*args: Any) -> Iterator[Any]:
            for value in coming(*args):
                if seen.left is not None:
                    if not seen.left:
                        raise KeyboardInterrupt
                    seen.left -= 1
                yield value

        return some

    monkeypatch.setattr(SamplingClient, "sample", watched_sample)
    monkeypatch.setattr(SamplingClient, "compute_logprobs", watched_logprobs)
    monkeypatch.setattr(comparison, "answers", broken_off(answers))
    monkeypatch.setattr(comparison, "score", broken_off(score))
    return seen


def interrupted(tt: Tt, watched: Watched, after: int, *arguments: object) -> Any:
    """Break a command off after so many answers and scores; what it leaves is the file of what is kept."""
    watched.left = after
    found = tt(*arguments)
    watched.left = None
    watched.asked.clear()
    assert (found.code, found.out) == (130, ""), found.err
    assert "run the same command again: only the rest is asked" in found.err
    assert not OUTPUT.exists()
    return found


# 5 answers and 6 scores of the base, then as many of the adapter.
@pytest.mark.parametrize(("after", "answers", "scores"), [(3, 7, 12), (13, 3, 6), (21, 0, 1)])
def test_only_the_rest_is_asked(
    tt: Tt, untied: str, adapter: Path, watched: Watched, after: int, answers: int, scores: int
) -> None:
    write("data.jsonl", CONVERSATIONS[:6])
    command = ("compare", adapter, "--data", "data.jsonl", "--data-prompts", 5, "--temperature", 1, "--max-tokens", 6)
    interrupted(tt, watched, after, *command)
    lines = KEPT.read_bytes().splitlines(keepends=True)
    assert len(lines) == after
    # A process that is killed leaves half a line.
    KEPT.write_bytes(b"".join(lines) + b'{"key": "torn')
    found = tt(*command)
    assert found.code == 0, found.err
    assert (watched.count("answer"), watched.count("score")) == (answers, scores)
    resumed = results_of()
    assert not KEPT.exists()
    watched.asked.clear()

    assert tt(*command).code == 0
    assert (watched.count("answer"), watched.count("score")) == (10, 12)
    whole = results_of()
    assert resumed | {"created": None} == whole | {"created": None}


def test_a_torn_line_is_asked_again(tt: Tt, adapter: Path, watched: Watched) -> None:
    write("data.jsonl", CONVERSATIONS[:3])
    command = ("compare", adapter, "--data", "data.jsonl", "--data-prompts", 3, *QUICK)
    interrupted(tt, watched, 5, *command)
    KEPT.write_bytes(KEPT.read_bytes()[:-7])
    assert tt(*command).code == 0
    assert (watched.count("answer"), watched.count("score")) == (3, 6 - 1)


@pytest.mark.parametrize(
    ("change", "answers", "scores"),
    [
        (["--seed", 1], 6, 3),
        (["--temperature", 0.5], 6, 3),
        (["--max-tokens", 7], 6, 3),
        (["--data-prompts", 2], 2, 3),
        (["--check", "/yes/"], 3, 3),
    ],
)
def test_what_was_asked_otherwise_is_asked_again(
    tt: Tt, adapter: Path, watched: Watched, change: list[object], answers: int, scores: int
) -> None:
    write("data.jsonl", CONVERSATIONS[:3])
    command = ["compare", adapter, "--data", "data.jsonl", "--data-prompts", 3, "--temperature", 1, "--max-tokens", 6]
    interrupted(tt, watched, 6, *command)  # all of the base's
    assert tt(*command, *change).code == 0
    assert (watched.count("answer"), watched.count("score")) == (answers, scores)


@pytest.mark.parametrize("change", ["weights", "scale"])
def test_an_adapter_that_changed_is_asked_again(
    tt: Tt, adapter: Path, second: Path, watched: Watched, tmp_path: Path, change: str
) -> None:
    write("data.jsonl", CONVERSATIONS[:2])
    mine = tmp_path / "mine"
    shutil.copytree(adapter, mine)
    command = ("compare", mine, "--data", "data.jsonl", "--data-prompts", 2, *QUICK)
    interrupted(tt, watched, 7, *command)  # all but a score of the adapter's
    if change == "weights":
        shutil.copy(second / "adapter_model.safetensors", mine)
    else:
        config = mine / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    assert tt(*command).code == 0
    assert (watched.count("answer"), watched.count("score")) == (2, 2)
    assert {source for _, source in watched.asked} != {None}
    resumed = results_of()
    assert tt(*command).code == 0
    assert results_of() | {"created": None} == resumed | {"created": None}


def test_prompts_that_changed_are_asked(tt: Tt, adapter: Path, watched: Watched) -> None:
    Path("prompts.json").write_text('["a", "b"]')
    command = ("compare", adapter, "--test-prompts", "prompts.json", *QUICK)
    interrupted(tt, watched, 3, *command)
    Path("prompts.json").write_text('["c", "a"]')
    assert tt(*command).code == 0
    assert watched.count("answer") == 2  # "c" of both, and "a" of none
    assert [one["prompt"][0]["content"] for one in results_of()["results"]] == ["c", "a"]


# --- several models


def test_runs_checkpoints_and_folders_of_peft(tt: Tt, tiny: str, stopping: Path, tmp_path: Path) -> None:
    data = write("data.jsonl", CONVERSATIONS[:5])
    plain = make_adapter(tiny, tmp_path / "plain", seed=3)
    found = tt("compare", stopping, stopping / "checkpoint_step_20", plain, "--data", data, "--data-prompts", 2, *QUICK)
    assert found.code == 0, found.err
    results = results_of()
    run = stopping.name
    labels = ["base", run, f"{run}/checkpoint_step_20", "plain"]
    assert list(results["models"]) == labels
    folders = [None, stopping / "final_lora_weights", stopping / "checkpoint_step_20", plain]
    for label, folder in zip(labels, folders, strict=True):
        assert_numbers(results, label, Plain.load(tiny, folder), CONVERSATIONS[:5])
        assert results["models"][label]["base"] == (folder is None)
    assert [(each["of"], each["against"]) for each in results["comparisons"]] == [
        *((label, "base") for label in labels[1:]), *((label, run) for label in labels[2:]),
    ]  # fmt: skip
    assert results["results"][0]["responses"][run] == "yes"
    assert results["results"][0]["answers"][run] | {"repetition": 0} == {
        "tokens": 3, "stop": "stop", "repetition": 0, "exact": True, "chrf": 100, "rouge_l": 1,
        "agrees_with_base": False,
    }  # fmt: skip
    training = results["models"][run]["training"]
    assert [step["step"] for step in training["steps"]] == list(range(1, 41))
    assert (training["config"]["batch"], training["config"]["max_steps"]) == (3, 40)
    assert results["models"]["plain"]["training"] is results["models"]["base"]["training"] is None
    assert results["lora_weights"] == [str(folder) for folder in folders if folder]


def test_an_adapter_on_the_hub(
    tt: Tt, untied: str, adapter: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
    push(adapter, sorted(p.name for p in adapter.iterdir()), "me/it", private=True, notify=lambda text: None)
    write("data.jsonl", CONVERSATIONS[:3])
    found = tt("compare", "me/it", "--data", "data.jsonl", "--data-prompts", 1, *QUICK)
    assert found.code == 0, found.err
    assert_numbers(results_of(), "lora", Plain.load(untied, adapter), CONVERSATIONS[:3])
    assert "me/it against base:" in found.err
    other = tt("compare", "me/nothing")
    assert (other.code, "no adapter at me/nothing" in other.err) == (1, True)


def test_different_base_models(tt: Tt, tiny: str, untied: str, adapter: Path, tmp_path: Path) -> None:
    data = write("data.jsonl", CONVERSATIONS)
    of_tiny = make_adapter(tiny, tmp_path / "of tiny", seed=4)
    found = tt("compare", adapter, of_tiny, "--data", data, "--data-prompts", 1, *QUICK)
    assert found.code == 0, found.err
    assert "these adapters have different base models" in found.err
    assert tiny in found.err and untied in found.err
    results = results_of()
    labels = ["base untied", "first", "base tiny", "of tiny"]
    assert list(results["models"]) == labels
    models = [Plain.load(untied), Plain.load(untied, adapter), Plain.load(tiny), Plain.load(tiny, of_tiny)]
    for label, plain in zip(labels, models, strict=True):
        assert_numbers(results, label, plain, CONVERSATIONS)
    # The same tokens: the likelihood of each is comparable.
    assert [(each["of"], each["against"], each["unit"]) for each in results["comparisons"]] == [
        ("first", "base untied", "nll"), ("of tiny", "base tiny", "nll"), ("of tiny", "first", "nll"),
    ]  # fmt: skip


def test_different_tokenizers(tt: Tt, untied: str, adapter: Path, other_words: str, tmp_path: Path) -> None:
    data = write("data.jsonl", CONVERSATIONS)
    of_other = make_adapter(other_words, tmp_path / "of other", seed=5)
    found = tt("compare", adapter, of_other, "--data", data, "--data-prompts", 1, *QUICK)
    assert found.code == 0, found.err
    results = results_of()
    # The other tokenizer makes more tokens than its model takes of two of these.
    plain = {label: Plain.load(base, folder) for label, base, folder in (
        ("base untied", untied, None), ("first", untied, adapter), ("base other words", other_words, None),
        ("of other", other_words, of_other),
    )}  # fmt: skip
    counted = [
        messages for messages in CONVERSATIONS
        if len(plain["of other"].tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]) <= 128
    ]  # fmt: skip
    assert 5 < len(counted) < len(CONVERSATIONS)
    scores = {label: assert_numbers(results, label, model, counted) for label, model in plain.items()}
    assert sum(n for _, n, _ in scores["of other"]) > sum(n for _, n, _ in scores["first"])
    assert f"{len(CONVERSATIONS) - len(counted)} conversations are too long for a model" in found.err
    comparisons = {(each["of"], each["against"]): each for each in results["comparisons"]}
    assert [each["unit"] for each in comparisons.values()] == ["nll", "nll", "bits_per_byte"]
    bits, others = ([nll / math.log(2) for nll, _, _ in scores[label]] for label in ("of other", "first"))
    expected = statistics.mean_difference(bits, others, [float(size) for _, _, size in scores["first"]])
    difference = comparisons["of other", "first"]["difference"]
    for name in ("mean", "low", "high"):
        assert difference[name] == pytest.approx(getattr(expected, name), abs=1e-3), name
    assert difference["mean"] == pytest.approx(
        results["scores"]["of other"]["bits_per_byte"] - results["scores"]["first"]["bits_per_byte"], abs=1e-9
    )
    assert "they are compared by bits per byte" in found.err


def test_one_base_by_two_names_is_asked_once(tt: Tt, untied: str, adapter: Path, tmp_path: Path) -> None:
    near = tmp_path / "near"
    shutil.copytree(adapter, near)
    config = near / "adapter_config.json"
    (tmp_path / "link").symlink_to(untied)
    config.write_text(config.read_text().replace(untied, "link"))
    Path("prompts.json").write_text('["a"]')
    found = tt("compare", adapter, near, "--test-prompts", "prompts.json", *QUICK)
    assert found.code == 0, found.err
    assert list(results_of()["models"]) == ["base", "first", "near"]
    assert "different base models" not in found.err


def test_an_adapter_called_base(tt: Tt, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "base")
    Path("prompts.json").write_text('["a"]')
    found = tt("compare", "base", "--test-prompts", "prompts.json", *QUICK)
    assert found.code == 0, found.err
    assert "lora" in found.out and "base" in found.out
    assert set(results_of()["scores"]) == {"base", "lora"}


# --- checks


@pytest.mark.parametrize(
    ("check", "passed"),
    [
        ("answer == reference", [True, False]),
        ("/^YES$/i", [True, True]),
        ("^no$", [False, False]),
        ("'b' in prompt and answer == 'yes'", [False, True]),
        ("answer[99] == 'x'", [False, False]),
    ],
)
def test_checks(tt: Tt, stopping: Path, check: str, passed: list[bool]) -> None:
    Path("prompts.json").write_text(json.dumps([said("a", "yes"), said("b c", "no")]))
    found = tt("compare", stopping, "--test-prompts", "prompts.json", "--check", check, *QUICK)
    assert found.code == 0, found.err
    results = results_of()
    assert [one["lora_response"] for one in results["results"]] == ["yes", "yes"]
    assert [one["answers"]["lora"]["check"] for one in results["results"]] == passed
    assert results["scores"]["lora"]["check"] == {"passed": sum(passed), "of": 2}
    assert results["settings"]["check"] == check
    base = [one["answers"]["base"]["check"] for one in results["results"]]
    assert results["comparisons"][0]["check"]["difference"] == dataclasses.asdict(
        statistics.share_difference(passed, base)
    )
    assert "have none" not in found.err
    assert ("--check fails with an error on 4 answers" in found.err) == ("IndexError" in found.err) == ("[99]" in check)


def test_a_check_that_reads_what_is_not_there(tt: Tt, stopping: Path) -> None:
    Path("prompts.json").write_text(json.dumps(["a", said("b c", "yes")]))
    found = tt("test", "--lora-weights", stopping, "--test-prompts", "prompts.json", "--check", "answer == reference",
               *QUICK)  # fmt: skip
    assert found.code == 0, found.err
    assert "--check reads the reference, and 1 prompts have none" in found.err
    assert results_of(Path("lora_test_results.json"))["scores"]["lora"]["check"] == {"passed": 1, "of": 2}


def test_a_check_that_cannot_be_is_refused_before_anything_is_asked(tt: Tt, adapter: Path, watched: Watched) -> None:
    found = tt("compare", adapter, "--check", "answer ==")
    assert (found.code, found.out, watched.asked) == (2, "", [])
    assert "not valid Python" in found.err


@pytest.mark.slow
def test_gsm8k(tt: Tt, starter: str, shared_data: Path) -> None:
    rows = (shared_data / "gsm8k_test.jsonl").read_text().splitlines()[:15]
    Path("rows.jsonl").write_text("\n".join(rows) + "\n")
    prepared = tt("prepare", "--dataset", "rows.jsonl", "--output", "gsm8k.jsonl")
    assert prepared.code == 0, prepared.err
    conversations = [json.loads(line)["messages"] for line in Path("gsm8k.jsonl").read_text().splitlines()]
    assert len(conversations) == 15
    write("train.jsonl", [said(messages[0]["content"], "#### 18") for messages in conversations[:2]])
    trained = tt("train", "--base-model", starter, "--data", "train.jsonl", "--batch", 2, "--max-steps", 12,
                 "--learning-rate", "5e-3", "--save-every", 0)  # fmt: skip
    assert trained.code == 0, trained.err
    check = "number(answer) == number(reference)"
    found = tt("compare", "--data", "gsm8k.jsonl", "--data-prompts", 5, "--check", check, "--temperature", 0,
               "--max-tokens", 24)  # fmt: skip
    assert found.code == 0, found.err
    results = results_of()

    def recount(response: str, reference: str) -> bool:
        wanted = reference.rsplit("#### ", 1)[1].replace(",", "")
        return bool(re.search(rf"#### ?{re.escape(wanted)}(?!\S)", response))

    assert len(results["results"]) == 5
    for label, name in (("base", "base_response"), ("lora", "lora_response")):
        passed = [recount(one[name], one["reference"]) for one in results["results"]]
        assert [one["answers"][label]["check"] for one in results["results"]] == passed
        assert results["scores"][label]["check"] == {"passed": sum(passed), "of": 5}
        assert f"{sum(passed)} of 5" in found.out
    # The first row's answer is 18.
    assert results["results"][0]["lora_response"] == "#### 18"
    assert results["results"][0]["answers"]["lora"]["check"] is True
    assert results["likelihood"]["examples"][0]["messages"] == conversations[0]


# --- what goes wrong


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n', "prompts.json: expected a string, a list of messages, or an object with messages"),
        ('"a"\n{"messages": 3}\n', "prompts.json:2: expected a string"),
        ('["a", 5]', "prompts.json: prompt 2: expected a string"),
        ('"a"\n\n{oops\n', "prompts.json:3: invalid JSON at column 2"),
    ],
)
def test_prompts_of_another_shape(tt: Tt, adapter: Path, watched: Watched, content: str, words: str) -> None:
    Path("prompts.json").write_text(content)
    found = tt("compare", adapter, "--test-prompts", "prompts.json")
    assert (found.code, found.out, watched.asked) == (1, "", [])
    assert words in found.flat
    assert '{"role": "user", "content": "text"}' in found.err or "one prompt a line" in found.err
    assert not KEPT.exists() and not OUTPUT.exists()


def test_a_model_that_never_stops(tt: Tt, tiny: str, stopping: Path) -> None:
    Path("prompts.json").write_text(json.dumps(["a", "b c"]))
    found = tt("compare", stopping, "--test-prompts", "prompts.json", "--temperature", 0, "--max-tokens", 1)
    assert found.code == 0, found.err
    results = results_of()
    assert [one["answers"]["lora"]["stop"] for one in results["results"]] == ["length"] * 2
    assert [one["answers"]["lora"]["tokens"] for one in results["results"]] == [1, 1]
    assert (results["scores"]["lora"]["stopped"], results["scores"]["lora"]["tokens"]) == (0, 1)
    assert tt("compare", stopping, "--test-prompts", "prompts.json", *QUICK).code == 0
    results = results_of()
    assert (results["scores"]["lora"]["stopped"], results["scores"]["base"]["stopped"]) == (1, 0)


def test_empty_answers(tt: Tt, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "answers", lambda s, r, prompts, o: iter([Answer("", None, 1, "stop")] * 2))
    Path("prompts.json").write_text(json.dumps([said("a", "yes"), "b"]))
    found = tt("compare", adapter, "--test-prompts", "prompts.json", "--check", "answer == ''", "--report", "p.html")
    assert found.code == 0, found.err
    results = results_of()
    assert [one["lora_response"] for one in results["results"]] == ["", ""]
    assert results["results"][0]["answers"]["lora"] == {
        "tokens": 1, "stop": "stop", "repetition": 0, "check": True, "exact": False, "chrf": 0, "rouge_l": 0,
        "agrees_with_base": True,
    }  # fmt: skip
    assert results["scores"]["lora"]["stopped"] == 1


def test_a_prompt_without_an_answer_agrees_with_nothing(tt: Tt, adapter: Path) -> None:
    Path("prompts.json").write_text(json.dumps(["a", "word " * 200]))
    found = tt("compare", adapter, "--test-prompts", "prompts.json", "--check", "True or answer", *QUICK)
    assert found.code == 1
    assert "2 of 4 prompts got no answer" in found.err
    results = results_of()
    second = results["results"][1]
    assert second["lora_response"] is second["base_response"] is None
    assert set(second["answers"]["lora"]) == {"error", "check"}
    agrees = results["results"][0]["answers"]["lora"]["agrees_with_base"]
    assert results["scores"]["lora"]["agrees_with_base"] == float(agrees)
    assert results["scores"]["lora"]["check"] == {"passed": 1, "of": 2}
    assert KEPT.exists()  # what was answered is not asked again


class _Future:
    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self, timeout: float | None = None) -> Any:
        return self.value


@pytest.mark.parametrize(("value", "every"), [(math.nan, False), (-math.inf, False), (math.nan, True)])
def test_a_likelihood_that_is_no_number(
    tt: Tt, untied: str, adapter: Path, monkeypatch: pytest.MonkeyPatch, value: float, every: bool
) -> None:
    honest = SamplingClient.compute_logprobs
    marked = AutoTokenizer.from_pretrained(untied).encode("Füchsin")

    def logprobs(self: SamplingClient, prompt: Any, *args: Any) -> Any:
        tokens = prompt.to_ints()
        odd = every or (self._adapter is not None and ",".join(map(str, marked)) in ",".join(map(str, tokens)))
        return _Future([None, *[value] * (len(tokens) - 1)]) if odd else honest(self, prompt, *args)

    monkeypatch.setattr(SamplingClient, "compute_logprobs", logprobs)
    write("data.jsonl", CONVERSATIONS[:6])
    found = tt("compare", adapter, "--data", "data.jsonl", "--data-prompts", 1, "--report", "page.html", *QUICK)
    assert found.code == 0, found.err
    count = 6 if every else 1
    assert f"{count} conversations have a likelihood that is no number" in found.err
    results = results_of()
    examples = results["likelihood"]["examples"]
    assert sum(one["nll"]["lora"] is None for one in examples) == count
    if every:
        assert "nll" not in results["scores"]["lora"] and "difference" not in results["comparisons"][0]
    else:
        counted = [*CONVERSATIONS[:3], *CONVERSATIONS[4:6]]
        assert_numbers(results, "base", Plain.load(untied), counted)
        assert_numbers(results, "lora", Plain.load(untied, adapter), counted)
        assert results["comparisons"][0]["difference"]["examples"] == 5
    page = Path("page.html").read_text()
    assert "NaN" not in page.partition('type="application/json"')[2].partition("</script>")[0]


def test_a_conversation_that_is_too_long_is_left_out_whole(tt: Tt, untied: str, adapter: Path) -> None:
    write("data.jsonl", [said("a", "tide " * 200), *CONVERSATIONS[:3]])
    found = tt("compare", adapter, "--data", "data.jsonl", "--test-prompts", Path("p.json"), *QUICK)
    assert found.code == 1  # there is no such file
    Path("p.json").write_text('["a"]')
    found = tt("compare", adapter, "--data", "data.jsonl", "--test-prompts", "p.json", *QUICK)
    assert found.code == 0, found.err
    assert "1 conversations are too long for a model or have nothing to train: not counted" in found.err
    results = results_of()
    assert_numbers(results, "lora", Plain.load(untied, adapter), CONVERSATIONS[:3])
    assert results["likelihood"]["examples"][0]["nll"] == {}


@pytest.mark.parametrize("command", ["test", "compare"])
def test_data_without_anything_to_count(tt: Tt, adapter: Path, command: str) -> None:
    write("data.jsonl", [said("a", "tide " * 200), said("b", "word " * 200)])
    Path("p.json").write_text('["a"]')
    found = tt(command, "--lora-weights", adapter, "--data", "data.jsonl", "--test-prompts", "p.json", *QUICK)
    assert found.code == 0, found.err
    assert "2 conversations are too long" in found.err
    results = results_of(OUTPUT if command == "compare" else Path("lora_test_results.json"))
    assert "nll" not in results["scores"]["lora"]


def test_one_adapter_alone_is_nothing_to_compare(tt: Tt, adapter: Path, watched: Watched) -> None:
    found = tt("compare", adapter, "--no-compare-base")
    assert found.code != 0 and watched.asked == []
    assert "leave nothing to compare" in found.err and "tt test" in found.err


# --- judge and report


def says_yes(asked: Any) -> str:
    """A judge for whom `yes` is the better answer."""
    a, b = (asked.section(f"answer {name}") == "yes" for name in "AB")
    return str(asked.verdict("tie" if a == b else "A" if a else "B"))


def test_a_judge(
    tt: Tt, stopping: Path, serve: Serve, watched: Watched, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    server = serve(says_yes)
    Path("prompts.json").write_text(json.dumps([said("a", "the reference"), "b c", "d e f g", "what else"]))
    command = ("compare", stopping, "--test-prompts", "prompts.json", "--judge", "openai:gpt-x", "--judge-at-once", 1,
               "--judge-price", "2,10", "--report", "page.html", *QUICK)  # fmt: skip
    put, count = Keeper.put, 0

    def breaks_off(self: Keeper, *args: Any) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise KeyboardInterrupt
        put(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "put", breaks_off)
        broken = tt(*command)
    assert (broken.code, broken.out) == (130, ""), broken.err
    assert not OUTPUT.exists()
    # Answers and verdicts in one file.
    assert len(KEPT.read_bytes().splitlines()) == 8 + 3
    server.asked.clear()
    watched.asked.clear()

    found = tt(*command)
    assert found.code == 0, found.err
    results = results_of()
    answers = [(one["lora_response"], one["base_response"]) for one in results["results"]]
    assert len(server.asked) == 8 - 3
    assert watched.asked == []
    expected = ["win" if ours == "yes" != theirs else "loss" if theirs == "yes" else "tie" for ours, theirs in answers]
    assert [one["verdicts"][0]["verdict"] for one in results["results"]] == expected
    first = results["results"][0]["verdicts"][0]
    assert (first["of"], first["against"]) == ("lora", "base")
    assert [order["first"] for order in first["orders"]] == ["lora", "base"]
    judged = results["comparisons"][0]["judge"]
    won = expected.count("win")
    assert won >= 3
    assert (judged["won"], judged["tied"], judged["lost"], judged["undecided"]) == (won, 4 - won, 0, 0)
    assert judged["rate"] == (won + (4 - won) / 2) / 4
    assert results["settings"]["judge"] == "openai:gpt-x"
    assert "5 questions asked; 3 answers taken from the file" in found.err
    assert f"preferred by the judge in {won} of 4" in found.err
    assert not KEPT.exists()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in found.out + found.err + broken.err


def test_a_judge_is_not_asked_about_prompts_without_an_answer(tt: Tt, stopping: Path, serve: Serve) -> None:
    server = serve(says_yes)
    Path("prompts.json").write_text(json.dumps(["word " * 200, "a"]))
    found = tt("compare", stopping, "--test-prompts", "prompts.json", "--judge", "openai:gpt-x", *QUICK)
    assert (found.code, len(server.asked)) == (1, 2), found.err
    results = results_of()
    assert "verdicts" not in results["results"][0]
    assert [each["verdict"] for each in results["results"][1]["verdicts"]] == ["win"]
    assert results["comparisons"][0]["judge"]["won"] == 1


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">'


def test_the_page_holds_the_numbers_and_no_markup_of_others(
    tt: Tt, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "answers", lambda s, r, prompts, o: iter([Answer(HOSTILE, None, 9, "stop")]))
    write("data.jsonl", CONVERSATIONS)
    Path("prompts.json").write_text(json.dumps([said(HOSTILE, HOSTILE)]))
    found = tt(
        "compare", adapter, "--data", "data.jsonl", "--test-prompts", "prompts.json", "--report", "deep/page.html"
    )
    assert found.code == 0, found.err
    assert "report: deep/page.html" in found.err
    page, results = Path("deep/page.html").read_text(), results_of()
    assert HOSTILE not in page and "<img" not in page and "<script>alert" not in page
    assert page.count("</script>") == page.count("<script")
    assert f"{results['scores']['lora']['nll']:,.4f}" in page
    assert json.dumps(results["comparisons"][0]["difference"]["mean"]) in page
    assert results["results"][0]["lora_response"] == HOSTILE
