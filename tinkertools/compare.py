"""`tt compare`: what fine-tuning changed, tuned against base and run against run, side by side."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkertools import console
from tinkertools.config import AUTO_RENDERER, ENGINE, OUTPUT_DIR, TIMEOUT_SECONDS, AnswerDefaults, ServerSettings
from tinkertools.engines import choose_for_weights
from tinkertools.errors import Interrupted, NotYetError, UsageError
from tinkertools.files import check_writable_file, write_json
from tinkertools.options import (
    AdapterBase,
    BaseUrl,
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
    from tinkertools.answers import Evaluation
    from tinkertools.runs.directory import Weights

DEFAULTS = AnswerDefaults()


def command(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Runs, checkpoints, PEFT folders or tinker:// paths.", metavar="[RUN]...")
    ] = None,
    lora_weights: Annotated[str | None, typer.Option(help="The same as a RUN. With neither: the newest run.")] = None,
    compare_base: Annotated[bool, typer.Option(help="Ask the base model as well.")] = True,
    base_model: AdapterBase = None,
    test_prompts: TestPrompts = None,
    data: ScoredData = None,
    renderer: RendererOption = AUTO_RENDERER,
    max_tokens: MaxTokens = DEFAULTS.max_tokens,
    temperature: Temperature = DEFAULTS.temperature,
    seed: SamplingSeed = DEFAULTS.seed,
    engine: EngineOption = ENGINE,
    base_url: BaseUrl = None,
    timeout: TimeoutOption = TIMEOUT_SECONDS,
    output_dir: OutputDir = OUTPUT_DIR,
    output: ResultsFile = DEFAULTS.compare_output,
) -> None:
    """Compare a fine-tuned adapter with its base model, and runs with each other."""
    from tinkertools.answers import Settings, base_of, evaluate, renderer_of
    from tinkertools.runs.directory import find_weights

    settings = Settings(max_tokens, temperature, seed)
    check_writable_file(output)
    names: list[str | None] = [*(runs or []), *([lora_weights] if lora_weights else [])]
    adapters = [find_weights(name, output_dir) for name in names or [None]]
    if len(adapters) == 1 and not compare_base:
        raise UsageError(
            "one adapter and --no-compare-base leave nothing to compare", hint="name two runs, or use tt test"
        )
    bases = sorted({base_of(base_model, weights) or "" for weights in adapters})
    if len(bases) > 1:
        raise NotYetError(
            f"these adapters have different base models, which this version cannot compare: {bases}",
            hint="compare each with its own base",
        )
    asked_with = renderer_of(renderer, adapters)
    choice = choose_for_weights(engine, bases[0] or None, ServerSettings.from_environment(base_url), adapters)
    models: dict[str, Weights | None] = {"base": None} if compare_base else {}
    for weights in adapters:
        models["lora" if len(adapters) == 1 else _unused(weights.label, models)] = weights
    try:
        for weights in adapters:
            console.say(f"adapter: {weights.name}")
            if weights.note:
                console.warn(weights.note)
        found = evaluate(
            choice, models, test_prompts, data, settings, asked_with, console.progress, console.waiting, timeout
        )
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was written", hint="run the same command again") from None
    single = len(adapters) == 1
    results: dict[str, Any] = {
        "base_model": found.base_model,
        "lora_weights": adapters[0].name if single else [weights.name for weights in adapters],
        "settings": {**settings.to_json(), "compare_base": compare_base},
        "scores": found.scores,
        "results": [
            {"prompt": prompt.messages, **_responses(found, i, single)} for i, prompt in enumerate(found.prompts)
        ],
    }
    write_json(output, results)
    titles = {label: adapters[0].label if label == "lora" else label for label in models}
    questions = [prompt.question for prompt in found.prompts]
    shown = {titles[k]: [answer.shown for answer in answers] for k, answers in found.answers.items()}
    console.show_answers(questions, shown, output)
    console.show_scores({titles[k]: scores for k, scores in found.scores.items()})
    console.say(f"results: {output}")
    found.refuse_gaps(output)


def _unused(label: str, taken: dict[str, Any]) -> str:
    """`label`, with a number where two adapters share it."""
    number, found = 1, label
    while found in taken:
        number += 1
        found = f"{label} ({number})"
    return found


def _responses(found: "Evaluation", number: int, single: bool) -> dict[str, Any]:
    """A result's answers: by role for one adapter, by label for several."""
    if single:
        return found.responses(number, {"base": "base_response", "lora": "lora_response"})
    responses = found.responses(number, {label: label for label in found.answers})
    errors = responses.pop("errors", None)
    return {"responses": responses} | ({"errors": errors} if errors else {})
