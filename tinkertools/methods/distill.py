"""Distillation: a student learns what a teacher says, which may be the same model with a system message.

Off-policy, the teacher answers every prompt `group_size` times, once, before the first step, and the student is trained
on its answers as on any conversation. On-policy, the student answers and is trained by the reverse KL: a token's
advantage is how much likelier the teacher finds it than the student does, log r − log q, less the mean of that in its
group (Agarwal et al. 2023, https://arxiv.org/abs/2306.13649; as policy gradient with a discount of 0 in Lu 2025,
https://thinkingmachines.ai/blog/on-policy-distillation/).

Either way the teacher's answers to the held-out prompts are what the student is evaluated on, by their NLL.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkertools.chat.batching import Batches
from tinkertools.chat.examples import RenderError
from tinkertools.chat.rendering import render_each
from tinkertools.config import AUTO_RENDERER, TrainConfig, TrainOnWhat
from tinkertools.data import length_limit
from tinkertools.errors import DataError, EngineError, RunError, UsageError
from tinkertools.evaluation import HeldOut, trained_bytes
from tinkertools.files import explain_os_errors
from tinkertools.kept import Kept, key_of
from tinkertools.methods.base import Bench, Tokens, find_renderer, starting_sampler
from tinkertools.methods.prompts import Asked, Prompts, read_prompts
from tinkertools.methods.rollouts import (
    Credited,
    Floats,
    Group,
    OnPolicy,
    answered,
    logprobs_of,
    request,
    request_logprobs,
)  # fmt: skip
from tinkertools.methods.sft import Supervised
from tinkertools.reporting import Voice
from tinkertools.seeds import derived

if TYPE_CHECKING:
    from tinkertools.chat.conversations import Conversation
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient
    from tinkertools.local.limits import Limits
    from tinkertools.loop import Method
    from tinkertools.runs.directory import Weights

# What of the teacher's conversations is trained: its answer, not those that were there before.
_TRAINED: TrainOnWhat = "LAST_ASSISTANT_MESSAGE"
# Prompts that the teacher is asked at once.
_AT_ONCE = 32


@dataclass
class TaughtPrompts(Prompts):
    """Prompts that a teacher shows how to answer.

    Attributes:
        system: what only the teacher is told; None for nothing.
    """

    system: str | None = None

    def make_ready(self, limits: "Limits", *, strict: bool = True) -> None:
        """See `Material`."""
        super().make_ready(limits, strict=strict)
        self._limits = limits

    @property
    def data(self) -> dict[str, Any]:
        """See `Material`; what the teacher is told is part of what is trained on."""
        found = super().data
        return found | {"fingerprint": key_of(found["fingerprint"], self.system)}

    def tokens(self, total_steps: int) -> Tokens | None:
        """See `Material`; what a teacher says may be longer in the student's tokens."""
        return super().tokens(total_steps) if self.config.on_policy else None

    def begin(self, bench: Bench) -> "Method":
        """See `Material`: asks the teacher for its answers, unless the run has them.

        Raises:
            UsageError: the teacher cannot be asked for what is needed.
            DataError: none of its answers can be used.
        """
        config = bench.config
        teacher = Teacher(bench, self.renderer, self.system)
        held_out = self._taught(teacher, self.held_out_ready, 1, "held out") if self.held_out_ready else []
        flat = [example for examples in held_out for example in examples]
        evaluation = HeldOut(flat, trained_bytes(flat, self.renderer)) if flat else None
        if config.on_policy:
            return OnPolicy(
                bench,
                self.ready,
                self.renderer,
                self.batches,
                TeacherCredit(teacher),
                evaluation,
                shown=("reverse_kl",),
            )
        taught = self._taught(teacher, self.ready, config.group_size, "answers")
        # Of the prompts that were answered: no step is empty.
        batches = Batches(len(taught), config.batch, config.seed, "prompts, which the teacher answered")

        def at(step: int) -> "list[Example]":
            return [example for i in batches.at(step) for example in taught[i]]

        return Supervised(bench.client, at, batches.epoch_of, evaluation)

    def _taught(self, teacher: "Teacher", asked: Sequence[Asked], count: int, what: str) -> "list[list[Example]]":
        """The teacher's answers as the student is to give them, by prompts that have one; says what is left out.

        Raises:
            DataError: there is none.
        """
        conversations: list[Conversation] = []
        origins: list[int] = []
        for i, (one, found) in enumerate(zip(asked, teacher.answers(asked, count, what), strict=True)):
            for text in found:
                conversation = one.prompt.conversation.copy()
                conversation["messages"] = [*one.prompt.messages, {"role": "assistant", "content": text}]
                conversations.append(conversation)
                origins.append(i)
        limit = length_limit(self.config.max_length, self._limits)
        wanted = count * len(asked)
        lost = Counter({"cut or never given": wanted - len(conversations)})
        taught: list[list[Example]] = [[] for _ in asked]
        for origin, written in zip(origins, render_each(self.renderer, conversations), strict=True):
            if isinstance(written, RenderError):
                lost["not to be written with the student's renderer"] += 1
            elif not all(example.trained_tokens for example in written):
                lost["with nothing to train"] += 1
            elif any(limit is not None and len(example.tokens) > limit for example in written):
                lost["too long"] += 1
            else:
                taught[origin] += written
        words = ", ".join(f"{number:,} {why}" for why, number in lost.items() if number)
        if not any(taught):
            raise DataError(
                f"none of the teacher's {wanted:,} answers can be used: {words}",
                hint=f"raise --max-tokens {self.config.max_tokens}, or ask another --teacher",
            )
        if words:
            self.voice.warn(f"of {wanted:,} answers of the teacher some are left out: {words}")
        return [examples for examples in taught if examples]


