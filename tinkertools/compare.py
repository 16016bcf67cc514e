"""`tt compare`: what fine-tuning changed, tuned against base and run against run, side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tinkertools import console
from tinkertools.config import AUTO_RENDERER, ENGINE, OUTPUT_DIR, AnswerDefaults, ServerSettings
from tinkertools.engines import choose
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
)

DEFAULTS = AnswerDefaults()


def command(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Runs, checkpoints or PEFT folders.", metavar="[RUN]...")
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
    bases = sorted({base_of(base_model, weights) for weights in adapters})
    if len(bases) > 1:
        raise NotYetError(
            f"these adapters have different base models, which this version cannot compare: {bases}",
            hint="compare each with its own base",
        )
    asked_with = renderer_of(renderer, adapters)
    choice = choose(engine, bases[0], ServerSettings.from_environment(base_url))
    models: dict[str, Path | None] = {"base": None} if compare_base else {}
    for weights in adapters:
        models["lora" if len(adapters) == 1 else _unused(weights.label, models)] = weights.directory
    try:
        for weights in adapters:
            console.say(f"adapter: {weights.directory}")
            if weights.note:
                console.warn(weights.note)
        found = evaluate(choice, models, test_prompts, data, settings, asked_with, console.progress)
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was written", hint="run the same command again") from None
    single = len(adapters) == 1
    results: dict[str, Any] = {
        "base_model": choice.base_model,
        "lora_weights": str(adapters[0].directory) if single else [str(weights.directory) for weights in adapters],
        "settings": {**settings.to_json(), "compare_base": compare_base},
        "scores": found.scores,
        "results": [
            {"prompt": prompt.messages, **_responses({k: texts[i] for k, texts in found.answers.items()}, single)}
            for i, prompt in enumerate(found.prompts)
        ],
    }
    write_json(output, results)
    titles = {label: adapters[0].label if label == "lora" else label for label in models}
    questions = [prompt.question for prompt in found.prompts]
    console.show_answers(questions, {titles[k]: texts for k, texts in found.answers.items()}, output)
    console.show_scores({titles[k]: scores for k, scores in found.scores.items()})
    console.say(f"results: {output}")


def _unused(label: str, taken: dict[str, Any]) -> str:
    """`label`, with a number where two adapters share it."""
    number, found = 1, label
    while found in taken:
        number += 1
        found = f"{label} ({number})"
    return found


def _responses(answers: dict[str, str], single: bool) -> dict[str, Any]:
    """A result's answers: by role for one adapter, by label for several."""
    if not single:
        return {"responses": answers}
    return {f"{label}_response": answers[label] for label in ("lora", "base") if label in answers}
