"""What programs are worth: which program, which tests, which style."""

import ast
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.errors import UsageError
from tinkertools.rewards import Rewarded, Sample, open_reward, parse_reward
from tinkertools.rewards.programs import CodeReward, Style, given_tests, parsed, program_in, style
from tinkertools.rewards.sandbox import Limits, policy

needs_kernel = pytest.mark.skipif(bool(policy.missing()), reason=f"this system lacks {policy.missing()}")

GOOD = "def add(a, b):\n    return a + b\n"
HUMANEVAL = (
    "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"
)


def sample(answer: str, **metadata: Any) -> Sample:
    return Sample([{"role": "user", "content": "Write add."}], answer, None, metadata, True)


def fenced(program: str, info: str = "python") -> str:
    return f"Here it is:\n\n```{info}\n{program}```\n\nDone."


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (fenced(GOOD), GOOD),
        (fenced("first\n") + fenced(GOOD), GOOD),
        (fenced(GOOD) + fenced("add(1, 2)\n", ""), GOOD),
        (fenced(GOOD) + fenced("pip install x\n", "bash"), GOOD),
        (fenced("x\n", "") + fenced("y\n", ""), "y\n"),
        (fenced(GOOD, "Py"), GOOD),
        (fenced(GOOD, "python3 title=add.py"), GOOD),
        (fenced(GOOD, "{.python}"), GOOD),
        ("~~~python\n" + GOOD + "~~~", GOOD),
        ("```python\n" + GOOD, GOOD),  # cut
        ("````python\n'''\n```\n'''\n````", "'''\n```\n'''\n"),
        ("1. so\n\n   ```python\n   x = 1\n   ```", "x = 1\n"),
        (GOOD, GOOD),
        ("", ""),
        (fenced("SELECT 1\n", "sql"), fenced("SELECT 1\n", "sql")),
        ("use `add`", "use `add`"),
    ],
)
def test_which_program_is_taken(answer: str, program: str) -> None:
    assert program_in(answer) == program


LINES = st.lists(st.text(alphabet="ab =():#'\"\t.0", max_size=20).map(lambda line: f"x{line}"), min_size=1, max_size=6)


@given(LINES, st.sampled_from(["python", "py", "Python3"]), st.text(alphabet="abc .\n", max_size=40))
def test_a_block_is_taken_as_it_is_written(lines: list[str], info: str, words: str) -> None:
    program = "\n".join(lines) + "\n"
    assert program_in(f"{words}\n\n```{info}\n{program}```\n{words}") == program.replace("\0", "\ufffd")


@given(st.text())
def test_any_answer_has_a_program(answer: str) -> None:
    program = program_in(answer)
    assert (
        program == answer
        or program in answer.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
        or ("```" in answer or "~~~" in answer)
    )
    parsed(program)


