"""`tt prepare`: any dataset becomes chat JSONL, checked row by row, in bounded memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from tinkertools import console
from tinkertools.config import (
    AUTO_RENDERER,
    TIMEOUT_SECONDS,
    TRAIN_ON_WHAT,
    TRAINING_DATA,
    Format,
    Generate,
    PrepareDefaults,
)
from tinkertools.errors import DataError, Interrupted, UsageError
from tinkertools.options import BaseUrl, RendererOption, TimeoutOption
from tinkertools.preparing import (
    Counts,
    GenerateOptions,
    Index,
    PrepareOptions,
    distribute,
    reject_line,
    scratch_beside,
    section_summary,
    summary,
)
from tinkertools.shipped import STARTER_MODEL

if TYPE_CHECKING:
    from tinkertools.chat.records import Reader
    from tinkertools.chat.sources import Source
    from tinkertools.generating.documents import Documents

DEFAULTS = PrepareDefaults()


def command(
    dataset: Annotated[
        str,
        typer.Option(
            help="A file (JSONL, JSON, CSV, TSV, Parquet, .gz of these; Markdown, text), a folder or a quoted pattern "
            "of such, a Hub name, or -. With --generate also PDF files, s3://BUCKET/PREFIX, and SQLite with --query."
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
    generate: Annotated[
        Generate | None,
        typer.Option(metavar="qa", help="Have a model write data from documents: questions and answers."),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Who writes: openai:NAME, anthropic:NAME, tinker:NAME, tinker://PATH or local:FOLDER."
        ),
    ] = None,
    pairs_per_document: Annotated[
        int, typer.Option(help="Ask for so many pairs of a document, spread over its parts.")
    ] = DEFAULTS.pairs_per_document,
    query: Annotated[
        str | None, typer.Option(metavar="SQL", help="A SELECT on an SQLite file; the text of each row is a document.")
    ] = None,
    generator_at_once: Annotated[int, typer.Option(help="Questions to the generator on their way at most.")] = (
        DEFAULTS.generator_at_once
    ),
    generator_rate: Annotated[int | None, typer.Option(help="Questions to the generator a minute at most.")] = None,
    generator_price: Annotated[
        str | None,
        typer.Option(metavar="IN,OUT", help="Dollars for a million tokens that the generator reads and writes."),
    ] = None,
    base_url: BaseUrl = None,
    timeout: TimeoutOption = TIMEOUT_SECONDS,
) -> None:
    """Turn any dataset, or documents, into chat JSONL: one {"messages": […]} a line. Or a preference's two answers."""
    given = {
        "--pairs-per-document": pairs_per_document != DEFAULTS.pairs_per_document, "--query": query is not None,
        "--generator-at-once": generator_at_once != DEFAULTS.generator_at_once, "--generator": generator is not None,
        "--generator-rate": generator_rate is not None, "--generator-price": generator_price is not None,
        "--base-url": base_url is not None, "--timeout": timeout != TIMEOUT_SECONDS,
    }  # fmt: skip
    if generate is None and any(given.values()):
        names = " and ".join(name for name, is_given in given.items() if is_given)
        raise UsageError(f"{names} only say how --generate works, and it is not given", hint="add --generate qa")
    if generate is not None and generator is None:
        raise UsageError("--generate needs a model that writes", hint="add --generator openai:MODEL, or another")
    making = None
    if generate is not None and generator is not None:
        making = GenerateOptions(
            generate, generator, pairs_per_document, query, generator_at_once, generator_rate, generator_price,
            base_url, timeout,
        )  # fmt: skip
    options = PrepareOptions(
        dataset, output, split, config_name, max_examples, format, prompt_column, completion_column, system,
        val_fraction, shuffle, seed, dedupe or making is not None, skip_bad, preview, base_model, renderer, making,
    )  # fmt: skip
    try:
        counts = prepare(options)
    except KeyboardInterrupt:
        again = f"go on; replies are kept in {options.replies}" if making else "start over"
        raise Interrupted("stopped; nothing was written", hint=f"run the same command again to {again}") from None
    report(options, counts)


def report(options: PrepareOptions, counts: Counts) -> None:
    """What was made, and what the user should know of it."""
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


def prepare(options: PrepareOptions) -> Counts:
    """Read, check, and write; files appear only when all is well.

    Raises:
        DataError: a row is bad (without `skip_bad`), nothing is left, or the source cannot be read.
        FileError: the output cannot be written.
    """
    from tinkertools.chat.records import Reader
    from tinkertools.files import check_writable_file, whole_files

    check_writable_file(options.output)
    own = (options.output, options.validation_output, options.rejects)
    source = generated_source(options, options.generate, own) if options.generate else found_source(options, own)
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


def found_source(options: PrepareOptions, own: tuple[Path, ...]) -> "Source":
    """The rows that the user named, less files that are written here."""
    from tinkertools.chat.sources import find_source

    # Columns are of rows, so documents are not meant.
    wanted: Format = "prompt-completion" if options.prompt_column else options.format
    source = find_source(
        options.dataset, split=options.split, config_name=options.config_name, leave_out=own, format=wanted
    )
    if source.ignored:
        kind = "documents" if source.documents else "data files"
        console.warn(f"{len(source.ignored)} files in {source.name} are no {kind}, such as {source.ignored[0]}")
    return source


def generated_source(options: PrepareOptions, generate: GenerateOptions, own: tuple[Path, ...]) -> "Source":
    """The rows that a model writes about the documents which the user named.

    Raises:
        DataError: a document has no reply (without `skip_bad`), or no pair is left.
    """
    from tinkertools.asking.costs import parse_price
    from tinkertools.asking.models import parse_model
    from tinkertools.chat.sources import Source
    from tinkertools.generating.documents import read_documents
    from tinkertools.generating.making import ENGINE_TOKENS, make_pairs, refuse_gaps, unread_rows

    model = parse_model("--generator", generate.generator, generate.base_url, ENGINE_TOKENS)
    price = parse_price("--generator-price", generate.price) if generate.price is not None else None
    documents = read_documents(options.dataset, generate.query, own, console.progress)
    show_unread(documents)
    made = make_pairs(
        documents, model, options.replies, pairs_per_document=generate.pairs_per_document, at_once=generate.at_once,
        per_minute=generate.per_minute, price=price, progress=console.progress, notify=console.say,
        timeout=generate.timeout,
    )  # fmt: skip
    for line in (*made.counts.words(), f"generator: {made.tally.words(price)}"):
        console.say(line)
    refuse_gaps(made, DEFAULTS.errors_shown, options.replies, skip_bad=options.skip_bad)
    console.say(f"replies are kept in {options.replies}: what is there is not asked again")
    # With `skip_bad` the failed are refused as bad rows are, and those that could not be read beside them.
    bad = [*made.failed, *unread_rows(documents.unread)] if options.skip_bad else []
    return Source(documents.name, given=[*made.rows, *bad])


def show_unread(documents: "Documents") -> None:
    """What of the documents will not be asked about."""
    if documents.ignored:
        number = len(documents.ignored)
        console.warn(f"{number} files in {documents.name} are no documents, such as {documents.ignored[0]}")
    for one in documents.unread[: DEFAULTS.errors_shown]:
        console.warn(f"{one.name}: {one.reason}")
    if (more := len(documents.unread) - DEFAULTS.errors_shown) > 0:
        console.warn(f"… and {more:,} more that are empty or cannot be read")


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
                    rejects.write(reject_line(item))
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