def read(config: TrainConfig, voice: Voice) -> TaughtPrompts:
    """The prompts to train on and those held out.

    Raises:
        UsageError: there is nothing that the student could learn.
        DataError: a row cannot be used.
    """
    if config.teacher is None and config.teacher_system is None:
        raise UsageError(
            "--method distill: the teacher is the student itself, and is told nothing else",
            hint="name a --teacher, or what only it is told: --teacher-system TEXT",
        )
    system = _system(config.teacher_system)
    prompts, held_out = read_prompts(config, voice)
    renderer = find_renderer(config, voice, _TRAINED)
    return TaughtPrompts(config, voice, prompts, held_out, renderer, system)


def _system(given: str | None) -> str | None:
    """The teacher's system message: the text, or what is in the file of that name."""
    if given is None:
        return None
    try:
        is_file = Path(given).is_file()
    except OSError:  # too long for a name
        is_file = False
    if not is_file:
        return given
    with explain_os_errors(Path(given)):
        return Path(given).read_text(encoding="utf-8").strip()


class Teacher:
    """The model that shows how it is done, opened when it is first asked.

    Args:
        bench: where it answers: the engine of the student.
        renderer: the student's.
        system: what it is told before all else.
    """

    def __init__(self, bench: Bench, renderer: "Renderer", system: str | None) -> None:
        self._bench = bench
        self._student = renderer
        self._system = system
        self._opened: tuple[SamplingClient, Renderer] | None = None

    def answers(self, asked: Sequence[Asked], count: int, what: str) -> list[list[str]]:
        """`count` answers to each prompt, without those that were cut. They are kept with the run as they come.

        A prompt that the teacher cannot answer has none, and is not asked again: a run that goes on has the same data.

        Raises:
            EngineError: the teacher answers nothing.
        """
        config = self._bench.config
        keys = [
            key_of("answers", what, count, config.max_tokens, config.temperature, self._told(one)["messages"])
            for one in asked
        ]
        with Kept(self._bench.run.teacher) as kept:
            left = [i for i, key in enumerate(keys) if kept.get(key) is None]
            failed = self._answer(asked, count, what, keys, left, kept) if left else {}
            if failed:
                why = f"the teacher gave no answer to {len(failed):,} of {len(asked):,} prompts: {failed[min(failed)]}"
                if len(failed) == len(asked):
                    raise EngineError(why, hint="mend what fails, and go on")
                self._bench.voice.warn(f"{why}; they are left out")
            for i in failed:
                if kept.get(keys[i]) is None:
                    kept.put(keys[i], [])
            return [kept.get(key) or [] for key in keys]

    def _answer(
        self, asked: Sequence[Asked], count: int, what: str, keys: Sequence[str], left: Sequence[int], kept: Kept
    ) -> dict[int, str]:
        """Ask what is left; why some gave nothing, by their numbers."""
        failed: dict[int, str] = {}
        sampler, renderer = self._open()
        with self._bench.voice.progress(f"teacher: {what}", len(asked), "prompts") as report:
            report(len(asked) - len(left))
            for start in range(0, len(left), _AT_ONCE):
                part = left[start : start + _AT_ONCE]
                told = [Asked(asked[i].prompt, self._input(asked[i], renderer), asked[i].max_tokens) for i in part]
                seeds = [derived(self._bench.config.seed, what, i) for i in part]
                futures = request(sampler, told, seeds, count, self._bench, renderer)
                for i, one, future in zip(part, told, futures, strict=True):
                    group = answered(one, future, renderer)
                    if group.error is not None:
                        failed[i] = group.error
                    else:
                        kept.put(keys[i], [rollout.text for rollout in group.rollouts if rollout.finished])
                report(len(asked) - len(left) + start + len(part))
        return failed

    def logprobs(self, groups: Sequence[Group]) -> list[Any]:
        """Ask how likely the teacher finds each answer of the groups: futures for `logprobs_of`."""
        sampler, renderer = self._open()
        told = [self._input(group.asked, renderer) for group in groups]
        pairs = zip(told, groups, strict=True)
        return request_logprobs(sampler, [(one, rollout.tokens) for one, group in pairs for rollout in group.rollouts])

    def refuse_other_tokens(self) -> None:
        """What the student said can be scored only by a teacher that makes text of tokens as it does.

        Raises:
            UsageError: this one does not.
        """
        _, renderer = self._open()
        mine, its = self._student.identity, renderer.identity
        # The vendor's renderers hold their tokenizers, and stand for them.
        name = "tokenizer" if "tokenizer" in mine and "tokenizer" in its else "renderer"
        if mine[name] != its[name]:
            raise UsageError(
                f"--on-policy: the {name} of the teacher {self._bench.config.teacher} is not that of the student",
                hint="--off-policy trains on what it says, whatever its tokens",
            )

    def _told(self, asked: Asked) -> "Conversation":
        """What the teacher is asked: its own system message takes the place of the prompt's."""
        conversation = asked.prompt.conversation.copy()
        if self._system is not None:
            rest = [m for m in asked.prompt.messages if m["role"] not in ("system", "developer")]
            conversation["messages"] = [{"role": "system", "content": self._system}, *rest]
        return conversation

    def _input(self, asked: Asked, renderer: "Renderer") -> Any:
        return renderer.generation_prompt(self._told(asked))

    def _open(self) -> "tuple[SamplingClient, Renderer]":
        """The teacher's sampler, and what writes for it.

        Raises:
            RunError: there is no such run, or it is not where the engine is.
            ModelError: there is no such model.
        """
        if self._opened is None:
            self._opened = self._find()
        return self._opened

    def _find(self) -> "tuple[SamplingClient, Renderer]":
        from tinkertools.chat.rendering import load_renderer

        bench, named = self._bench, self._bench.config.teacher
        if named is None:
            return starting_sampler(bench), self._student
        weights = _adapter(named, bench.config)
        if weights is None:
            base = str(Path(named).resolve()) if Path(named).is_dir() else named
            return bench.service.create_sampling_client(None, base), load_renderer(base)
        base = weights.base_model or bench.config.base_model
        sampler = bench.service.create_sampling_client(weights.source(bench.choice.engine), base)
        return sampler, load_renderer(base, weights.renderer or AUTO_RENDERER)


