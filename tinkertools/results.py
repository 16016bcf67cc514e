"""The numbers of a comparison, and the JSON that `tt test` and `tt compare` write."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tinkertools.answers import Answer
from tinkertools.comparison import Found, Model, Scored
from tinkertools.evaluation import perplexity
from tinkertools.evidence import statistics, texts
from tinkertools.prompts import Prompt

if TYPE_CHECKING:
    from tinkertools.evidence.checks import Check
    from tinkertools.judging.verdicts import Verdict

RESULTS_VERSION = 2

# Conversations that are named of those that improved and worsened most.
_FURTHEST = 5

# Verdicts on each prompt, by the model and the one that it is held against.
Verdicts = Mapping[tuple[str, str], "Sequence[Verdict | None]"]


def build(
    found: Found, settings: dict[str, Any], check: "Check | None", verdicts: Verdicts, *, with_base: bool
) -> dict[str, Any]:
    """All that is known, as JSON values.

    Args:
        found: what the models said.
        settings: how they were asked.
        check: of each answer, beside those that prompts have.
        verdicts: a judge's.
        with_base: whether bases were asked: each adapter is held against its own then, else against the first one.
    """
    adapters = [model for model in found.models if model.weights is not None]
    outcomes = {label: _outcomes(found.prompts, answers, check) for label, answers in found.answers.items()}
    held = pairs_of(found.models)
    return {
        "version": RESULTS_VERSION,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "base_model": found.models[0].base_model,
        "lora_weights": adapters[0].name if len(adapters) == 1 else [model.name for model in adapters],
        "settings": settings | {"compare_base": with_base},
        "versions": _versions(),
        "models": {model.label: _about(model) for model in found.models},
        "results": [
            _result(found, number, outcomes, verdicts, single=len(adapters) == 1)
            for number in range(len(found.prompts))
        ],
        "likelihood": _likelihood(found),
        "scores": {model.label: _scores(found, model, outcomes[model.label]) for model in found.models},
        "comparisons": [_comparison(found, ours, theirs, outcomes, verdicts) for ours, theirs in held],
    }


def pairs_of(models: Sequence[Model]) -> list[tuple[Model, Model]]:
    """Which model is held against which: each adapter against its base where that was asked, and against the first."""
    bases = {model.base_model: model for model in models if model.weights is None}
    adapters = [model for model in models if model.weights is not None]
    found = [(model, bases[model.base_model]) for model in adapters if model.base_model in bases]
    return found + [(model, adapters[0]) for model in adapters[1:]]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from tinkertools import __version__

    names = ("tinker", "torch", "transformers", "peft", "tml-renderers")
    return {"tinkertools": __version__, **{name: version(name) for name in names}}


def _about(model: Model) -> dict[str, Any]:
    """A model and, where its run is here, how it was trained."""
    from tinkertools.runs.directory import run_of

    run = run_of(model.weights) if model.weights else None
    training = None
    if run is not None and run.log.is_file():
        import orjson

        from tinkertools.runs.log import judged_by

        log, config = orjson.loads(run.log.read_bytes()), run.read_config()["config"]
        training = {
            "steps": [{"step": entry["step"], "loss": entry["loss"]} for entry in log["steps"]],
            "evals": [{name: entry[name] for name in ("step", judged_by(entry))} for entry in log["evals"]],
            "config": {name: config[name] for name in _SHOWN if name in config},
        }
    is_base = model.weights is None
    return {"name": model.name, "base_model": model.base_model, "base": is_base, "training": training}


_SHOWN = ("method", "rank", "learning_rate", "lr_schedule", "batch", "epochs", "max_steps", "train_on_what", "seed")


def _outcomes(prompts: Sequence[Prompt], answers: Sequence[Answer], check: "Check | None") -> list[bool | None]:
    """Whether each answer passes, by the prompt's own check and the one for all; None where there is none.

    No answer passes nothing.
    """
    import re

    found: list[bool | None] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        passed = []
        if prompt.check is not None:
            passed.append(answer.text is not None and re.search(prompt.check, answer.text, re.DOTALL) is not None)
        if check is not None:
            passed.append(answer.text is not None and check(answer.text, prompt.reference, prompt.question).passed)
        found.append(all(passed) if passed else None)
    return found


def _result(
    found: Found, number: int, outcomes: Mapping[str, Sequence[bool | None]], verdicts: Verdicts, *, single: bool
) -> dict[str, Any]:
    """What was said to one prompt, and what of it can be counted."""
    prompt = found.prompts[number]
    answers = {label: given[number] for label, given in found.answers.items()}
    bases = {model.label: _base_label(found, model) for model in found.models}
    entry: dict[str, Any] = {"prompt": prompt.messages, "reference": prompt.reference}
    if single:
        names = {model.label: "base_response" if model.weights is None else "lora_response" for model in found.models}
        entry |= {names[label]: answer.text for label, answer in answers.items()}
        errors = {names[label]: answer.error for label, answer in answers.items() if answer.error}
    else:
        entry["responses"] = {label: answer.text for label, answer in answers.items()}
        errors = {label: answer.error for label, answer in answers.items() if answer.error}
    if errors:
        entry["errors"] = errors
    entry["answers"] = {
        label: _measured(answer, prompt, outcomes[label][number], answers.get(bases[label] or ""))
        for label, answer in answers.items()
    }
    said = [(pair, given[number]) for pair, given in verdicts.items() if given[number] is not None]
    if said:
        entry["verdicts"] = [verdict.to_json(*pair) for pair, verdict in said if verdict is not None]
    return entry


def _base_label(found: Found, model: Model) -> str | None:
    """The label of an adapter's base, where it was asked."""
    if model.weights is None:
        return None
    bases = {other.base_model: other.label for other in found.models if other.weights is None}
    return bases.get(model.base_model)


