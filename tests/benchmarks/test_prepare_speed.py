"""How fast `tt prepare` is, beside a bare loop over the lines and beside `datasets`, each as a whole process."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPEATS = 50

TT = """
import sys
from tinkertools.cli import main
sys.argv = ["tt", "prepare", "--dataset", "in.jsonl", "--output", "tt.jsonl"]
main()
"""
BARE_LOOP = """
import orjson
with open("in.jsonl", "rb") as rows, open("bare loop.jsonl", "wb") as out:
    for line in rows:
        row = orjson.loads(line)
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        out.write(orjson.dumps({"messages": messages}) + b"\\n")
"""
DATASETS = """
import datasets
datasets.disable_progress_bars()
rows = datasets.load_dataset("json", data_files="in.jsonl")["train"]
def messages(row):
    return {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
rows.map(messages, remove_columns=["question", "answer"]).to_json("datasets.jsonl", force_ascii=False)
"""
# The peak of this process alone: what `getrusage` tells includes the process that started it.
PEAK = """
import atexit, sys
status = lambda: next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
atexit.register(lambda: print(status(), file=sys.stderr))
"""


@pytest.mark.benchmark
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the peak of memory")
def test_prepare_speed(tmp_path: Path, shared_data: Path, environment: dict[str, str]) -> None:
    content = (shared_data / "gsm8k_train.jsonl").read_bytes()
    rows = content.count(b"\n") * REPEATS
    with (tmp_path / "in.jsonl").open("wb") as file:
        for _ in range(REPEATS):
            file.write(content)
    speed: dict[str, float] = {}
    peak_mb: dict[str, int] = {}
    print(f"\n{rows:,} rows, {len(content) * REPEATS / 1e6:.0f} MB")
    for name, script in {"bare loop": BARE_LOOP, "tt": TT, "datasets": DATASETS}.items():
        start = time.perf_counter()
        found = subprocess.run(
            [sys.executable, "-c", PEAK + script], cwd=tmp_path, env=environment | {"HF_HOME": str(tmp_path / "hf")},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        speed[name] = rows / seconds
        peak_mb[name] = int(re.findall(r"VmHWM:\s+(\d+) kB", found.stderr)[0]) // 1024
        print(f"{name:10} {seconds:6.2f} s {speed[name]:10,.0f} rows/s {peak_mb[name]:6,} MB peak")
    assert (tmp_path / "tt.jsonl").read_bytes() == (tmp_path / "bare loop.jsonl").read_bytes()
    with (tmp_path / "datasets.jsonl").open("rb") as file:
        assert sum(1 for _ in file) == rows
    assert speed["tt"] >= 0.35 * speed["bare loop"]
    assert speed["tt"] >= 3 * speed["datasets"]
    assert peak_mb["tt"] <= 150
