"""`tt test`: what an adapter answers, and how likely it finds given answers."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkertools import console
from tinkertools.config import AUTO_RENDERER, ENGINE, OUTPUT_DIR, TIMEOUT_SECONDS, AnswerDefaults, ServerSettings
from tinkertools.errors import Interrupted
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
    if not interactive:
        check_writable_file(output)
    weights = find_weights(lora_weights, output_dir)
    base = base_of(base_model, weights)
    questions = Questions(
        test_prompts, data, data_prompts, settings, renderer, engine, ServerSettings.from_environment(base_url), timeout
    )
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


def chat_with(weights: "Weights", base: str, questions: "Questions") -> None:
    """A chat in the terminal, until its end."""
    from tinkertools.chatting import chat

    try:
        show_adapter(weights)
        chat(weights, base, questions, console.read_line, console.data, console.say)
    except KeyboardInterrupt:
        raise Interrupted("stopped", hint="tt test --interactive begins a new chat") from None