def _measured(answer: Answer, prompt: Prompt, passed: bool | None, base: Answer | None) -> dict[str, Any]:
    """What can be counted of an answer."""
    if answer.text is None:
        return {"error": answer.error} | ({} if passed is None else {"check": passed})
    measured: dict[str, Any] = {
        "tokens": answer.tokens, "stop": answer.stop, "repetition": texts.repetition(answer.text),
    }  # fmt: skip
    if passed is not None:
        measured["check"] = passed
    if prompt.reference is not None:
        measured["exact"] = texts.exact_match(answer.text, prompt.reference)
        measured["chrf"] = texts.chrf(answer.text, prompt.reference)
        measured["rouge_l"] = texts.rouge_l(answer.text, prompt.reference)
    if base is not None and base.text is not None:
        measured["agrees_with_base"] = answer.text == base.text
    return measured


def _counted(found: Found) -> list[Scored]:
    """The conversations that every model found likely or not: models are compared on the same ones only."""
    return [one for one in found.scored if _is_counted(one, found)]


def _is_counted(one: Scored, found: Found) -> bool:
    return all(
        model.base_model in one.sizes and math.isfinite(one.nll.get(model.label, math.nan)) for model in found.models
    )


def left_out(found: Found) -> tuple[int, int]:
    """How many conversations were not counted: too long or with nothing trained, and without a finite likelihood."""
    short = [one for one in found.scored if not all(model.base_model in one.sizes for model in found.models)]
    return len(short), len(found.scored) - len(_counted(found)) - len(short)


def check_notes(found: Found, check: "Check | None") -> list[str]:
    """Why answers fail a check through no fault of theirs, in words: no reference, an error in the check."""
    if check is None:
        return []
    notes = []
    if check.needs_reference and (lacking := sum(prompt.reference is None for prompt in found.prompts)):
        notes.append(f"--check reads the reference, and {lacking:,} prompts have none")
    reasons = [
        reason
        for given in found.answers.values()
        for prompt, answer in zip(found.prompts, given, strict=True)
        if answer.text is not None and (reason := check(answer.text, prompt.reference, prompt.question).reason)
    ]
    if reasons:
        notes.append(f"--check fails with an error on {len(reasons):,} answers: they do not pass; first: {reasons[0]}")
    return notes


def _likelihood(found: Found) -> dict[str, Any] | None:
    """Each conversation with its NLL under each model; sizes are those under the first model's tokenizer."""
    if not found.scored:
        return None
    examples = []
    for one in found.scored:
        sizes = one.sizes.get(found.models[0].base_model) or next(iter(one.sizes.values()), (0, 0.0, 0))
        nll = {label: value if math.isfinite(value) else None for label, value in one.nll.items()}
        examples.append(
            {"messages": one.conversation["messages"], "trained_tokens": sizes[0], "bytes": sizes[2], "nll": nll}
        )
    return {"examples": examples}


