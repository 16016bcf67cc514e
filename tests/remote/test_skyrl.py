"""`tt` on a real server that speaks Tinker's API: SkyRL, on the CPU, with SDKs that it understands.

SkyRL adapts the seven matrices of each layer, and never the output layer, whatever it is asked for.
"""

import itertools
import json
import math
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pytest
from servers import (
    KEY,
    NEWEST,
    OLDEST,
    ROUNDED,
    ROUNDED_MEAN,
    Ran,
    Run,
    SkyRL,
    Start,
    ended,
    until_state,
)

from tinkertools.shipped import SAMPLE_HELD_OUT_DATA, SAMPLE_TRAINING_DATA

# Starting the server may take as long as downloading it.
pytestmark = pytest.mark.timeout(1500)

Tt = Callable[..., Any]

STEPS = 6
# The server repeats itself to the bit here, and its checkpoints hold all that a step depends on. Other CPUs may add
# in another order; a step on other data is at least fifty times as far away.
SAME_LOSS = 1e-4
OTHER_DATA = 5e-3

# After a few steps what it answers does not matter.
PROMPTS = ["--max-tokens", 8, "--temperature", 0, "--test-prompts"]

# What is learned by heart is answered beyond doubt.
CONVERSATIONS = {
    f"Count from {n} to {n + 5}.": f"Ahoy! {', '.join(map(str, range(n, n + 6)))} by my lantern."
    for n in (9, 11, 13, 15)
}
LONGEST_ANSWER = 40
OTHER_TEXTS = 8


@dataclass(frozen=True)
class Trained:
    """A run, and what the command said that finished it."""

    path: Path
    ran: Ran

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    @property
    def losses(self) -> list[float]:
        """The loss of each step, each of which is there once."""
        steps = self.json("training_log.json")["steps"]
        assert [entry["step"] for entry in steps] == list(range(1, STEPS + 1))
        return [entry["loss"] for entry in steps]

    @property
    def paths(self) -> dict[str, str]:
        """What the run keeps of its final weights on the server."""
        found: dict[str, str] = self.json("final_lora_weights/checkpoint.json")["paths"]
        return found


def model_of(path: str) -> str:
    """The server's name of what was trained, in a `tinker://` path."""
    return path.removeprefix("tinker://").split("/")[0]


def shortest(source: Path, count: int, target: Path) -> Path:
    """The shortest rows of a file, each once: the server takes its time."""
    rows = sorted(dict.fromkeys(source.read_text().splitlines()), key=len)
    target.write_text("\n".join(rows[:count]) + "\n")
    return target


@pytest.fixture(scope="session")
def data(remote_tt: Run, workplace: Path) -> Path:
    rows = shortest(SAMPLE_TRAINING_DATA, 40, workplace / "rows.jsonl")
    ran = remote_tt(NEWEST, "prepare", "--dataset", rows, "--output", "training.jsonl")
    assert ran.code == 0, ran.err
    return workplace / "training.jsonl"


@pytest.fixture(scope="session")
def prompts(workplace: Path) -> Path:
    path = workplace / "prompts.json"
    path.write_text('["What is 2 plus 3?"]')
    return path


