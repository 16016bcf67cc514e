"""A model's tokenizer: loading it, what ends a turn, and where in a text each token stands."""

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkertools.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

# What to try when a base model cannot be loaded.
LOADING_HINT = "check the folder or name; a Hub model needs a network (HF_ENDPOINT names a mirror), HF_TOKEN if gated"


def load_tokenizer(base_model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base model.

    Raises:
        ModelError: there is none that gives offsets.
    """
    from transformers import AutoTokenizer

    folder = Path(base_model)
    if folder.is_dir() and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ModelError(
            f"{base_model} has no tokenizer (no tokenizer.json)",
            hint="copy the tokenizer files of the model into its folder",
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(base_model)
    except Exception as error:
        first_line = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(
            f"the tokenizer of {base_model} cannot be loaded: {first_line}",
            hint=LOADING_HINT,
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {base_model} gives no offsets", hint="it needs a tokenizer.json")
    return tokenizer  # type: ignore[no-any-return]


def end_of_turn_tokens(base_model: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer: the generation configuration's, then the tokenizer's."""
    from transformers import GenerationConfig

    tokens: list[int] = []
    try:
        configured = GenerationConfig.from_pretrained(base_model).eos_token_id
    except OSError:
        configured = None  # a model without the file: the tokenizer alone decides
    for token in [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]:
        if isinstance(token, int) and token not in tokens:
            tokens.append(token)
    return tokens


class Encoded:
    """Ids of a text, and where in it each stands: from the tokenizer's own answer, or from lists."""

    def __init__(self, ids: list[int], offsets: list[tuple[int, int]] | None = None, encoding: Any = None) -> None:
        self.ids = ids
        self._offsets = offsets
        self._encoding: Encoding | None = encoding

    @classmethod
    def of(cls, encoding: "Encoding") -> "Encoded":
        """The tokenizer's answer, of whose offsets only those asked for are looked up: a list of them costs more."""
        return cls(encoding.ids, encoding=encoding)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The first character of each token and the one after its last."""
        if self._offsets is None:
            assert self._encoding is not None
            self._offsets = self._encoding.offsets
        return self._offsets

    def begin_at(self, position: int) -> tuple[int, bool]:
        """The first token that begins at a character or after it, and whether the one before reaches across it."""
        if self._offsets is None and self._encoding is not None:
            token = self._encoding.char_to_token(position)
            if token is not None:
                chars = self._encoding.token_to_chars(token)
                assert chars is not None
                cut = chars[0] < position
                return token + cut, cut
        token = bisect_right(self.offsets, position, key=lambda span: span[1])
        cut = token < len(self.ids) and self.offsets[token][0] < position
        return token + cut, cut


@contextmanager
def without_tokenizers_threads() -> Iterator[None]:
    """Tokenizers compute on the thread that asks, while the block runs. There is no other way to tell them."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
