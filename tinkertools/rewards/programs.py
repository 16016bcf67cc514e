"""Rewards programs: whether they parse, how many tests they pass, and a little for style."""

import ast
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tinkertools.rewards.samples import Closing, Rewarded, Sample
from tinkertools.rewards.sandbox import Limits, Unsafe, check_available, run_tests

# The recipe: what a program is worth that parses, for all tests, for style; and one that does not parse.
PARSES, TESTS, STYLE, SYNTAX_ERROR = 0.3, 0.5, 0.2, -0.5

_LONGEST_LINE = 100
_LONGEST_FUNCTION = 50  # lines
_LANGUAGES = ("python", "py", "python3")
_SNAKE, _CAPITALS = re.compile(r"_*[a-z][a-z0-9_]*|_+"), re.compile(r"_*[A-Z][A-Za-z0-9]*")
# What is a call of the parser's that no answer needs, and takes long.
_LONGEST_PROGRAM = 200_000  # characters


class CodeReward(Closing):
    """0.3 for a program that parses, up to 0.5 for the share of tests that pass, up to 0.2 for style; else -0.5.

    The program is the last fenced block that says it is Python, else the last that says nothing, else the whole answer
    (`program_in`); an empty one is worth what one is that does not parse. Tests are in the row (`given_tests`); a row
    without any is an error. Programs run in the sandbox, several at once, and may use the standard library.
    """

    name = "code"

    def __init__(self, timeout: float, limits: Limits | None = None) -> None:
        """Make ready to run programs.

        Args:
            timeout: seconds a sample, in equal shares for each of its tests.
            limits: of each program.

        Raises:
            UsageError: programs cannot be run safely here.
        """
        check_available()
        self._limits = limits or Limits(timeout)
        self._stopped = threading.Event()
        # A process is told of the death of the thread that started it: these live until the end.
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="tt program")

    def __call__(self, samples: Sequence[Sample]) -> list[Rewarded]:
        """See `Reward`."""
        return list(self._threads.map(self._rewarded, samples))

    def close(self) -> None:
        """End the programs that run."""
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)

    def _rewarded(self, sample: Sample) -> Rewarded:
        try:
            tests = given_tests(sample.metadata)
        except ValueError as error:
            return Rewarded(None, str(error))
        program = program_in(sample.answer)
        if (tree := parsed(program)) is None or not tree.body:
            return Rewarded(SYNTAX_ERROR)
        setup = sample.metadata.get("test_setup_code")
        try:
            whole = f"{setup}\n{program}" if isinstance(setup, str) and setup.strip() else program
            results = run_tests(whole, tests, self._limits, self._stopped)
        except (Unsafe, OSError) as error:
            return Rewarded(None, f"the program could not be run safely: {error}")
        if self._stopped.is_set():
            return Rewarded(None, "not run: the reward was closed")
        passed = sum(result.passed for result in results)
        return Rewarded(PARSES + TESTS * passed / len(results) + STYLE * style(tree, program).share)


def program_in(answer: str) -> str:
    """The program in an answer."""
    from markdown_it import MarkdownIt

    blocks = [token for token in MarkdownIt("commonmark").parse(answer) if token.type == "fence"]
    for languages in (_LANGUAGES, ("",)):
        found = [block.content for block in blocks if _language(block.info) in languages]
        if found:
            return found[-1]
    return answer


def _language(info: str) -> str:
    """The first word after a fence: "```python title=x" is Python."""
    words = info.replace("{", " ").replace(",", " ").split()
    return words[0].lower().strip(".}") if words else ""


def parsed(program: str) -> ast.Module | None:
    """The syntax tree of a program; None where it is not Python."""
    if len(program) > _LONGEST_PROGRAM:
        return None
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def given_tests(metadata: Mapping[str, Any]) -> list[str]:
    """The tests of a row: what raises nothing has passed.

    - `tests` or `test_list` (MBPP): a list of assert statements, or one text. A text of nothing but assert statements
      is so many tests, any other is one.
    - `test` and `entry_point` (HumanEval): a text that defines `check`, which is called with the function.

    Raises:
        ValueError: there are none, or they are something else.
    """
    for name in ("tests", "test_list"):
        if (given := metadata.get(name)) is not None:
            texts = [given] if isinstance(given, str) else given
            if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
                raise ValueError(f"the row's {name} must be a text or a list of texts")
            tests = [test for text in texts for test in _split(text) if test.strip()]
            if not tests:
                raise ValueError(f"the row's {name} is empty")
            return tests
    test, entry_point = metadata.get("test"), metadata.get("entry_point")
    if isinstance(test, str) and isinstance(entry_point, str) and test.strip():
        if not entry_point.isidentifier():
            raise ValueError(f"the row's entry_point is not a name: {entry_point[:80]!r}")
        return [f"{test}\ncheck({entry_point})"]
    raise ValueError("the row has no tests: no column tests, test_list, or test with entry_point")


def _split(text: str) -> list[str]:
    """The assert statements of a text; the text itself where it has anything else."""
    tree = parsed(text)
    if tree is None or not all(isinstance(statement, ast.Assert) for statement in tree.body):
        return [text]
    return [ast.get_source_segment(text, statement) or "" for statement in tree.body]


@dataclass(frozen=True)
class Style:
    """What was looked at in a program: each is a quarter.

    Attributes:
        short_lines: no line is longer than 100 characters or ends in white space.
        short_functions: no function is longer than 50 lines.
        names: functions and their arguments are in snake_case, classes in CapWords.
        care: no bare `except:`, `import *`, or list, dict or set as a default.
    """

    short_lines: bool
    short_functions: bool
    names: bool
    care: bool

    @property
    def share(self) -> float:
        """How much of it holds, from 0 to 1."""
        return (self.short_lines + self.short_functions + self.names + self.care) / 4


def style(tree: ast.Module, program: str) -> Style:
    """A small look at the style of a program."""
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    arguments = [node for node in nodes if isinstance(node, ast.arg)]
    defaults = [d for node in nodes if isinstance(node, ast.arguments) for d in (*node.defaults, *node.kw_defaults)]
    careless = (
        any(isinstance(node, ast.ExceptHandler) and node.type is None for node in nodes)
        or any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in nodes)
        or any(isinstance(default, ast.List | ast.Dict | ast.Set) for default in defaults)
    )
    return Style(
        short_lines=all(len(line) <= _LONGEST_LINE and line == line.rstrip() for line in program.splitlines()),
        short_functions=all((f.end_lineno or f.lineno) - f.lineno < _LONGEST_FUNCTION for f in functions),
        names=all(_SNAKE.fullmatch(name) for name in (*(f.name for f in functions), *(a.arg for a in arguments)))
        and all(_CAPITALS.fullmatch(node.name) for node in nodes if isinstance(node, ast.ClassDef)),
        care=not careless,
    )
