"""What `tt prepare` does with rows once they are conversations: what is counted, refused, moved and split."""

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tinkertools.config import AUTO_RENDERER, Format, Generate
from tinkertools.errors import UsageError

if TYPE_CHECKING:
    from tinkertools.chat.records import Refused
    from tinkertools.chat.sections import SectionCounts


@dataclass(frozen=True)
class GenerateOptions:
    """What a model is to make of documents.

    Attributes:
        kind: what it writes.
        generator: who writes, as the user named it.
        pairs_per_document: how many pairs to ask for.
        query: a SELECT whose rows are the documents.
        at_once: questions on their way at most.
        per_minute: questions a minute at most.
        price: of its tokens, as the user wrote it.
        base_url: of a Tinker server.
        timeout: seconds that an answer may take.
    """

    kind: Generate
    generator: str
    pairs_per_document: int
    query: str | None
    at_once: int
    per_minute: int | None
    price: str | None
    base_url: str | None
    timeout: float


@dataclass(frozen=True)
class PrepareOptions:
    """What to read, what to make of it, and where it goes."""

    dataset: str
    output: Path
    split: str
    config_name: str | None
    max_examples: int | None
    format: Format
    prompt_column: str | None
    completion_column: str | None
    system: str | None
    val_fraction: float
    shuffle: bool
    seed: int
    dedupe: bool
    skip_bad: bool
    preview: int
    base_model: str | None
    renderer: str
    generate: GenerateOptions | None = None

    def __post_init__(self) -> None:
        if self.format not in ("auto", "prompt-completion") and (self.prompt_column or self.completion_column):
            raise UsageError(f"--prompt-column and --completion-column do not go with --format {self.format}")
        if bool(self.prompt_column) != bool(self.completion_column):
            raise UsageError("--prompt-column and --completion-column go together", hint="give both, or neither")
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"--val-fraction is {self.val_fraction}, but must be at least 0 and less than 1")
        if self.system is not None and self.system != self.system.encode(errors="replace").decode():
            raise UsageError("--system holds bytes that are not UTF-8", hint="type it in a terminal that uses UTF-8")
        if self.max_examples is not None and self.max_examples < 1:
            raise UsageError(f"--max-examples is {self.max_examples}, but must be at least 1")
        if self.preview < 0:
            raise UsageError(f"--preview is {self.preview}, but must be 0 or more", hint="for example --preview 3")
        if not self.preview and (self.base_model is not None or self.renderer != AUTO_RENDERER):
            raise UsageError(
                "--base-model and --renderer only say how a preview is written", hint="add --preview 3, or omit them"
            )
        if self.generate and (self.format != "auto" or self.prompt_column or self.config_name):
            raise UsageError(
                "--format, --prompt-column, --completion-column and --config-name are of rows, and --generate reads "
                "documents",
                hint="leave them out",
            )

    @property
    def validation_output(self) -> Path:
        """Where the held-out part goes."""
        return self.output.with_name(f"{self.output.stem}.val{self.output.suffix}")

    @property
    def replies(self) -> Path:
        """Where a generator's replies are kept: a hidden file, which is nobody's data."""
        return self.output.with_name(f".{self.output.name}.replies.jsonl")

    @property
    def rejects(self) -> Path:
        """Where refused rows go, each with its reason."""
        return self.output.with_name(f"{self.output.name}.rejects.jsonl")


@dataclass
class Counts:
    """What became of the rows: `rows_in = kept + refused + duplicates + left_out`; and whether they are preferences."""

    rows_in: int = 0
    kept: int = 0
    refused: int = 0
    duplicates: int = 0
    left_out: int = 0
    held_out: int = 0
    preferences: bool = False
    unread: list[str] = field(default_factory=list)


def summary(counts: Counts) -> str:
    """Where every row went; the parts add up to the rows read."""
    parts = [f"{counts.kept:,} kept", f"{counts.refused:,} refused"]
    if counts.duplicates:
        parts.append(f"{counts.duplicates:,} duplicates")
    if counts.left_out:
        parts.append(f"{counts.left_out:,} beyond --max-examples")
    return f"rows in: {counts.rows_in:,} = {' + '.join(parts)}"


def section_summary(counts: "SectionCounts") -> str:
    """How many sections documents held, and what of them gives no row."""
    documents = "1 document" if counts.documents == 1 else f"{counts.documents:,} documents"
    filled = counts.sections - counts.empty
    text = f"sections: {counts.sections:,} in {documents} = {filled:,} with text + {counts.empty:,} without"
    if counts.leading:
        of = "1 document" if counts.leading == 1 else f"{counts.leading:,} documents"
        text += f"; text before the first heading of {of} is left out"
    return text


class Index:
    """Where each staged line begins, and the number by which equal ones stay together: 16 bytes of memory a row."""

    def __init__(self) -> None:
        self.offsets = array("Q", [0])
        self.digests = array("Q")

    def add(self, line: bytes, digest: int) -> None:
        """Remember the line just written."""
        self.offsets.append(self.offsets[-1] + len(line))
        self.digests.append(digest)


@contextmanager
def scratch_beside(output: Path) -> Iterator[BinaryIO]:
    """A file beside `output` to write and then read by its name at any place; gone when the block ends."""
    path = output.with_name(f".{output.name}.staged-{os.getpid()}")
    try:
        with path.open("wb", buffering=1 << 20) as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def reject_line(refused: "Refused") -> bytes:
    """The line of a refused row: its place, the field, the reason, and the row itself."""
    import orjson

    from tinkertools.chat.sources import Malformed

    value = refused.row.value
    reject = {
        "place": f"{refused.row.file}:{refused.row.line}",
        "field": refused.field_name,
        "reason": refused.reason,
        "row": value.text if isinstance(value, Malformed) else value,
    }
    try:
        return orjson.dumps(reject, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:  # such as nested too deep
        shown = {name: str(text).encode(errors="replace").decode() for name, text in reject.items() if name != "row"}
        return orjson.dumps(shown | {"row": f"not shown: {error}"}, option=orjson.OPT_APPEND_NEWLINE)


def distribute(
    index: Index, scratch: BinaryIO, output: BinaryIO, held_out: BinaryIO | None, options: PrepareOptions,
    counts: Counts,
) -> None:  # fmt: skip
    """Copy the staged lines to their files: shuffled, limited, and split by digest so that equal rows stay together."""
    import random

    from tinkertools.chat.splitting import validation_digests

    order = array("Q", range(len(index.digests)))
    if options.shuffle:
        random.Random(options.seed).shuffle(order)
    if options.max_examples is not None:
        counts.left_out = max(0, len(order) - options.max_examples)
        order = order[: options.max_examples]
    what = "prompts" if counts.preferences else "conversations"
    chosen = validation_digests([index.digests[i] for i in order], options.val_fraction, options.seed, what)
    scratch.flush()
    # Unbuffered: a buffer would be filled anew for every line that is somewhere else.
    with Path(scratch.name).open("rb", buffering=0) as lines:
        for i in order:
            lines.seek(index.offsets[i])
            line = lines.read(index.offsets[i + 1] - index.offsets[i])
            if held_out is not None and index.digests[i] in chosen:
                held_out.write(line)
                counts.held_out += 1
            else:
                output.write(line)
    counts.kept = len(order)
