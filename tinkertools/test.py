"""`tt test`: what an adapter answers, and how likely it finds given answers."""

from typing import Annotated, Any

import typer

from tinkertools import console
from tinkertools.config import AUTO_RENDERER, ENGINE, OUTPUT_DIR, TIMEOUT_SECONDS, AnswerDefaults, ServerSettings
from tinkertools.engines import choose_for_weights
from tinkertools.errors import Interrupted
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

DEFAULTS = AnswerDefaults()


def command(
    lora_weights: Annotated[
        str | None,
        typer.Option(
            help="A run, its final_lora_weights, a checkpoint, a PEFT folder or a tinker:// path. Left out: newest run."
        ),
    ] = None,
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
    output: ResultsFile = DEFAULTS.test_output,
) -> None:
    """Show what a fine-tuned adapter answers."""
    from tinkertools.answers import Settings, base_of, evaluate, renderer_of
    from tinkertools.runs.directory import find_weights

    settings = Settings(max_tokens, temperature, seed)
    check_writable_file(output)
    weights = find_weights(lora_weights, output_dir)
    asked_with = renderer_of(renderer, [weights])
    server = ServerSettings.from_environment(base_url)
    choice = choose_for_weights(engine, base_of(base_model, weights), server, [weights])
    try:
        console.say(f"adapter: {weights.name}")
        if weights.note:
            console.warn(weights.note)
        found = evaluate(
            choice, {"lora": weights}, test_prompts, data, settings, asked_with, console.progress, console.waiting,
            timeout,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was written", hint="run the same command again") from None
    results: dict[str, Any] = {
        "base_model": found.base_model,
        "lora_weights": weights.name,
        "settings": settings.to_json(),
        "scores": found.scores,
        "results": [
            {"prompt": prompt.messages, **found.responses(i, {"lora": "lora_response"})}
            for i, prompt in enumerate(found.prompts)
        ],
    }
    write_json(output, results)
    questions = [prompt.question for prompt in found.prompts]
    console.show_answers(questions, {weights.label: [answer.shown for answer in found.answers["lora"]]}, output)
    console.show_scores({weights.label: found.scores["lora"]})
    console.say(f"results: {output}")
    found.refuse_gaps(output)
    console.say(f"next: tt compare {weights.name} --compare-base")
