"""What several models say and how likely they find what was said: asked once, kept as it comes.

Models that share a base are asked together, so that one copy of its weights serves them all.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkertools.adapters.peft_files import ADAPTER_CONFIG
from tinkertools.answers import Answer, Settings, answers, rendered, score
from tinkertools.config import AUTO_RENDERER, Engine, PrepareDefaults, ServerSettings
from tinkertools.engines import Choice, choose_for_weights, open_service
from tinkertools.errors import EngineError, Interrupted, RunError, UsageError
from tinkertools.evaluation import trained_bytes
from tinkertools.kept import Kept, key_of
from tinkertools.prompts import Prompt, default_prompts, load_prompts, prompts_of
from tinkertools.reporting import Notify, ProgressMaker
from tinkertools.runs.directory import Weights

if TYPE_CHECKING:
    from tinkertools.chat.conversations import Conversation
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient, Service

BASE = "base"


@dataclass(frozen=True)
class Model:
    """A model to ask.

    Attributes:
        label: its short name in results.
        weights: its adapter; None for a base model alone.
        base_model: the base; empty where only a server can say.
    """

    label: str
    weights: Weights | None
    base_model: str

    @property
    def name(self) -> str:
        """Where it is, for people."""
        return self.weights.name if self.weights else self.base_model


@dataclass(frozen=True)
class Questions:
    """What models are asked, and where.

    Attributes:
        prompts_file: prompts; None means those that ship, where no others are named.
        data: conversations whose answers are scored.
        data_prompts: of how many of them the answers are asked for as well.
        settings: how answers are sampled.
        renderer: the one named, or `auto`: the one that the adapters were trained with.
        engine: as the user gave it.
        server: what options and environment say of one.
        timeout: seconds that a request to a server may take.
    """

    prompts_file: Path | None
    data: str | None
    data_prompts: int
    settings: Settings
    renderer: str
    engine: Engine
    server: ServerSettings
    timeout: float

    def __post_init__(self) -> None:
        if self.data_prompts < 0 or (self.data_prompts and self.data is None):
            raise UsageError(
                f"--data-prompts {self.data_prompts}: it is how many conversations of --data are asked as well",
                hint="--data FILE --data-prompts 20",
            )


@dataclass
class Scored:
    """A conversation of the data: how much of it is trained, and what each model thinks of that.

    Attributes:
        conversation: the conversation.
        sizes: by base model, how many tokens are trained, Σ weight, and the bytes of their text; without the bases
            for which it is too long or has nothing to train.
        nll: by model, Σ −logprob · weight, natural log.
    """

    conversation: "Conversation"
    sizes: dict[str, tuple[int, float, int]] = field(default_factory=dict)
    nll: dict[str, float] = field(default_factory=dict)


@dataclass
class Found:
    """All that was said.

    Attributes:
        models: those that were asked, with their base models.
        prompts: what was asked.
        answers: by model, an answer to each prompt.
        scored: the conversations of the data.
        tokenizers: by base model, what it makes tokens with.
    """

    models: list[Model]
    prompts: list[Prompt]
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    scored: list[Scored] = field(default_factory=list)
    tokenizers: dict[str, str] = field(default_factory=dict)

    def refuse_gaps(self, output: Path) -> None:
        """Say at the end that prompts got no answer.

        Raises:
            EngineError: some got none.
        """
        everything = [answer for given in self.answers.values() for answer in given]
        if failed := [answer.error or "" for answer in everything if answer.text is None]:
            raise EngineError(
                f"{len(failed)} of {len(everything)} prompts got no answer, the first: {failed[0]}",
                hint=f"{output} has all the others; run the command again for those",
            )


@contextmanager
def goes_on_later() -> Iterator[None]:
    """Ctrl-C within the block loses nothing of what was answered, and says so.

    Raises:
        Interrupted: it came.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; what was answered is kept", hint="run the same command again: only the rest is asked"
        ) from None


def labelled(adapters: Sequence[Weights], bases: Sequence[str], *, with_base: bool) -> list[Model]:
    """The models to ask: each base before its first adapter. One adapter is `lora`, several have names of their own."""
    found: list[Model] = []
    taken: set[str] = set()

    def unused(label: str) -> str:
        number, name = 1, label
        while name in taken:
            number += 1
            name = f"{label} ({number})"
        taken.add(name)
        return name

    for weights, base in zip(adapters, bases, strict=True):
        if with_base and base not in {model.base_model for model in found if model.weights is None}:
            several = len(set(bases)) > 1
            found.append(Model(unused(f"{BASE} {Path(base).name}" if several else BASE), None, base))
        found.append(Model(unused("lora" if len(adapters) == 1 else weights.label), weights, base))
    return found


