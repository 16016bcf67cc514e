"""Adapters on the Hugging Face Hub."""

import os
import re
from pathlib import Path

from tinkertools.adapters.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tinkertools.chat.tokenizing import LOADING_HINT
from tinkertools.errors import ModelError, RunError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch_adapter(name: str) -> Path | None:
    """The folder of an adapter on the Hub, in the library's cache; None for what is no name there.

    Raises:
        RunError: the repository holds no adapter.
        ModelError: the Hub does not give it.
    """
    if not _NAME.fullmatch(name):
        return None
    from huggingface_hub import snapshot_download

    try:
        # The library reads the variable once, when it is loaded; a push reads it now, too.
        endpoint = os.environ.get("HF_ENDPOINT") or None
        folder = Path(snapshot_download(name, allow_patterns=[ADAPTER_CONFIG, ADAPTER_WEIGHTS], endpoint=endpoint))
    except Exception as error:
        first_line = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(
            f"no adapter at {name}, and the Hub does not give it: {first_line}", hint=LOADING_HINT
        ) from error
    missing = [file for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise RunError(f"{name} on the Hub is no adapter: it has no {', '.join(missing)}", hint="name another")
    return folder
