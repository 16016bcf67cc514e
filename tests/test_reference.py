"""The README's reference of options is what the code says."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).with_name("reference.py")


def test_readme_has_every_option_as_the_code_does() -> None:
    made = runpy.run_path(str(SCRIPT))
    readme = made["README"].read_text(encoding="utf-8")
    assert made["in_readme"](readme) == made["reference"](), "write it anew: python tests/reference.py"