def ask_models(
    models: Sequence[Model], questions: Questions, kept: Kept, progress: ProgressMaker, notify: Notify
) -> Found:
    """Ask and score models; those that share a base one after the other, with one copy of it in memory.

    Args:
        models: the models.
        questions: what they are asked.
        kept: what is known from a command that was interrupted; grows as answers come.
        progress: makes the display of each part of the work.
        notify: is told what a server is waited for.

    Raises:
        DataError: the prompts or the data cannot be used.
        RunError: an adapter is not where the engine is, or nobody says what it was trained on.
    """
    conversations = _conversations(questions.data)
    found = Found([], _prompts(questions, models, conversations), scored=[Scored(one) for one in conversations])
    for base in dict.fromkeys(model.base_model for model in models):
        group = [model for model in models if model.base_model == base]
        _Group(group, questions, found, kept, progress, notify).ask()
    return found


def _conversations(data: str | None) -> "list[Conversation]":
    from tinkertools.chat.records import read_all
    from tinkertools.chat.sources import find_source

    return read_all(find_source(data), PrepareDefaults.errors_shown)[0] if data is not None else []


def _prompts(questions: Questions, models: Sequence[Model], conversations: "Sequence[Conversation]") -> list[Prompt]:
    """Those that are named: of a file, of the data, or both; those that ship where neither is."""
    found = load_prompts(questions.prompts_file) if questions.prompts_file else []
    found += prompts_of(conversations, questions.data_prompts)
    return found or load_prompts(default_prompts(models[0].base_model))


@dataclass
class _Group:
    """Models that share a base."""

    models: list[Model]
    questions: Questions
    found: Found
    kept: Kept
    progress: ProgressMaker
    notify: Notify

    def ask(self) -> None:
        """Answers and likelihoods of each model."""
        questions = self.questions
        adapters = [model.weights for model in self.models if model.weights is not None]
        base = self.models[0].base_model
        choice = choose_for_weights(questions.engine, base or None, questions.server, adapters)
        with open_service(choice, None, self.notify, timeout=questions.timeout) as service:
            base = choice.base_model or _ask_for_base(service, choice, adapters)
            from tinkertools.chat.rendering import load_renderer

            self.renderer = load_renderer(base, renderer_of(questions.renderer, adapters))
            self.found.tokenizers[base] = key_of(self.renderer.identity)
            examples = self._examples(service, base)
            for model in self.models:
                source = model.weights.source(choice.engine) if model.weights else None
                known = self._identity(model, choice, base)
                named = Model(model.label, model.weights, base)
                self.found.models.append(named)
                sampler = _Late(service, source, base)
                self._answer(named, sampler, known)
                self._score(named, sampler, known, examples)

    def _identity(self, model: Model, choice: Choice, base: str) -> list[Any]:
        """What decides, beside the question, what a model says."""
        from tinkertools.fingerprints import of_base_model, of_weights

        adapter = [of_weights(model.weights)] if model.weights else None
        if adapter and model.weights and model.weights.directory:
            # Scale and layers are not in the file of the weights.
            adapter.append(key_of((model.weights.directory / ADAPTER_CONFIG).read_bytes()))
        return [choice.engine, choice.base_url, of_base_model(base, choice.engine) or base, adapter]

    def _answer(self, model: Model, sampler: "_Late", known: list[Any]) -> None:
        prompts, settings = self.found.prompts, self.questions.settings
        keys = []
        for number, prompt in enumerate(prompts, 1):
            asked = rendered(prompt, self.renderer, number)
            images = [image.data for image in asked.images]
            keys.append(key_of("answer", known, settings.to_json(), asked.tokens.tobytes(), *images))
        found = {key: Answer(**value) for key in keys if (value := self.kept.get(key)) is not None}
        left = [i for i, key in enumerate(keys) if key not in found]
        with self.progress(f"{model.label}: answer", len(prompts), "prompts") as report:
            report(len(prompts) - len(left))
            if left:
                coming = answers(sampler(), self.renderer, [prompts[i] for i in left], settings)
                for done, (i, answer) in enumerate(zip(left, coming, strict=True), len(prompts) - len(left) + 1):
                    found[keys[i]] = answer
                    if answer.text is not None:
                        self.kept.put(keys[i], answer.to_json())
                    report(done)
        self.found.answers[model.label] = [found[key] for key in keys]

    def _examples(self, service: "Service", base: str) -> "list[tuple[int, Example]]":
        """Which examples stand for which conversation; those that do not fit the model are left out whole."""
        from tinkertools.chat.rendering import render_all

        conversations = [one.conversation for one in self.found.scored]
        if not conversations:
            return []
        with self.progress("render", len(conversations), "conversations") as report:
            rendered = render_all(self.renderer, conversations, PrepareDefaults.errors_shown, report)
        limit = service.max_length(base)
        by_origin: dict[int, list[Example]] = {}
        for origin, example in zip(rendered.origins.tolist(), rendered.examples, strict=True):
            by_origin.setdefault(origin, []).append(example)
        kept: list[tuple[int, Example]] = []
        for origin, examples in by_origin.items():
            if limit is not None and any(len(example.tokens) > limit for example in examples):
                continue
            tokens = sum(example.trained_tokens for example in examples)
            if not tokens:
                continue
            weight = sum(float(example.weights[1:].sum()) for example in examples)
            self.found.scored[origin].sizes[base] = tokens, weight, trained_bytes(examples, self.renderer)
            kept += [(origin, example) for example in examples]
        return kept

    def _score(self, model: Model, sampler: "_Late", known: list[Any], examples: "list[tuple[int, Example]]") -> None:
        if not examples:
            return
        keys = [
            key_of("nll", known, example.tokens.tobytes(), example.weights.tobytes(), *[i.data for i in example.images])
            for _, example in examples
        ]
        found = {key: value for key in keys if (value := self.kept.get(key)) is not None}
        left = [i for i, key in enumerate(keys) if key not in found]
        with self.progress(f"{model.label}: score", len(examples), "examples") as report:
            report(len(examples) - len(left))
            if left:
                coming = score(sampler(), [examples[i][1] for i in left])
                for done, (i, nll) in enumerate(zip(left, coming, strict=True), len(examples) - len(left) + 1):
                    found[keys[i]] = nll
                    if math.isfinite(nll):
                        self.kept.put(keys[i], nll)
                    report(done)
        for key, (origin, _) in zip(keys, examples, strict=True):
            nlls = self.found.scored[origin].nll
            nlls[model.label] = nlls.get(model.label, 0.0) + found[key]


