"""`tt prepare`: any dataset becomes chat JSONL, checked row by row, in bounded memory."""

import os
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from tinkertools import console
from tinkertools.config import AUTO_RENDERER, TRAIN_ON_WHAT, TRAINING_DATA, Format, PrepareDefaults
from tinkertools.errors import DataError, Interrupted, UsageError
from tinkertools.options import RendererOption
from tinkertools.shipped import STARTER_MODEL

if TYPE_CHECKING:
    from tinkertools.chat.records import Reader, Refused
    from tinkertools.chat.sections import SectionCounts

DEFAULTS = PrepareDefaults()


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

    @property
    def validation_output(self) -> Path:
        """Where the held-out part goes."""
        return self.output.with_name(f"{self.output.stem}.val{self.output.suffix}")

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


def command(
    dataset: Annotated[
        str,
        typer.Option(
            help="A file (JSONL, JSON, CSV, TSV, Parquet, .gz of these; Markdown, text), a folder or a quoted pattern "
            "of such, a Hub name, or -."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Where the chat JSONL goes.")] = TRAINING_DATA,
    split: Annotated[str, typer.Option(help="The split of a Hub dataset.")] = DEFAULTS.split,
    config_name: Annotated[str | None, typer.Option(help="The configuration (subset) of a Hub dataset.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Keep at most this many conversations.")] = None,
    format: Annotated[
        Format,
        typer.Option(
            help="The form of the rows; auto says what it found. preference: chosen and rejected answers. sections: "
            "headings of documents."
        ),
    ] = DEFAULTS.format,
    prompt_column: Annotated[str | None, typer.Option(help="The column that asks.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="The column that answers.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message for conversations that have none.")] = None,
    val_fraction: Annotated[
        float,
        typer.Option(
            help="Hold out this share, as OUTPUT.val.jsonl; equal conversations (of preferences: prompts) stay on one "
            "side."
        ),
    ] = DEFAULTS.val_fraction,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle", help="Write in a random order that --seed decides (needs 24 bytes of memory a row)."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle and of the held-out part.")] = DEFAULTS.seed,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Drop repeated conversations (needs about 150 bytes of memory for each).")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on past bad rows; they go to OUTPUT.rejects.jsonl with the reason.")
    ] = False,
    preview: Annotated[
        int, typer.Option(help="Show so many examples as a model would be trained on them, and count all tokens.")
    ] = DEFAULTS.preview,
    base_model: Annotated[
        str | None, typer.Option(help="The model of the preview: a folder or a name. Left out: the starter model.")
    ] = None,
    renderer: RendererOption = AUTO_RENDERER,
) -> None:
    """Turn any dataset, or documents, into chat JSONL: one {"messages": […]} a line, or a preference's two answers."""
    options = PrepareOptions(
        dataset, output, split, config_name, max_examples, format, prompt_column, completion_column, system,
        val_fraction, shuffle, seed, dedupe, skip_bad, preview, base_model, renderer,
    )  # fmt: skip
    try:
        counts = prepare(options)
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was written", hint="run the same command again to start over") from None
    console.say(summary(counts))
    if counts.held_out:
        console.say(f"held out: {counts.held_out:,} in {options.validation_output}")
    elif options.validation_output.exists():
        console.warn(f"{options.validation_output} is from an earlier run: it may hold rows that are now trained on")
    for place in counts.unread:
        console.warn(f"{place}: the rest of this file could not be read")
    if counts.refused:
        console.say(f"refused rows, each with its reason: {options.rejects}")
    if options.preview:
        show_preview(options, counts)
    console.data(str(options.output))
    method = "--method dpo " if counts.preferences else ""
    console.say(f"next: tt train {method}--data {options.output}")


def show_preview(options: PrepareOptions, counts: Counts) -> None:
    """The first conversations or preferences as they would be trained on, and what all of them amount to.

    Raises:
        DataError: some cannot be rendered for this model, or would be trained otherwise than they are sampled.
    """
    from tinkertools.chat.cache import fingerprint
    from tinkertools.chat.pairs import TRAIN_PAIRS_ON
    from tinkertools.chat.records import read_all, read_preferences
    from tinkertools.chat.rendering import choose_renderer, load_renderer
    from tinkertools.chat.sources import find_source
    from tinkertools.data import make_pairs_ready, make_ready, tell, tell_pairs
    from tinkertools.local.limits import Limits, limits_of

    base_model = options.base_model or str(STARTER_MODEL)
    source = find_source(str(options.output))
    limits = limits_of(base_model) if Path(base_model).is_dir() else Limits(None, None)
    choice = choose_renderer(base_model, options.renderer)
    if counts.preferences:
        preferences, _ = read_preferences(source, DEFAULTS.errors_shown)
        console.say(choice.words("both answers"))
        renderer = load_renderer(base_model, options.renderer, TRAIN_PAIRS_ON)
        pairs = make_pairs_ready(renderer, preferences, limits, console.progress, overlength="drop")
        console.show_pairs(renderer, pairs.pairs[: options.preview])
        tell_pairs(pairs, console.voice())
        return
    conversations, _ = read_all(source, DEFAULTS.errors_shown)
    console.say(choice.words(TRAIN_ON_WHAT))
    renderer = load_renderer(base_model, options.renderer)
    ready = make_ready(
        renderer, conversations, fingerprint(conversations), limits, console.progress, overlength="truncate"
    )
    console.show_examples(renderer, ready.rendered.examples[: options.preview])
    tell(ready, console.voice())


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


