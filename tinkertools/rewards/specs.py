"""What `--reward` names, checked before anything is started."""

import ast
import difflib
import importlib.machinery
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tinkertools.errors import UsageError
from tinkertools.rewards.sandbox import check_available
from tinkertools.rewards.worker import Function

if TYPE_CHECKING:
    from tinkertools.asking.models import AskedModel

Kind = Literal["math", "regex", "code", "judge", "score", "function"]

_FORMS = "math, regex:PATTERN, code, judge:NAME, score:RUN, MODULE:FUNCTION or FILE.py:FUNCTION"
# Those that take something after a colon, and what.
_TAKE = {"regex": "PATTERN", "judge": "NAME", "score": "RUN"}
_ALONE = ("math", "code")


@dataclass(frozen=True)
class RewardSpec:
    """What rewards answers.

    Attributes:
        text: as it was given to `--reward`.
        kind: what it is.
        argument: what stood after the colon: a pattern, a judge, a run; empty for `math` and `code`.
        judge: who judges, of `judge:`.
        function: what is called, of a function of the user's.
    """

    text: str
    kind: Kind
    argument: str = ""
    judge: "AskedModel | None" = None
    function: Function | None = None

    @property
    def needs_reference(self) -> bool:
        """Whether each row of the data must have an answer."""
        return self.kind == "math"


def parse_reward(spec: str) -> RewardSpec:
    """The reward that `--reward` names, once it is clear that it can be had; nothing is started.

    Args:
        spec: what the user typed.

    Raises:
        UsageError: nothing is named by that, a pattern is none, a module or function is not there, a judge's key or
            library is missing, or programs cannot be run safely here.
        RunError: a judge is a run without weights.
    """
    spec = spec.strip()
    name, colon, argument = spec.partition(":")
    if name in _ALONE and not colon:
        if name == "code":
            check_available()
        return RewardSpec(spec, "math" if name == "math" else "code")
    if name in _TAKE:
        if not argument:
            raise UsageError(f"--reward {spec} lacks what it is about", hint=f"--reward {name}:{_TAKE[name]}")
        if name == "regex":
            _check_pattern(argument)
            return RewardSpec(spec, "regex", argument)
        if name == "judge":
            from tinkertools.asking.models import parse_model

            return RewardSpec(spec, "judge", argument, judge=parse_model("--reward judge", argument))
        return RewardSpec(spec, "score", argument)
    if not colon:
        raise UsageError(f"--reward {spec or '(empty)'}: there is no such reward", hint=_suggestion(spec))
    where, _, function = spec.rpartition(":")
    return RewardSpec(spec, "function", function=_find_function(spec, where.strip(), function.strip()))


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, (*_ALONE, *_TAKE), 1)
    if not near:
        return f"--reward takes {_FORMS}"
    whole = f"{near[0]}:{_TAKE[near[0]]}" if near[0] in _TAKE else near[0]
    return f"did you mean {whole}? --reward takes {_FORMS}"


def _check_pattern(pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        place = f" at column {error.colno}" if isinstance(error, re.error) and error.colno else ""
        words = error.msg if isinstance(error, re.error) else str(error)
        raise UsageError(
            f"--reward regex:{pattern} is no regular expression{place}: {words}",
            hint="Python's syntax: https://docs.python.org/3/library/re.html#regular-expression-syntax",
        ) from error


def _find_function(spec: str, where: str, name: str) -> Function:
    """The function that a spec names, as far as can be seen without importing anything of the user's."""
    is_file = where.endswith(".py") or "/" in where
    if not re.fullmatch(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*", name):
        raise UsageError(f"--reward {spec}: {name or 'nothing'} is not the name of a function", hint=_suggestion(where))
    path = Path(where) if is_file else _module_file(spec, where)
    if is_file and not (where.endswith(".py") and path.is_file()):
        raise UsageError(f"--reward {spec}: there is no file {where} with Python code", hint="check the path")
    if path.suffix == ".py":
        _check_defined(spec, path, name)
    return Function(str(path.resolve()) if is_file else where, name, is_file)


def _module_file(spec: str, module: str) -> Path:
    """Where a module is: the working directory comes first, as it will. Nothing is imported, no package either."""
    folders: list[str] | None = [str(Path.cwd()), *sys.path]
    found: importlib.machinery.ModuleSpec | None = None
    for part in module.split("."):
        found = importlib.machinery.PathFinder.find_spec(part, folders) if part and folders is not None else None
        if found is None:
            # Python's own need not be files: `math`, `os.path`.
            if module in sys.builtin_module_names or module in sys.modules:
                return Path(getattr(sys.modules.get(module), "__file__", None) or module)
            raise UsageError(f"--reward {spec}: there is no module {module}", hint=_suggestion(module))
        folders = list(found.submodule_search_locations) if found.submodule_search_locations else None
    return Path(found.origin) if found is not None and found.origin else Path(module)


def _check_defined(spec: str, path: Path, name: str) -> None:
    """Refuse a name that a file does not define, and a file that is not Python."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise UsageError(
            f"--reward {spec}: {path}:{error.lineno} is not valid Python: {error.msg}", hint="mend it"
        ) from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"--reward {spec}: {path} cannot be read: {error}", hint="check the file") from error
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {one.asname or one.name.partition(".")[0] for one in node.names}
    # Names that are made some other way are found when it is loaded.
    if "*" in names or "__getattr__" in names or name.partition(".")[0] in names:
        return
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    near = difflib.get_close_matches(name, functions, 1) or functions[:1]
    raise UsageError(
        f"--reward {spec}: {path} has no {name}",
        hint=f"did you mean {spec.rpartition(':')[0]}:{near[0]}?" if near else "define it there: def name(sample): …",
    )
