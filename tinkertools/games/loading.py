"""`--game`: a game by its name, or a user's class."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tinkertools.errors import UsageError
from tinkertools.games.matches import Rules, described
from tinkertools.games.nim import Nim

_SHIPPED = {"nim": Nim}
_FORMS = f"--game takes {', '.join(_SHIPPED)}, FILE.py:CLASS or MODULE:CLASS"


def whole_name(name: str) -> str:
    """A game's name as it is kept: a file by its whole path, so that a run can go on from anywhere."""
    where, _, what = name.rpartition(":")
    return f"{Path(where).resolve()}:{what}" if where.endswith(".py") and Path(where).is_file() else name


def find_game(name: str) -> Rules:
    """The rules that `--game` names: `nim`, `FILE.py:CLASS` or `MODULE:CLASS`.

    Raises:
        UsageError: there is no such game, or its module fails.
    """
    if name in _SHIPPED:
        return Rules(name, _SHIPPED[name])
    where, _, what = name.rpartition(":")
    if not where or not what:
        raise UsageError(f"--game {name}: there is no such game", hint=_FORMS)
    module = _module(name, where)
    found: Any = getattr(module, what, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if hasattr(value, "fixed_move")]
        raise UsageError(
            f"--game {name}: {module.__file__ or where} has no class {what}",
            hint=f"--game {where}:{classes[0]}" if classes else f"define it there; {_FORMS}",
        )
    return Rules(name, found)


def _module(name: str, where: str) -> ModuleType:
    """The module of a user's game, with the working directory importable."""
    path = Path(where)
    if where.endswith(".py") and not path.is_file():
        raise UsageError(f"--game {name}: there is no file {where}", hint="check the path")
    folder = str(path.resolve().parent if where.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        # Not the file's own name, which may be that of a library.
        spec = importlib.util.spec_from_file_location(f"game_of_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        hint = _FORMS if error.name == where.partition(".")[0] else f"install {error.name}, or mend the import"
        raise UsageError(f"--game {name}: {described(error, __file__)}", hint=hint) from error
    except Exception as error:
        raise UsageError(f"--game {name}: {described(error, __file__)}", hint="mend the game's file") from error
    finally:
        sys.path.remove(folder)
    return module