@pytest.fixture(scope="session")
def options(skyrl: SkyRL, served: str, data: Path, workplace: Path) -> list[object]:
    """What all runs have in common: six steps, whose shapes the server compiles once."""
    held_out = shortest(SAMPLE_HELD_OUT_DATA, 4, workplace / "held_out.jsonl")
    return [
        "--eval-data", held_out, "--eval-every", 4,
        "--base-url", skyrl.url, "--base-model", served, "--data", data, "--max-length", 128, "--overlength", "drop",
        "--batch", 4, "--max-steps", STEPS, "--save-every", 2, "--learning-rate", "1e-2", "--rank", 8,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def whole(remote_tt: Run, workplace: Path, options: list[object]) -> Trained:
    """A run that nothing disturbed."""
    ran = remote_tt(NEWEST, "train", *options, "--run-name", "whole", "--debug")
    assert ran.code == 0, ran.err
    return Trained(workplace / "checkpoints" / "whole", ran)


@pytest.fixture(scope="session")
def resumed(start: Start, remote_tt: Run, workplace: Path, options: list[object], whole: Trained) -> Trained:
    """A run whose process was killed, and that went on."""
    run = workplace / "checkpoints" / "killed"
    process = start(NEWEST, "-m", "tinkertools", "train", *options, "--run-name", run.name)
    until_state(run, process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    assert not (run / "final_lora_weights").exists()
    ran = remote_tt(NEWEST, "train", "--resume", run)
    assert ran.code == 0, ran.err
    return Trained(run, ran)


@pytest.fixture(scope="session")
def taught(remote_tt: Run, skyrl: SkyRL, served: str, workplace: Path) -> Trained:
    """A run that has learned its conversations by heart."""
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in CONVERSATIONS.items()
    ]
    data = workplace / "conversations.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ran = remote_tt(
        NEWEST, "train", "--base-url", skyrl.url, "--base-model", served, "--data", data, "--run-name", "taught",
        "--batch", len(rows), "--epochs", 14, "--learning-rate", "5e-3", "--lr-schedule", "constant", "--rank", 8,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return Trained(workplace / "checkpoints" / "taught", ran)


@dataclass(frozen=True)
class Said:
    """What the server says with weights: the end of each text, and the logprobs of what is there of it."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


# One request after another: the server compiles each number of them that it happens to find waiting.
ASK = """
import json, sys
import tinker

url, weights, end, longest, prompts, texts = json.loads(sys.argv[1])
client = tinker.ServiceClient(base_url=url).create_sampling_client(model_path=weights)
settings = tinker.SamplingParams(max_tokens=longest, temperature=0.0, stop=[end])
said = []
for prompt in prompts:
    [answer] = client.sample(tinker.ModelInput.from_ints(prompt), 1, settings).result().sequences
    said.append([prompt, list(answer.tokens), list(answer.logprobs)])
for first, *others in texts:
    logprobs = client.compute_logprobs(tinker.ModelInput.from_ints([first, *others])).result()
    # Servers differ in whether the first token has one.
    said.append([[first], others, logprobs[-len(others) :]])
print(json.dumps(said))
"""


@pytest.fixture(scope="session")
def said(start: Start, skyrl: SkyRL, served: str, taught: Trained, workplace: Path) -> list[Said]:
    """What the server says with the weights of that run, asked without `tt`: answers at temperature 0 to what it has
    learned, then the logprobs of texts that it has not."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(served)
    prompts = [prompt_of(tokenizer, question) for question in CONVERSATIONS]
    rows = shortest(SAMPLE_HELD_OUT_DATA, OTHER_TEXTS, workplace / "others.jsonl").read_text().splitlines()
    texts = [tokenizer.apply_chat_template(json.loads(row)["messages"], return_dict=False) for row in rows]
    asked = [skyrl.url, taught.paths["sampler"], tokenizer.eos_token_id, LONGEST_ANSWER, prompts, texts]
    ran = ended(start(NEWEST, "-c", ASK, json.dumps(asked)))
    assert ran.code == 0, ran.err
    return [Said(*one) for one in json.loads(ran.out)]


def prompt_of(tokenizer: Any, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """A model's own answer."""
    import torch

    made = model.generate(input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=LONGEST_ANSWER)
    answer: list[int] = made[0, len(prompt) :].tolist()
    return answer


def logits(model: Any, said: Said) -> Any:
    """Those that a model has where the server said its tokens, (tokens, vocabulary)."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([said.prompt + said.tokens])).logits[0, len(said.prompt) - 1 : -1]


def apart(model: Any, said: Said) -> Any:
    """How far a model's logprobs are from the server's, token by token."""
    import torch

    ours = logits(model, said).log_softmax(-1)[range(len(said.tokens)), said.tokens]
    return (ours - torch.tensor(said.logprobs)).abs()


def uploaded(tt: Tt, folder: Path, *options: object) -> Path:
    built = tt("upload", *options, "--dry-run", "--download-dir", folder)
    assert (built.code, built.out) == (0, f"{folder}\n"), built.err
    return folder


@pytest.mark.parametrize("version", [NEWEST, OLDEST])
def test_the_sdk_is_the_version_that_is_asked_for(start: Start, version: str) -> None:
    script = (
        "import importlib.metadata, importlib.util\n"
        "print(importlib.util.find_spec('tinker').origin, importlib.metadata.version('tinker'))"
    )
    ran = ended(start(version, "-c", script))
    file, found = ran.out.split()
    assert (Path(file).parent.parent.name, found) == (version, version)


def test_a_run_records_where_everything_is(whole: Trained, served: str) -> None:
    assert whole.json("config.json")["versions"]["tinker"] == NEWEST
    model = model_of(whole.paths["sampler"])
    expected = {
        step: {"sampler": f"tinker://{model}/sampler_weights/{name}", "state": f"tinker://{model}/weights/{name}"}
        for step, name in ((2, "step_0002"), (4, "step_0004"), (6, "final"))
    }
    for step, paths in expected.items():
        folder = "final_lora_weights" if step == STEPS else f"checkpoint_step_{step}"
        assert whole.json(f"{folder}/checkpoint.json") == {"step": step, "paths": paths, "next_step": step + 1}
        assert (whole.path / folder / "adapter_model.safetensors").is_file()
        config = whole.json(f"{folder}/adapter_config.json")
        assert config["base_model_name_or_path"] == served
        assert (config["r"], config["lora_alpha"]) == (8, 32)
        assert isinstance(config["target_modules"], list)
        assert all(f"{path}\n" in whole.ran.err for path in paths.values())


def test_the_downloaded_adapter_loads_in_peft(whole: Trained, served: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(served)
    tokens = torch.arange(10, 20).unsqueeze(0)
    with torch.no_grad():
        before = base(tokens).logits
        adapted: Any = PeftModel.from_pretrained(base, str(whole.path / "final_lora_weights"))
        after = adapted(tokens).logits
        trained = [tensor for name, tensor in adapted.named_parameters() if "lora_B" in name]
    # Each of the six layers has seven adapted matrices, and training has changed them all.
    assert len(trained) == 42
    assert all(tensor.any() for tensor in trained)
    assert not torch.equal(before, after)


def test_a_killed_run_goes_on_as_if_nothing_had_been(whole: Trained, resumed: Trained) -> None:
    assert resumed.losses == pytest.approx(whole.losses, abs=SAME_LOSS)
    ordered = sorted(whole.losses)
    assert min(b - a for a, b in itertools.pairwise(ordered)) > OTHER_DATA


def test_held_out_data_are_evaluated_there(whole: Trained, resumed: Trained, skyrl: SkyRL) -> None:
    evals = [trained.json("training_log.json")["evals"] for trained in (whole, resumed)]
    assert [[entry["step"] for entry in found] for found in evals] == [[0, 4, STEPS]] * 2
    for ours, theirs in zip(*evals, strict=True):
        assert ours["nll"] == pytest.approx(theirs["nll"], abs=SAME_LOSS)
    # On this machine, in float32: the server computes in bfloat16.
    found = whole.json("config.json")["config"]
    rows = [json.loads(line) for line in Path(found["eval_data"]).read_text().splitlines()]
    nll, size = likelihood(whole.path / "final_lora_weights", found["base_model"], rows)
    last = evals[0][-1]
    assert last["nll"] == pytest.approx(nll, abs=ROUNDED_MEAN)
    assert last["bits_per_byte"] == pytest.approx(last["nll"] * last["trained_tokens"] / math.log(2) / size)


def likelihood(adapter: Path, base: str, rows: list[dict[str, Any]]) -> tuple[float, int]:
    """The mean NLL of answers by plain transformers and peft, and the bytes of their texts."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(plain, adapter)
    nll, count, size = 0.0, 0, 0
    for row in rows:
        ids: list[int] = []
        trained: list[int] = []
        for message in row["messages"]:
            ids += tokenizer.encode(f"<|im_start|>{message['role']}\n")
            text = tokenizer.encode(f"{message['content']}<|im_end|>")
            if message["role"] == "assistant":
                trained += range(len(ids), len(ids) + len(text))
                size += len(message["content"].encode())
            ids += [*text, *tokenizer.encode("\n")]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nll -= sum(float(logprobs[i - 1, ids[i]]) for i in trained)
        count += len(trained)
    return nll / count, size


def test_a_run_starts_from_weights_on_the_server_and_answers(
    remote_tt: Run, options: list[object], whole: Trained, workplace: Path
) -> None:
    more = ["--load-checkpoint-path", whole.path, "--max-steps", 1, "--sample-every", 1, "--learning-rate", "1e-9"]
    again = [option for i, option in enumerate(options) if "--rank" not in (option, options[i - 1])]
    ran = remote_tt(NEWEST, "train", *again, *more, "--run-name", "second", "--no-download")
    assert ran.code == 0, ran.err
    assert "with rank 8 and a fresh optimizer" in ran.err
    second = Trained(workplace / "checkpoints" / "second", ran)
    first, last = (trained.json("training_log.json")["evals"] for trained in (second, whole))
    assert first[0]["nll"] == pytest.approx(last[-1]["nll"], abs=SAME_LOSS)
    samples = [json.loads(line) for line in (second.path / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in samples] == [1, 1, 1]
    assert all(line["response"] for line in samples)


def test_each_step_is_taken_once(skyrl: SkyRL, whole: Trained, resumed: Trained) -> None:
    def steps(requests: list[tuple[str, dict[str, Any]]]) -> int:
        return sum(kind == "OPTIM_STEP" for kind, _ in requests)

    assert steps(skyrl.requests(model_of(whole.paths["state"]))) == STEPS
    after = skyrl.requests(model_of(resumed.paths["state"]))
    [loaded] = [contents for kind, contents in after if kind == "LOAD_WEIGHTS"]
    before = skyrl.requests(loaded["source_model_id"])
    saved = before.index(("SAVE_WEIGHTS", {"path": loaded["checkpoint_id"]}))
    # What the killed process had sent after the state belongs to no checkpoint.
    assert steps(before[:saved]) == int(loaded["checkpoint_id"].removeprefix("step_"))
    assert steps(before[:saved]) + steps(after) == STEPS


@pytest.mark.parametrize("trained", ["whole", "resumed"])
def test_the_key_is_in_no_file(trained: str, request: pytest.FixtureRequest) -> None:
    run: Trained = request.getfixturevalue(trained)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_the_server_and_this_machine_find_the_same_likelihoods(
    remote_tt: Run, tt: Tt, skyrl: SkyRL, whole: Trained, prompts: Path, workplace: Path
) -> None:
    # Two conversations: the server compiles each number of them that it happens to find waiting.
    held = workplace / "held.jsonl"
    held.write_text("\n".join(sorted(SAMPLE_HELD_OUT_DATA.read_text().splitlines(), key=len)[-2:]))
    asked = ["compare", whole.path, "--compare-base", "--data", held, *PROMPTS, prompts]
    there = remote_tt(NEWEST, *asked, "--base-url", skyrl.url, "--output", "there.json")
    assert there.code == 0, there.err
    here = tt(*asked, "--engine", "local", "--output", workplace / "here.json")
    assert here.code == 0, here.err
    found = {name: json.loads((workplace / name).read_text())["scores"] for name in ("there.json", "here.json")}
    for label in ("base", "lora"):
        one, other = (scores[label] for scores in found.values())
        assert one["trained_tokens"] == other["trained_tokens"]
        assert one["nll"] == pytest.approx(other["nll"], abs=ROUNDED_MEAN)
    scores = found["there.json"]
    assert scores["base"]["nll"] - scores["lora"]["nll"] > 0.2


@pytest.mark.parametrize("named", [True, False], ids=["base model named", "base model asked for"])
def test_weights_on_the_server_answer(
    remote_tt: Run, skyrl: SkyRL, whole: Trained, served: str, prompts: Path, workplace: Path, named: bool
) -> None:
    path = whole.paths["sampler"]
    base = ["--base-model", served] if named else []
    ran = remote_tt(
        NEWEST, "test", "--lora-weights", path, *base, "--base-url", skyrl.url, *PROMPTS, prompts, "--output", "a.json"
    )
    assert ran.code == 0, ran.err
    results = json.loads((workplace / "a.json").read_text())
    assert (results["base_model"], results["lora_weights"]) == (served, path)
    keys = {"prompt", "reference", "lora_response", "answers"}
    assert [set(result) for result in results["results"]] == [keys]


def test_the_merged_model_answers_as_the_server(
    tt: Tt, taught: Trained, served: str, said: list[Said], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = uploaded(tt, tmp_path / "merged", "--run", taught.path, "--merge")
    merged: Any = AutoModelForCausalLM.from_pretrained(folder)
    exact: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base: Any = AutoModelForCausalLM.from_pretrained(served, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert not list(folder.glob("adapter_*"))
    answers, others = said[: len(CONVERSATIONS)], said[len(CONVERSATIONS) :]
    for (question, text), answer in zip(CONVERSATIONS.items(), answers, strict=True):
        assert prompt_of(tokenizer, question) == answer.prompt
        assert tokenizer.decode(answer.tokens) == text + tokenizer.eos_token
        assert len(answer.tokens) > 20
        # What is answered is decided: no rounding, here or there, changes it.
        best = logits(exact, answer).topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 8 * ROUNDED
        assert greedy(merged, answer.prompt) == answer.tokens
        assert greedy(base, answer.prompt) != answer.tokens
        assert apart(exact, answer).max() < ROUNDED
        assert apart(base, answer).max() > 8 * ROUNDED
    # What it has not learned it is not sure of: there every part of the adapter shows.
    assert torch.cat([apart(exact, one) for one in others]).mean() < ROUNDED_MEAN
    assert torch.cat([apart(base, one) for one in others]).mean() > 8 * ROUNDED_MEAN


def test_the_adapter_answers_as_the_server(
    tt: Tt, taught: Trained, served: str, said: list[Said], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = uploaded(tt, tmp_path / "adapter", "--run", taught.path, "--adapter-only")
    base: Any = AutoModelForCausalLM.from_pretrained(served)
    adapted: Any = PeftModel.from_pretrained(base, str(folder))
    for answer in said[: len(CONVERSATIONS)]:
        assert greedy(adapted, answer.prompt) == answer.tokens


def test_weights_on_the_server_become_the_same_model(
    remote_tt: Run, tt: Tt, skyrl: SkyRL, taught: Trained, tmp_path: Path
) -> None:
    here, there = uploaded(tt, tmp_path / "here", "--run", taught.path, "--merge"), tmp_path / "there"
    asked = ["--checkpoint-path", taught.paths["sampler"], "--base-url", skyrl.url]
    ran = remote_tt(NEWEST, "upload", *asked, "--merge", "--dry-run", "--download-dir", there)
    assert (ran.code, ran.out) == (0, f"{there}\n"), ran.err
    found, wanted = (
        {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
        for folder in (there, here)
    )
    # The card and the curve tell of the run, which is on this machine only.
    assert wanted.pop("loss.svg")
    assert found.pop("README.md") != wanted.pop("README.md")
    assert found == wanted


def test_adapters_can_stay_on_the_server(remote_tt: Run, tt: Tt, options: list[object], workplace: Path) -> None:
    ran = remote_tt(NEWEST, "train", *options, "--run-name", "there", "--no-download", "--max-steps", 1)
    assert ran.code == 0, ran.err
    run = Trained(workplace / "checkpoints" / "there", ran)
    assert not list(run.path.rglob("adapter_*"))
    assert set(run.paths) == {"sampler", "state"}
    assert f"{run.paths['sampler']}\n" in ran.err
    assert "the adapters were not downloaded" in ran.err
    asked = tt("test", "--lora-weights", run.path, "--engine", "local")
    assert (asked.code, asked.out) == (1, "")
    assert "is on a server, and was not downloaded" in asked.err


def test_a_model_that_the_server_does_not_have_is_answered_by_those_it_has(
    remote_tt: Run, options: list[object], skyrl: SkyRL, served: str, tiny: str
) -> None:
    ran = remote_tt(NEWEST, "train", *options, "--base-model", tiny, "--run-name", "other")
    assert (ran.code, ran.out) == (1, "")
    assert f"error: {skyrl.url} does not have {tiny}; it has {served}\n" in ran.err
    assert f"--base-model {served}" in ran.err


def test_a_newer_sdk_is_told_the_version_to_take(remote_tt: Run, options: list[object], workplace: Path) -> None:
    newer = installed_version("tinker")
    if tuple(map(int, newer.split(".")[:2])) <= (0, 24):
        pytest.skip(f"SkyRL understands tinker {newer}, which is installed")
    ran = remote_tt(None, "train", *options, "--run-name", "newer", "--debug")
    assert (ran.code, ran.out) == (1, "")
    [error] = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert f"SDK {newer}" in error
    assert ran.err.endswith(f"uv run --with 'tinker=={NEWEST}' tt …\n")
    assert not (workplace / "checkpoints" / "newer").exists()


def test_a_server_that_dies_is_told_and_the_run_goes_on_when_it_is_back(
    start: Start, remote_tt: Run, skyrl: SkyRL, options: list[object], whole: Trained, workplace: Path
) -> None:
    run = workplace / "checkpoints" / "lost"
    process = start(OLDEST, "-m", "tinkertools", "train", *options, "--run-name", run.name, "--timeout", 30, "--debug")
    until_state(run, process)
    skyrl.stop()
    try:
        ran = ended(process)
    finally:
        skyrl.start()
    assert (ran.code, ran.out) == (1, "")
    # Where it died on its way to an answer, nobody knows what it did.
    gone = rf"{re.escape(skyrl.url)} did not do \w+ in 30 s; its last word: no connection at \w+"
    lost = rf"the answer to \w+ \([^)]+\) of {re.escape(skyrl.url)} was lost"
    assert re.search(rf"error: step \d: ({gone}|{lost})", ran.err), ran.err
    state = json.loads((run / "training_state" / "state.json").read_text())
    assert f"go on with step {state['next_step']}: tt train --resume {run.relative_to(workplace)}" in ran.err
    again = remote_tt(OLDEST, "train", "--resume", run)
    assert again.code == 0, again.err
    trained = Trained(run, again)
    assert trained.json("config.json")["versions"]["tinker"] == OLDEST
    assert trained.losses == pytest.approx(whole.losses, abs=SAME_LOSS)


def test_preferences_are_trained_there_and_go_on(
    start: Start, remote_tt: Run, skyrl: SkyRL, served: str, workplace: Path
) -> None:
    """DPO with a run that is killed and goes on, against one that nothing disturbed."""
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": answer}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for question, answer in CONVERSATIONS.items()
    ]
    data = workplace / "preferences.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = [
        "train", "--method", "dpo", "--base-url", skyrl.url, "--base-model", served, "--data", data, "--eval-data",
        data, "--batch", 4, "--max-steps", STEPS, "--save-every", 2, "--learning-rate", "1e-2", "--rank", 8,
    ]  # fmt: skip
    ran = remote_tt(NEWEST, *options, "--run-name", "dpo")
    assert ran.code == 0, ran.err
    whole = Trained(workplace / "checkpoints" / "dpo", ran)
    run = workplace / "checkpoints" / "dpo_killed"
    process = start(NEWEST, "-m", "tinkertools", *options, "--run-name", run.name)
    until_state(run, process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    kept = (run / "reference.json").read_bytes()
    ran = remote_tt(NEWEST, "train", "--resume", run)
    assert ran.code == 0, ran.err
    assert "reference, pairs" not in ran.err
    assert (run / "reference.json").read_bytes() == kept
    assert Trained(run, ran).losses == pytest.approx(whole.losses, abs=SAME_LOSS)
    assert whole.losses[0] == pytest.approx(math.log(2), abs=ROUNDED_MEAN)
    assert whole.losses[-1] < 0.5
    last = whole.json("training_log.json")["evals"][-1]
    assert last["accuracy"] == 1
    assert last["margin"] > 0.5
