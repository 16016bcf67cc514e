"""The checks of style, types and imports, as tests: one command runs everything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "check",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["importlinter.cli", "lint_imports"],
    ],
    ids=["lint", "format", "types", "imports"],
)
def test_check_passes(check: list[str]) -> None:
    command = [sys.executable, "-m", *check]
    if check[0] == "importlinter.cli":
        command = [
            sys.executable,
            "-c",
            "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())",
        ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_no_file_names_a_package_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = [ROOT / name for name in listed.stdout.split() if Path(name).suffix in (".toml", ".txt", ".md", ".py", "")]
    hosts = ("pypi" + ".org", "pythonhosted" + ".org")
    assert [p.name for p in texts if p.is_file() and any(host in p.read_text(errors="ignore") for host in hosts)] == []
