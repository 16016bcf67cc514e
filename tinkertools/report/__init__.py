"""One self-contained HTML page that shows a comparison: the summary, charts, every example side by side.

The page asks nothing of a network and runs only the script that is written into it. Texts come from models and data, so
they are never HTML: what this side writes is escaped, and the page's script makes text nodes and nothing else. Should
either slip, the page's policy names its one script and its one stylesheet by their hashes and allows nothing beside.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from tinkertools.files import write_bytes
from tinkertools.report.summary import heading, safe, settings, summary, title

_HERE = Path(__file__).parent
_SCRIPTS = ("items.js", "differences.js", "charts.js", "examples.js", "main.js")

# Inside a script element only these could end the data or begin a comment, and in JSON they stand only in strings,
# where they may be written as escapes. Half a surrogate pair has no bytes in UTF-8.
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the page that shows `results`, whole. The same results give the same bytes.

    Args:
        results: what `tt compare` writes as `comparison_results.json`; any part may be missing.
        path: where the page goes.

    Raises:
        FileError: the file system refused.
    """
    write_bytes(path, page(results).encode())


def page(results: Mapping[str, Any]) -> str:
    """The page that shows `results`."""
    style = _read("page.css")
    script = "(() => {\n" + "\n".join(_read(name) for name in _SCRIPTS) + "})();\n"
    return Template(_read("page.html")).substitute(
        policy=safe(_policy(style, script)),
        title=safe(title(results)),
        style=style,
        heading=heading(results),
        summary=summary(results),
        settings=settings(results),
        data=embedded(results),
        script=script,
    )


def embedded(value: Any) -> str:
    """`value` as JSON that can stand inside a script element. What JSON cannot say (NaN, infinity) becomes null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: this script, this stylesheet, nothing else, and no HTML from strings."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