def _adapter(named: str, config: TrainConfig) -> "Weights | None":
    """The adapter that a teacher's name means; None where it names a base model.

    Raises:
        RunError: it names neither.
    """
    from tinkertools.runs.directory import find_weights

    if not named.startswith("tinker://") and not Path(named).exists():
        return None
    try:
        return find_weights(named, config.output_dir)
    except RunError:
        # A model's folder has a config.json as a run has, and no log.
        if not (Path(named) / "config.json").is_file():
            raise
        return None


@dataclass(frozen=True)
class TeacherCredit:
    """`Credit` by how likely a teacher finds what was said."""

    teacher: Teacher

    def __post_init__(self) -> None:
        self.teacher.refuse_other_tokens()

    def __call__(self, groups: Sequence[Group]) -> Credited:
        """See `Credit`."""
        futures = iter(self.teacher.logprobs(groups))
        found = Credited([], [], {"reverse_kl": []})
        for group in groups:
            gaps: list[Floats] = [logprobs_of(next(futures), rollout) - rollout.logprobs for rollout in group.rollouts]
            if not gaps:
                found.advantages.append([])
                found.rewards.append([])
                continue
            flat = np.concatenate(gaps)
            found.values["reverse_kl"] += (-flat).tolist()
            found.advantages.append([gap - flat.mean() for gap in gaps])
            found.rewards.append([float(gap.sum()) for gap in gaps])
        return found
