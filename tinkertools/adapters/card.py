"""The model card: what a repository says of the model in it, without a word of the machine it was made on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkertools.adapters.export import Served, vllm_command, vllm_problem
from tinkertools.config import BATCH_OF, FOLLOWED_BY, MethodName, TrainConfig, setting

# What the methods are called in the field.
_METHODS: dict[str, str] = {
    "sft": "supervised fine-tuning", "dpo": "direct preference optimization", "reward": "a reward model of preferences",
    "rl": "reinforcement learning", "distill": "distillation", "selfplay": "self-play",
}  # fmt: skip
# What data are made of, as `config.json` counts them.
_COUNTED = ("conversations", "preferences", "prompts")
# Of the run's configuration, what a reader wants to know, with its name for people; and the method's own settings.
_SETTINGS = {
    "rank": "LoRA rank", "learning_rate": "peak learning rate", "lr_schedule": "schedule",
    "warmup_steps": "warm-up steps",
    "batch": "", "epochs": "epochs", "max_length": "longest example (0: the model's limit)",
    "train_on_what": "trained on", "seed": "seed",
}  # fmt: skip
# They say nothing of the model, or more than its owner may want to say.
_HIDDEN = ("reward_timeout", "teacher_system")
# Where on the machine a file is, which a setting may name.
_FOLDERS = re.compile(r"(?<![\w.])[~.]*/\S*/")
# Answers that are shown, and how much of each.
_SAMPLES = 5
_LONGEST = 400


@dataclass(frozen=True)
class Facts:
    """What is known of a model that is to be published.

    Attributes:
        repo_id: USER/NAME, or None where none is chosen yet.
        served: what the repository holds; its base model is on the Hub where its name has a slash.
        run: the run's `config.json`, where there is one.
        steps: its log's entries.
        comparison: the results of `tt compare` of this run, where there are some.
        curve: the file of the loss curve in the repository.
        license: as the Hub names it.
    """

    repo_id: str | None
    served: Served
    run: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    comparison: Mapping[str, Any] | None = None
    curve: str | None = None
    license: str | None = None


def model_card(facts: Facts) -> str:
    """The card as Markdown, with the metadata that the Hub reads at its head."""
    from huggingface_hub import ModelCardData

    served = facts.served
    data = ModelCardData(
        base_model=served.base_model if "/" in served.base_model else None,
        library_name="transformers" if served.merged else "peft",
        pipeline_tag="text-generation",
        license=facts.license,
        tags=["tinkertools", *([] if served.merged else ["lora"])],
    )
    config = facts.run.get("config", {})
    parts = [
        f"---\n{data.to_yaml().strip()}\n---",
        f"# {served.name}",
        f"{'Merged weights' if served.merged else 'A LoRA adapter'}, tuned from {served.base_model} with tinkertools.",
        _training(facts, config),
        _results(facts.comparison),
        _loading(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _training(facts: Facts, config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    method = config.get("method", "sft")
    rows = [
        ("method", f"{_METHODS.get(method, method)} (`--method {method}`)"),
        *_data_rows(facts.run.get("data", {}), config),
        ("renderer", str(facts.run.get("renderer", ""))),
        *(
            (_in_words(name, method), _FOLDERS.sub("", str(config[name])))
            for name in _shown_settings(method)
            if name in config
        ),
    ]
    if facts.steps:
        tokens = sum(int(step["trained_tokens"]) for step in facts.steps)
        rows += [("steps", str(len(facts.steps))), ("trained tokens", f"{tokens:,}")]
        rows += [row for name in ("loss", FOLLOWED_BY.get(method, "")) if (row := _course(facts.steps, name, method))]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    curve = f"\n\n![loss]({facts.curve})" if facts.curve else ""
    return f"## Training\n\n| | |\n|---|---|\n{table}{curve}"


def _data_rows(data: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was trained on: data and how many of them, or nothing where a game made its own."""
    if not config.get("data"):
        return []
    count = next((f"{data[name]} {name}" for name in _COUNTED if name in data), "? conversations")
    return [("data", f"{Path(str(config['data'])).name} ({count})")]


def _shown_settings(method: str) -> list[str]:
    """The settings that a reader wants to know: those of all methods, and the method's own."""
    common = [name for name in _SETTINGS if method in (setting(name).methods or (method,))]
    own = [name for name in TrainConfig.model_fields if method in setting(name).methods and name not in _HIDDEN]
    return list(dict.fromkeys([*common, *own]))


def _in_words(name: str, method: MethodName) -> str:
    """A setting as people call it."""
    if name == "batch":
        return f"{BATCH_OF.get(method, 'examples')} a step"
    return _SETTINGS.get(name, name.replace("_", " "))


def _course(steps: Sequence[Mapping[str, Any]], name: str, method: str) -> tuple[str, str] | None:
    """A figure of steps at the start and at the end; None where they have none."""
    known = [step[name] for step in steps if isinstance(step.get(name), int | float)]
    if not known:
        return None
    words = "loss (mean NLL)" if (name, method) == ("loss", "sft") else name.replace("_", " ")
    return words, f"{known[0]:.4f} at the start, {known[-1]:.4f} at the end"


def _results(comparison: Mapping[str, Any] | None) -> str:
    if not comparison:
        return ""
    parts = ["## What changed"]
    scores = comparison.get("scores", {})
    if all(scores.get(label, {}).get("nll") is not None for label in ("base", "lora")):
        base, lora = scores["base"], scores["lora"]
        parts.append(
            f"Masked NLL of held-out answers ({lora['trained_tokens']:,} tokens): {base['nll']:.4f} before, "
            f"{lora['nll']:.4f} after."
        )
    samples = [row for row in comparison.get("results", []) if row.get("lora_response")][:_SAMPLES]
    if samples:
        rows = "\n".join(
            f"| {_cell(_question(row))} | {_cell(row.get('base_response') or '')} | {_cell(row['lora_response'])} |"
            for row in samples
        )
        parts.append(f"| prompt | before | after |\n|---|---|---|\n{rows}")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _question(row: Mapping[str, Any]) -> str:
    content = row["prompt"][-1].get("content")
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content or [] if isinstance(part, Mapping))


def _loading(facts: Facts) -> str:
    repo, served = facts.repo_id or "USER/NAME", facts.served
    if served.merged:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{repo}")'
        )
    else:
        code = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{served.base_model}")\n'
            f'base = AutoModelForCausalLM.from_pretrained("{served.base_model}")\n'
            f'model = PeftModel.from_pretrained(base, "{repo}")'
        )
    if problem := vllm_problem(served):
        serve = f"Servers need merged weights (`tt upload --merge` makes them): {problem}."
    else:
        serve = f"```\n{vllm_command(served, repo)}\n```"
    return f"## How to use it\n\n```python\n{code}\n```\n\n{serve}"


def _cell(text: str) -> str:
    """A text in one cell of a table."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= _LONGEST else f"{flat[: _LONGEST - 1]}…"
