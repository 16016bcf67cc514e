"""`tt compare`: what fine-tuning changed, tuned against base and run against run, with numbers that hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkertools import console
from tinkertools.config import AUTO_RENDERER, ENGINE, OUTPUT_DIR, TIMEOUT_SECONDS, AnswerDefaults, ServerSettings
from tinkertools.errors import UsageError
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
    from tinkertools.asking.costs import TokenPrice
    from tinkertools.asking.models import AskedModel
    from tinkertools.comparison import Found, Model
    from tinkertools.results import Verdicts
    from tinkertools.runs.directory import Weights

DEFAULTS = AnswerDefaults()

# As much of a conversation is quoted, in characters.
_QUOTED = 60


def command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs, checkpoints, PEFT folders, adapters on the Hub or tinker:// paths.", metavar="[RUN]..."
        ),
    ] = None,
    lora_weights: Annotated[str | None, typer.Option(help="The same as a RUN. With neither: the newest run.")] = None,
    compare_base: Annotated[bool, typer.Option(help="Ask the base models as well.")] = True,
    base_model: AdapterBase = None,
    test_prompts: TestPrompts = None,
    data: ScoredData = None,
    data_prompts: DataPrompts = DEFAULTS.data_prompts,
    check: CheckOption = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model that judges answers in pairs: openai:NAME, anthropic:NAME, tinker:NAME or local:FOLDER.",
        ),
    ] = None,
    judge_at_once: Annotated[int, typer.Option(help="Questions to the judge on their way at most.")] = (
        DEFAULTS.judge_at_once
    ),
    judge_rate: Annotated[int | None, typer.Option(help="Questions to the judge a minute at most.")] = None,
    judge_price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="Dollars for a million tokens that the judge reads and writes.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page that shows it all.")] = None,
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
    from tinkertools.answers import Settings
    from tinkertools.asking.costs import parse_price
    from tinkertools.asking.models import parse_model
    from tinkertools.comparison import Questions, ask_models, base_of, goes_on_later, labelled
    from tinkertools.evidence.checks import parse_check
    from tinkertools.kept import Kept
    from tinkertools.results import build, check_notes
    from tinkertools.runs.directory import find_weights

    settings = Settings(max_tokens, temperature, seed)
    checked = parse_check(check) if check is not None else None
    judging = parse_model("--judge", judge, base_url) if judge is not None else None
    price = parse_price("--judge-price", judge_price) if judge_price is not None else None
    if judge is None and (judge_rate is not None or judge_price is not None):
        raise UsageError("--judge-rate and --judge-price are of a judge, and none is named", hint="add --judge MODEL")
    for written in filter(None, (output, report)):
        check_writable_file(written)
    names: list[str | None] = [*(runs or []), *([lora_weights] if lora_weights else [])]
    adapters = [find_weights(name, output_dir) for name in names or [None]]
    if len(adapters) == 1 and not compare_base:
        raise UsageError(
            "one adapter and --no-compare-base leave nothing to compare", hint="name two runs, or use tt test"
        )
    models = labelled(adapters, [base_of(base_model, weights) for weights in adapters], with_base=compare_base)
    questions = Questions(
        test_prompts, data, data_prompts, settings, renderer, engine, ServerSettings.from_environment(base_url), timeout
    )
    kept = output.with_name(f".{output.name}.kept.jsonl")
    with goes_on_later():
        show_models(adapters, models)
        with Kept(kept) as file:
            found = ask_models(models, questions, file, console.progress, console.waiting)
        verdicts = judged(found, judging, kept, judge_at_once, judge_rate, price, timeout) if judging else {}
    asked = settings.to_json() | {"data": data, "check": check, "judge": judging.name if judging else None}
    results = build(found, asked, checked, verdicts, with_base=compare_base)
    write_json(output, results)
    show(found, results, output)
    for note in check_notes(found, checked):
        console.warn(note)
    if report is not None:
        from tinkertools.report import write_report

        write_report(results, report)
        console.say(f"report: {report}")
    found.refuse_gaps(output)
    kept.unlink(missing_ok=True)


def show_models(adapters: "Sequence[Weights]", models: "Sequence[Model]") -> None:
    """Who is compared, and what of it the user should know."""
    for weights in adapters:
        console.say(f"adapter: {weights.name}")
        if weights.note:
            console.warn(weights.note)
    bases = sorted({model.base_model for model in models})
    if len(bases) > 1:
        console.warn(f"these adapters have different base models: {', '.join(bases)}")


def judged(
    found: "Found", judge: "AskedModel", kept: Path, at_once: int, per_minute: int | None,
    price: "TokenPrice | None", timeout: float,
) -> "Verdicts":  # fmt: skip
    """A judge's verdicts on each pair of models; None on prompts that one of them did not answer."""
    from tinkertools.judging import Pair
    from tinkertools.judging import judge as ask_judge
    from tinkertools.results import pairs_of

    verdicts: dict[tuple[str, str], Sequence[Any]] = {}
    for ours, theirs in pairs_of(found.models):
        both = list(zip(found.answers[ours.label], found.answers[theirs.label], strict=True))
        asked = [i for i, (a, b) in enumerate(both) if a.text is not None and b.text is not None]
        pairs = [
            Pair(found.prompts[i].messages, found.prompts[i].reference, both[i][0].text or "", both[i][1].text or "")
            for i in asked
        ]
        said = ask_judge(
            pairs, judge, kept, at_once=at_once, per_minute=per_minute, price=price, progress=console.progress,
            notify=console.say, timeout=timeout,
        )  # fmt: skip
        console.say(f"judge: {said.words(price)}")
        by_prompt = dict(zip(asked, said.verdicts, strict=True))
        verdicts[ours.label, theirs.label] = [by_prompt.get(i) for i in range(len(both))]
    return verdicts


def show(found: "Found", results: dict[str, Any], output: Path) -> None:
    """Answers side by side, scores, and what differs."""
    from tinkertools.report.summary import findings
    from tinkertools.results import left_out

    titles = {model.label: model.label for model in found.models}
    for model in found.models:
        if model.label == "lora" and model.weights and model.weights.label not in titles:
            titles["lora"] = model.weights.label
    answers = {titles[label]: [answer.shown for answer in given] for label, given in found.answers.items()}
    console.show_answers([prompt.question for prompt in found.prompts], answers, output)
    console.show_scores({titles[label]: scores for label, scores in results["scores"].items()})
    short, odd = left_out(found)
    if short:
        console.warn(f"{short:,} conversations are too long for a model or have nothing to train: not counted")
    if odd:
        console.warn(f"{odd:,} conversations have a likelihood that is no number: they are not counted")
    for comparison in results["comparisons"]:
        console.say(f"{titles[comparison['of']]} against {titles[comparison['against']]}:")
        for finding in findings(comparison):
            console.say(f"  {finding.sentence}")
        for kind in ("improved", "worsened"):
            for change in comparison.get(kind, ())[:1]:
                messages = results["likelihood"]["examples"][change["example"]]["messages"]
                console.say(f"  {kind} most: {change['difference']:+.2f} on {_quoted(messages)}")
        if comparison["unit"] == "bits_per_byte":
            console.warn("their tokens are not the same: they are compared by bits per byte")
    console.say(f"results: {output}")


def _quoted(messages: "Sequence[dict[str, Any]]") -> str:
    """How a conversation begins, for people."""
    from tinkertools.chat.examples import texts_of

    asked = next((message for message in messages if message["role"] == "user"), messages[0])
    text = " ".join("".join(texts_of(asked)).split())
    return f"“{text if len(text) <= _QUOTED else text[: _QUOTED - 1] + '…'}”"