@contextmanager
def open_models(
    weights: Weights, base_model: str, questions: Questions, notify: Notify
) -> "Iterator[tuple[Service, str, str, Renderer]]":
    """The engine of an adapter: its service, the base model, what it takes the adapter by, and the renderer."""
    from tinkertools.chat.rendering import load_renderer

    choice = choose_for_weights(questions.engine, base_model or None, questions.server, [weights])
    with open_service(choice, None, notify, timeout=questions.timeout) as service:
        base = choice.base_model or _ask_for_base(service, choice, [weights])
        renderer = load_renderer(base, renderer_of(questions.renderer, [weights]))
        yield service, base, weights.source(choice.engine), renderer


class _Late:
    """A sampling client that is made when it is first asked: what is known needs none."""

    def __init__(self, service: "Service", source: str | None, base_model: str) -> None:
        self._service = service
        self._source = source
        self._base_model = base_model
        self._made: SamplingClient | None = None

    def __call__(self) -> "SamplingClient":
        if self._made is None:
            self._made = self._service.create_sampling_client(self._source, self._base_model)
        return self._made


def _ask_for_base(service: "Service", choice: Choice, adapters: Sequence[Weights]) -> str:
    """The base model of weights on a server.

    Raises:
        RunError: it does not say, or they have different ones.
    """
    from tinkertools import remote

    assert isinstance(service, remote.ServiceClient)
    found: dict[str, str] = {}
    for path in (weights.source(choice.engine) for weights in adapters):
        base = service.base_model_of(path)
        if base is None:
            raise RunError(f"the server does not say what {path} was trained on", hint="add --base-model MODEL")
        found[base] = path
    if len(found) > 1:
        listed = ", ".join(f"{path} on {base}" for base, path in found.items())
        raise RunError(f"weights on the server with different base models: {listed}", hint="compare them one by one")
    return next(iter(found))


def renderer_of(named: str, adapters: Sequence[Weights]) -> str:
    """The renderer to ask with: the one named on the command line, else the one that the adapters were trained with.

    Raises:
        RunError: they were trained with different ones.
    """
    found = sorted({weights.renderer for weights in adapters if weights.renderer})
    if named != AUTO_RENDERER or not found:
        return named
    if len(found) > 1:
        raise RunError(
            f"these adapters were trained with different renderers: {', '.join(found)}",
            hint=f"say which to ask with: --renderer {found[0]}",
        )
    return found[0]


def base_of(named: str | None, weights: Weights) -> str:
    """The base model of an adapter: the one named on the command line wins over the one it records.

    Empty where only the server can say.

    Raises:
        RunError: neither is there, and no server has it.
    """
    base_model = named or weights.base_model
    if base_model is None and weights.directory is not None:
        raise RunError(
            f"{weights.directory} does not say which base model it was trained on", hint="add --base-model MODEL"
        )
    if base_model and Path(base_model).is_dir():  # a folder by its whole path: two names for it are one model
        return str(Path(base_model).resolve())
    return base_model or ""