@pytest.mark.parametrize(
    ("metadata", "tests"),
    [
        ({"tests": ["assert add(1, 2) == 3", "assert f(0) == 0"]}, ["assert add(1, 2) == 3", "assert f(0) == 0"]),
        ({"tests": "assert add(1, 2) == 3\nassert f(0), 'x'"}, ["assert add(1, 2) == 3", "assert f(0), 'x'"]),
        ({"tests": "x = add(1, 2)\nassert x == 3"}, ["x = add(1, 2)\nassert x == 3"]),
        ({"test_list": ("assert add(1, 2) == 3",), "test": 5}, ["assert add(1, 2) == 3"]),
        ({"test": HUMANEVAL, "entry_point": "add"}, [f"{HUMANEVAL}\ncheck(add)"]),
    ],
)  # fmt: skip
def test_which_tests_a_row_has(metadata: dict[str, Any], tests: list[str]) -> None:
    assert given_tests(metadata) == tests


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "the row has no tests: no column tests, test_list, or test with entry_point"),
        ({"tests": []}, "the row's tests is empty"),
        ({"tests": "  "}, "the row's tests is empty"),
        ({"tests": 5}, "the row's tests must be a text or a list of texts"),
        ({"tests": ["assert True", 5]}, "the row's tests must be a text or a list of texts"),
        ({"test": HUMANEVAL}, "the row has no tests"),
        ({"test": HUMANEVAL, "entry_point": "f(); x"}, "the row's entry_point is not a name"),
    ],
)
def test_a_row_without_tests_is_an_error(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="row") as error:
        given_tests(metadata)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("program", "wrong"),
    [
        (GOOD, ""),
        ("x = 1" + " " * 100 + "# far\n", "short_lines"),
        ("x = 1 \n", "short_lines"),
        ("def f():\n" + "    x = 1\n" * 49, ""),
        ("def f():\n" + "    x = 1\n" * 50, "short_functions"),
        ("def addTwo(a): return a\n", "names"),
        ("def add(A): return A\n", "names"),
        ("class thing: pass\n", "names"),
        ("class Thing:\n    def __init__(self, _x): pass\n", ""),
        ("try:\n    pass\nexcept:\n    pass\n", "care"),
        ("from os import *\n", "care"),
        ("def f(x=[]): return x\n", "care"),
        ("def f(*, x={}): return x\n", "care"),
    ],
)
def test_style(program: str, wrong: str) -> None:
    found = style(ast.parse(program), program)
    fields = ("short_lines", "short_functions", "names", "care")
    assert found == Style(**{name: name != wrong for name in fields})
    assert found.share == (0.75 if wrong else 1.0)


@needs_kernel
def test_what_programs_are_worth() -> None:
    tests = {"tests": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]}
    samples = [
        sample(fenced(GOOD), **tests),
        sample(fenced("def add(a, b):\n    return 3\n"), **tests),
        sample(fenced("def add(A, b):\n    return A * b + 9\n"), **tests),
        sample(fenced("def add(a, b) return"), **tests),
        sample("I cannot do that.", **tests),
        sample("", **tests),
        sample(GOOD, test_list=tests["tests"], test_setup_code="import math"),
        sample(GOOD, test=HUMANEVAL, entry_point="add"),
        sample(GOOD.replace("+", "-"), test=HUMANEVAL, entry_point="add"),
        sample(GOOD),
        sample("import sys\nsys.exit(0)\n", **tests),
        sample("def add(a, b):\n    return limit\n", tests=["assert add(1, 2) == 5"], test_setup_code="limit = 5"),
        sample("x = '\ud800'", **tests),
        sample("(" * 50_000, **tests),
    ]
    with open_reward(parse_reward("code"), None, print, timeout=60) as reward:
        assert reward.name == "code"
        found = reward(samples)
    values = [1.0, 0.75, 0.45, -0.5, -0.5, -0.5, 1.0, 1.0, 0.5, None, 0.5, 1.0, -0.5, -0.5]
    assert [one.value for one in found] == pytest.approx(values)
    assert [one.error for one in found if one.error] == [
        "the row has no tests: no column tests, test_list, or test with entry_point"
    ]


@needs_kernel
def test_a_bad_program_costs_its_own_sample_alone() -> None:
    tests = {"tests": ["assert add(1, 2) == 3", "assert True"]}
    samples = [
        sample("def add(a, b):\n    while True: pass\n", **tests),
        sample(GOOD, **tests),
        sample("import os\n\n\ndef add(a, b):\n    os._exit(0)\n", **tests),
        sample("while True: pass", **tests),
    ]
    with CodeReward(1, Limits(9)) as reward:
        found = reward(samples)
        assert [one.value for one in found] == pytest.approx([0.75, 1.0, 0.75, 0.5])
        assert reward([sample(GOOD, **tests)]) == [Rewarded(1.0)]


def test_code_is_refused_at_once_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "missing", lambda: ("seccomp filters",))
    with pytest.raises(UsageError, match="lacks seccomp filters"):
        parse_reward("code")
