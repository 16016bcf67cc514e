"""Training on a processor beside TRL's SFTTrainer: the same model, conversations, batches and layers, in one run."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[3] / "shared" / "bench"
ROWS, BATCH = 24, 8

# What TRL trains on, token for token, as datums; float32 like TRL's; the same layers, rank and learning rate.
OURS = """
import json, resource, sys, time
from pathlib import Path
import torch, trl
from tinker import types
from transformers import AutoTokenizer
from tinkertools.local import ServiceClient

model, data, rows, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
# TRL takes this one for models with this chat template: it marks what the assistant says.
template = (Path(trl.__file__).parent / "chat_templates" / "qwen3_training.jinja").read_text()
tokenizer = AutoTokenizer.from_pretrained(model)
with open(data) as lines:
    problems = [json.loads(line) for line, _ in zip(lines, range(rows))]
datums, tokens, trained = [], 0, 0
for problem in problems:
    messages = [{"role": "user", "content": problem["question"]}, {"role": "assistant", "content": problem["answer"]}]
    found = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, weights = found["input_ids"], torch.tensor(found["assistant_masks"], dtype=torch.float32)
    tokens, trained = tokens + len(ids), trained + int(weights.sum())
    datums.append(types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={"target_tokens": types.TensorData.from_torch(torch.tensor(ids[1:])),
                        "weights": types.TensorData.from_torch(weights[1:])},
    ))
def product():
    "GFLOP/s of a product of two square matrices."
    a, best = torch.randn(2048, 2048), 1e9
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9
service = ServiceClient()
client = service.create_lora_training_client(model, rank=16, seed=0, train_unembed=False)
client.forward(datums[:1], "cross_entropy").result()
before = client._base.worker.submit(product).result()
start = time.perf_counter()
waiting = []
for i in range(0, rows, batch):
    here = datums[i : i + batch]
    count = float(sum(datum.loss_fn_inputs["weights"].to_torch().sum() for datum in here))
    waiting.append((client.forward_backward(here, "cross_entropy"), count))
    client.optim_step(types.AdamParams(learning_rate=1e-4))
losses = [future.result().metrics["loss:sum"] / count for future, count in waiting]
client.get_info()
client.save_state("done").result()
seconds = time.perf_counter() - start
peak = max(before, client._base.worker.submit(product).result())
# Each product with a weight costs 2 operations a parameter forward and 2 backward for the gradient of its input; the
# output layer works on trained tokens only. What is for A and B, attention and norms is left out.
config = client._base.config
width = config.hidden_size
head = config.head_dim
layer = width * head * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
layer += 3 * width * config.intermediate_size
work = 4 * (tokens * layer * config.num_hidden_layers + trained * width * config.vocab_size) / 1e9
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"tokens {tokens}  seconds {seconds:.1f}  tokens/s {tokens / seconds:.1f}  peak {memory:.0f} MB")
print(json.dumps({"trained": trained, "losses": losses, "gflops": work / seconds, "product": peak}))
"""
RESULT = re.compile(r"tokens (\d+)  seconds ([\d.]+)  tokens/s ([\d.]+)  peak (\d+) MB")
LOSS = re.compile(r"'loss': '?([\d.]+)")


@dataclass(frozen=True)
class Run:
    tokens: int
    tokens_per_second: float
    peak_mb: int
    output: str


def run(command: list[str], folder: Path, environment: dict[str, str]) -> Run:
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    line = RESULT.search(found.stdout)
    assert line, found.stdout
    return Run(int(line[1]), float(line[3]), int(line[4]), found.stdout)


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_training_speed(tmp_path: Path, shared_data: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("trl")
    model = tmp_path / "model"
    subprocess.run(
        [sys.executable, BENCH / "make_bench_model.py", model], env=environment, check=True, capture_output=True
    )
    arguments = [str(model), str(shared_data / "gsm8k_train.jsonl"), str(ROWS), str(BATCH)]
    trl_command = [sys.executable, str(BENCH / "trl_sft.py"), *arguments]
    ours_command = [sys.executable, "-c", OURS, *arguments]
    # Before and after TRL, and the better of the two: the machine is shared.
    first = run(ours_command, tmp_path, environment)
    trl = run(trl_command, tmp_path, environment)
    ours = max(first, run(ours_command, tmp_path, environment), key=lambda found: found.tokens_per_second)
    seen = json.loads(ours.output.splitlines()[-1])
    print(f"\n{ROWS} conversations, {ours.tokens:,} tokens, {seen['trained']:,} of them trained on")
    for name, found in (("TRL", trl), ("tinkertools", ours)):
        print(f"{name:12} {found.tokens_per_second:7.0f} tokens/s {found.peak_mb:6,} MB peak")
    print(f"{ours.tokens_per_second / trl.tokens_per_second:.1f} times TRL's speed at ", end="")
    print(f"{ours.peak_mb / trl.peak_mb:.2f} of its memory")
    share = seen["gflops"] / seen["product"]
    print(f"{seen['gflops']:.0f} GFLOP/s of the {seen['product']:.0f} of a plain product of matrices: {share:.0%}")
    theirs = [float(loss) for loss in LOSS.findall(trl.output)]
    print(f"losses {seen['losses']} and {theirs}")
    assert ours.tokens == trl.tokens
    # TRL takes the conversations in another order, and prints four digits.
    ours_mean, their_mean = (sum(losses) / len(losses) for losses in (seen["losses"], theirs))
    assert ours_mean == pytest.approx(their_mean, abs=2e-2)
    assert ours.tokens_per_second >= 10 * trl.tokens_per_second
    assert ours.peak_mb <= trl.peak_mb / 3
