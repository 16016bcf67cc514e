"""A sweep on a server: as many of its runs at once as it may."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import sums, write_rows
from standin import Request, Response, StandIn, refusal

KEY = "tml-planted-key-1234567890"


class Together(StandIn):
    """Takes no step until two models are there: whoever trains one after the other waits in vain."""

    created = 0

    def respond(self, request: Request) -> Response:
        if request.endpoint == "create_model":
            self.created += 1
        if request.endpoint == "optim_step" and self.created < 2:
            return refusal(429, "not yet")
        return super().respond(request)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_runs_of_a_sweep_train_at_once(starter: str, tmp_path: Path, environment: dict[str, str]) -> None:
    write_rows(tmp_path / "data.jsonl", sums(16))
    command = [sys.executable, "-m", "tinkertools", "train", "--data", "data.jsonl", "--base-model", starter]
    command += ["--batch", "2", "--max-steps", "3", "--learning-rate", "1e-3,1e-2", "--jobs", "2", "--run-name", "s"]
    command += ["--eval-every", "0", "--timeout", "120"]
    with Together([starter]) as server:
        done = subprocess.run(
            [*command, "--base-url", server.url],
            check=False, cwd=tmp_path, env=environment | {"TINKER_API_KEY": KEY}, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert server.created == 2
    sweep = tmp_path / "checkpoints" / "s"
    for rate in ("0.001", "0.01"):
        run = sweep / f"learning_rate_{rate}"
        log = json.loads((run / "training_log.json").read_text())
        assert [entry["step"] for entry in log["steps"]] == [1, 2, 3]
        assert [entry["step"] for entry in log["evals"]] == [0, 3]
        assert (run / "final_lora_weights").is_dir()
        assert f"learning_rate_{rate}" in done.stderr
    found = [path for path in sweep.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert found == []
    assert KEY not in done.stdout + done.stderr
    assert {path.name for path in (sweep / "plots").iterdir()} == {"test_nll.svg", "train_nll.svg"}