def prepare(options: PrepareOptions) -> Counts:
    """Read, check, and write; files appear only when all is well.

    Raises:
        DataError: a row is bad (without `skip_bad`), nothing is left, or the source cannot be read.
        FileError: the output cannot be written.
    """
    from tinkertools.chat.records import Reader
    from tinkertools.chat.sources import find_source
    from tinkertools.files import check_writable_file, whole_files

    check_writable_file(options.output)
    own = (options.output, options.validation_output, options.rejects)
    # Columns are of rows, so documents are not meant.
    wanted: Format = "prompt-completion" if options.prompt_column else options.format
    source = find_source(
        options.dataset, split=options.split, config_name=options.config_name, leave_out=own, format=wanted
    )
    if source.ignored:
        kind = "documents" if source.documents else "data files"
        console.warn(f"{len(source.ignored)} files in {source.name} are no {kind}, such as {source.ignored[0]}")
    reader = Reader(source, options.format, options.prompt_column, options.completion_column)
    staged = options.shuffle or options.val_fraction > 0
    counts = Counts()
    more = [options.validation_output] * (options.val_fraction > 0) + [options.rejects] * options.skip_bad
    with whole_files(options.output, *more) as (output, *others):
        rejects = others.pop() if options.skip_bad else None
        held_out = others.pop() if others else None
        if staged:
            with scratch_beside(options.output) as scratch:
                index = Index()
                convert(reader, options, counts, scratch, rejects, index)
                distribute(index, scratch, output, held_out, options, counts)
        else:
            convert(reader, options, counts, output, rejects, None)
        if not counts.kept:
            raise DataError(
                f"no row of {options.dataset} could be used: {summary(counts)}",
                hint="run without --skip-bad to see why rows are refused",
            )
    if not counts.refused:
        options.rejects.unlink(missing_ok=True)
    return counts


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


def convert(
    reader: "Reader", options: PrepareOptions, counts: Counts, out: BinaryIO, rejects: BinaryIO | None,
    index: Index | None,
) -> None:  # fmt: skip
    """Write each good conversation of `reader` to `out` as a line; note where in `index` if it is to be moved."""
    import orjson

    from tinkertools.chat.records import Refused, add_system, explain_refusals
    from tinkertools.chat.sources import Malformed
    from tinkertools.chat.splitting import digest_of, side_of

    dumps, newline = orjson.dumps, orjson.OPT_APPEND_NEWLINE
    write = out.write
    limit = options.max_examples if index is None else None
    digests = options.dedupe or index is not None
    seen: set[int] = set()
    shown: list[Refused] = []
    with watch(reader) as look:
        for item in reader.read():
            if isinstance(item, Refused):
                counts.refused += 1
                if isinstance(item.row.value, Malformed) and item.row.value.ends_file:
                    counts.unread.append(f"{item.row.file}:{item.row.line}")
                if rejects is not None:
                    rejects.write(_reject(item))
                elif len(shown) < DEFAULTS.errors_shown:
                    shown.append(item)
                continue
            if shown:
                counts.kept += 1  # there will be no output: only the counting goes on
                continue
            if options.system:
                add_system(item, options.system)
            line = dumps(item, default=str, option=newline)
            digest = digest_of(item, line) if digests else 0
            if options.dedupe:
                if digest in seen:
                    counts.duplicates += 1
                    continue
                seen.add(digest)
            write(line)
            if index is not None:
                index.add(line, side_of(item, digest))
            counts.kept += 1
            if counts.kept & 4095 == 0:
                look()
            if counts.kept == limit:
                break
    counts.rows_in = reader.rows_in
    if reader.format is not None:
        counts.preferences = reader.format.preferences
        console.say(f"format: {reader.format.description}")
    if reader.source.documents:
        console.say(section_summary(reader.source.sections))
    if shown:
        console.say(f"{summary(counts)}; nothing is written")
        raise explain_refusals(shown, counts.refused, "mend them, or add --skip-bad to leave bad rows out")


def _reject(refused: "Refused") -> bytes:
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


@contextmanager
def watch(reader: "Reader") -> Iterator[Callable[[], None]]:
    """Shows how far a reader is: by bytes where the input's size is known, by rows elsewhere."""
    total = reader.source.bytes_total
    start = time.monotonic()
    with console.progress("prepare", total / 1e6 if total else None, "MB" if total else "rows") as report:

        def look() -> None:
            rows = reader.rows_in
            done = reader.source.bytes_read / 1e6 if total else rows
            report(done, f"{rows:,} rows, {rows / max(1e-9, time.monotonic() - start):,.0f} rows/s")

        yield look
        look()