def _scores(found: Found, model: Model, outcomes: Sequence[bool | None]) -> dict[str, Any]:
    """The means of a model."""
    scores: dict[str, Any] = {}
    if counted := _counted(found):
        sizes = [one.sizes[model.base_model] for one in counted]
        nll = sum(one.nll[model.label] for one in counted)
        mean = nll / sum(weight for _, weight, _ in sizes)
        scores |= {
            "nll": mean,
            "perplexity": perplexity(mean),
            "bits_per_byte": nll / math.log(2) / max(1, sum(size for _, _, size in sizes)),
            "trained_tokens": sum(tokens for tokens, _, _ in sizes),
        }
    if known := [passed for passed in outcomes if passed is not None]:
        scores["check"] = {"passed": sum(known), "of": len(known)}
    answers = found.answers[model.label]
    given = [(answer, prompt) for answer, prompt in zip(answers, found.prompts, strict=True) if answer.text is not None]
    if not given:
        return scores
    said = [answer.text or "" for answer, _ in given]
    scores |= {
        "tokens": fmean(answer.tokens for answer, _ in given),
        "stopped": fmean(answer.stop == "stop" for answer, _ in given),
        "repetition": fmean(map(texts.repetition, said)),
        "distinct_1": texts.distinct(said, 1),
        "distinct_2": texts.distinct(said, 2),
    }
    referred = [(answer.text or "", prompt.reference) for answer, prompt in given if prompt.reference is not None]
    measures: dict[str, Callable[[str, str], float]] = {
        "exact": texts.exact_match, "chrf": texts.chrf, "rouge_l": texts.rouge_l,
    }  # fmt: skip
    if referred:
        scores |= {name: fmean(measure(*pair) for pair in referred) for name, measure in measures.items()}
    if base := _base_label(found, model):
        both = [
            (ours.text, theirs.text)
            for ours, theirs in zip(answers, found.answers[base], strict=True)
            if ours.text is not None and theirs.text is not None
        ]
        if both:
            scores["agrees_with_base"] = fmean(ours == theirs for ours, theirs in both)
    return scores


def _comparison(
    found: Found, ours: Model, theirs: Model, outcomes: Mapping[str, Sequence[bool | None]], verdicts: Verdicts
) -> dict[str, Any]:
    """How a model differs from another, with intervals."""
    same = found.tokenizers[ours.base_model] == found.tokenizers[theirs.base_model]
    comparison: dict[str, Any] = {"of": ours.label, "against": theirs.label, "unit": "nll" if same else "bits_per_byte"}
    if counted := _counted(found):
        first, second, weights = _paired(counted, ours, theirs, same_tokens=same)
        difference = statistics.mean_difference(first, second, weights)
        comparison["difference"] = asdict(difference) | {"note": difference.note}
        means = [[value / weight for value, weight in zip(side, weights, strict=True)] for side in (first, second)]
        comparison["wins"] = asdict(statistics.win_rate(*means))
        numbers = [number for number, one in enumerate(found.scored) if _is_counted(one, found)]
        changes = [(a - b, number) for number, a, b in zip(numbers, *means, strict=True)]
        comparison["improved"] = _furthest([change for change in sorted(changes) if change[0] < 0])
        comparison["worsened"] = _furthest([change for change in sorted(changes, reverse=True) if change[0] > 0])
    pairs = zip(outcomes[ours.label], outcomes[theirs.label], strict=True)
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if known:
        changed = statistics.share_difference([a for a, _ in known], [b for _, b in known])
        comparison["check"] = {"difference": asdict(changed)}
    if judged := [verdict for verdict in verdicts.get((ours.label, theirs.label), ()) if verdict is not None]:
        from tinkertools.judging.verdicts import count

        counts = count(judged)
        won = statistics.wins(counts["won"], counts["tied"], counts["lost"])
        comparison["judge"] = asdict(won) | {name: counts[name] for name in ("undecided", "order_decided")}
    return comparison


def _furthest(changes: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
    """The first few changes, each with the place of its conversation among the examples of the likelihood."""
    return [{"example": number, "difference": change} for change, number in changes[:_FURTHEST]]


def _paired(
    counted: Sequence[Scored], ours: Model, theirs: Model, *, same_tokens: bool
) -> tuple[list[float], list[float], list[float]]:
    """Of each conversation, both sides and what they are over: nats over trained tokens, or bits over bytes where the
    tokens of the two models are not the same."""
    weights = [
        one.sizes[ours.base_model][1] if same_tokens else float(max(1, one.sizes[ours.base_model][2]))
        for one in counted
    ]
    unit = 1.0 if same_tokens else 1 / math.log(2)
    first, second = ([one.nll[model.label] * unit for one in counted] for model in (ours, theirs))
    return first, second, weights
