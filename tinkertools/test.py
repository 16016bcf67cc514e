"""`tt test`: what an adapter answers, and how likely it finds given answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkertools import console
from tinkertools.config import AUTO_RENDERER, ENGINE, OUTPUT_DIR, TIMEOUT_SECONDS, AnswerDefaults, ServerSettings
from tinkertools.errors import Interrupted, UsageError
from tinkertools.files import check_writable_file, write_json
from tinkertools.options import (
    AdapterBase,
    BaseUrl,
    CheckOption,
    DataPrompts,
    EngineOption,
    MaxTokens,
    OutputDir,
    RendererOption,
    ResultsFile,
    SamplingSeed,
    ScoredData,
    ScoreFile,
    Temperature,
    TestPrompts,
    TimeoutOption,
)

if TYPE_CHECKING:
    from tinkertools.comparison import Questions
    from tinkertools.runs.directory import Weights

DEFAULTS = AnswerDefaults()


def command(
    lora_weights: Annotated[
        str | None,
        typer.Option(
            help="A run, its final_lora_weights, a checkpoint, a PEFT folder, an adapter on the Hub or a tinker:// "
            "path. Left out: the newest run."
        ),
    ] = None,
    base_model: AdapterBase = None,
    test_prompts: TestPrompts = None,
    data: ScoredData = None,
    data_prompts: DataPrompts = DEFAULTS.data_prompts,
    check: CheckOption = None,
    score: ScoreFile = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Chat with the adapter; /base and /compare ask the base model too.")
    ] = False,
    renderer: RendererOption = AUTO_RENDERER,
    max_tokens: MaxTokens = DEFAULTS.max_tokens,
    temperature: Temperature = DEFAULTS.temperature,
    seed: SamplingSeed = DEFAULTS.seed,
    engine: EngineOption = ENGINE,
    base_url: BaseUrl = None,
    timeout: TimeoutOption = TIMEOUT_SECONDS,
    output_dir: OutputDir = OUTPUT_DIR,
    output: ResultsFile = DEFAULTS.test_output,
) -> None:
    """Show what a fine-tuned adapter answers."""
    from tinkertools.answers import Settings
    from tinkertools.comparison import Questions, ask_models, base_of, goes_on_later, labelled
    from tinkertools.evidence.checks import parse_check
    from tinkertools.kept import Kept
    from tinkertools.results import build, check_notes, left_out
    from tinkertools.runs.directory import find_weights

    settings = Settings(max_tokens, temperature, seed)
    checked = parse_check(check) if check is not None else None
    if score is not None:
        given = {"--test-prompts": test_prompts, "--data": data, "--check": check, "--interactive": interactive or None}
        if others := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"--score {score} asks nothing but scores: {', '.join(others)} has no place beside it",
                hint="leave one of them out, or run tt test twice",
            )
    if not interactive:
        check_writable_file(output)
    weights = find_weights(lora_weights, output_dir)
    base = base_of(base_model, weights)
    questions = Questions(
        test_prompts, data, data_prompts, settings, renderer, engine, ServerSettings.from_environment(base_url), timeout
    )
    if score is not None:
        score_file(score, weights, base, questions, output)
        return
    if interactive:
        chat_with(weights, base, questions)
        return
    kept = output.with_name(f".{output.name}.kept.jsonl")
    with goes_on_later():
        show_adapter(weights)
        with Kept(kept) as file:
            models = labelled([weights], [base], with_base=False)
            found = ask_models(models, questions, file, console.progress, console.waiting)
    results: dict[str, Any] = build(
        found, settings.to_json() | {"data": data, "check": check}, checked, {}, with_base=False
    )
    write_json(output, results)
    questions_asked = [prompt.question for prompt in found.prompts]
    console.show_answers(questions_asked, {weights.label: [a.shown for a in found.answers["lora"]]}, output)
    console.show_scores({weights.label: results["scores"]["lora"]})
    if any(lost := left_out(found)):
        console.warn(f"{sum(lost):,} conversations are too long for the model or cannot be scored: not counted")
    for note in check_notes(found, checked):
        console.warn(note)
    console.say(f"results: {output}")
    found.refuse_gaps(output)
    kept.unlink(missing_ok=True)
    console.say(f"next: tt compare {weights.name} --compare-base")


def show_adapter(weights: "Weights") -> None:
    """Which adapter it is, and what of it the user should know."""
    console.say(f"adapter: {weights.name}")
    if weights.note:
        console.warn(weights.note)


def score_file(file: str, weights: "Weights", base: str, questions: "Questions", output: Path) -> None:
    """The scores of a file's answers: a table, and the results."""
    from tinkertools.chat.sources import find_source
    from tinkertools.comparison import open_models
    from tinkertools.scored import method_note, read_rows, results, score_rows

    show_adapter(weights)
    if note := method_note(weights):
        console.warn(note)
    try:
        rows, preferences = read_rows(find_source(file))
        with open_models(weights, base, questions, console.waiting) as (service, base_model, source, renderer):
            found = score_rows(
                rows, preferences=preferences, sampler=service.create_sampling_client(source, base_model),
                renderer=renderer, max_length=service.max_length(base_model), progress=console.progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted("stopped; no results were written", hint="run the same command again") from None
    write_json(output, results(found, weights, base_model, file))
    console.table(["", weights.label], found.table())
    if found.left_out:
        console.warn(f"{found.left_out:,} rows are too long for the model: not scored")
    console.say(f"results: {output}")


def chat_with(weights: "Weights", base: str, questions: "Questions") -> None:
    """A chat in the terminal, until its end."""
    from tinkertools.chatting import chat

    try:
        show_adapter(weights)
        chat(weights, base, questions, console.read_line, console.data, console.say)
    except KeyboardInterrupt:
        raise Interrupted("stopped", hint="tt test --interactive begins a new chat") from None
