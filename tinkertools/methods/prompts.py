"""Prompts to be answered while training: read, held out, and made ready for the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import orjson

from tinkertools.chat.batching import Batches
from tinkertools.chat.cache import fingerprint
from tinkertools.chat.examples import Example, RenderError
from tinkertools.chat.examples import Prompt as ModelPrompt
from tinkertools.config import PrepareDefaults, TrainConfig
from tinkertools.data import length_limit
from tinkertools.errors import DataError
from tinkertools.files import explain_os_errors
from tinkertools.methods.base import Tokens, of_held_out
from tinkertools.prompts import Prompt, load_prompts, prompts_of
from tinkertools.reporting import Voice

if TYPE_CHECKING:
    from tinkertools.chat.rendering import Renderer
    from tinkertools.local.limits import Limits

# Of a file, to find out what its rows are.
_FIRST_BYTES = 1 << 20


@dataclass(frozen=True)
class Asked:
    """A prompt as the model gets it.

    Attributes:
        prompt: the prompt, with what a good answer is where the data say it.
        input: its tokens, (T,), and images.
        max_tokens: how long an answer may be.
    """

    prompt: Prompt
    input: ModelPrompt
    max_tokens: int


@dataclass
class Prompts:
    """Prompts to train on, and those that are held out: `Material` but for `begin`."""

    config: TrainConfig
    voice: Voice
    prompts: list[Prompt]
    held_out: list[Prompt]
    renderer: "Renderer"
    ready: list[Asked] = field(init=False)
    held_out_ready: list[Asked] = field(init=False, default_factory=list)
    rehearse: ClassVar[None] = None  # a model must answer first
    _batches: Batches = field(init=False)

    @property
    def data(self) -> dict[str, Any]:
        """See `Material`."""
        found: dict[str, Any] = {"fingerprint": _fingerprint(self.prompts), "prompts": len(self.prompts)}
        if self.held_out:
            found |= {"held_out": _fingerprint(self.held_out), "held_out_prompts": len(self.held_out)}
        return found

    def make_ready(self, limits: "Limits", *, strict: bool = True) -> None:
        """See `Material`."""
        self.ready = self._fitted(self.prompts, limits, strict=strict)
        tokens = sum(len(one.input.tokens) for one in self.ready)
        self.voice.say(f"prompts: {len(self.ready):,} of {len(self.prompts):,}, with {tokens:,} tokens")
        self._batches = Batches(len(self.ready), self.config.batch, self.config.seed)
        if not self.held_out:
            return
        with of_held_out(self.config):
            self.held_out_ready = self._fitted(self.held_out, limits, strict=strict)
        self.voice.say(f"held out: {len(self.held_out_ready):,} prompts")

    def _fitted(self, prompts: Sequence[Prompt], limits: "Limits", *, strict: bool) -> list[Asked]:
        """The prompts that leave room for an answer.

        Raises:
            DataError: one leaves none and `overlength` is `error`, or all do, or one cannot be rendered.
        """
        config = self.config
        limit = length_limit(config.max_length, limits)
        kept: list[Asked] = []
        too_long = 0
        for number, prompt in enumerate(prompts, 1):
            try:
                found = self.renderer.generation_prompt(prompt.conversation)
            except RenderError as error:
                raise DataError(f"prompt {number}: {error}", hint="change it, or leave it out") from error
            room = config.max_tokens if limit is None else min(config.max_tokens, limit - len(found.tokens))
            if room > 0:
                kept.append(Asked(prompt, found, room))
                continue
            too_long += 1
            if config.overlength == "error" and strict:
                raise DataError(
                    f"prompt {number} has {len(found.tokens):,} tokens, which leaves no room for an answer: the limit "
                    f"is {limit:,}",
                    hint="--overlength drop leaves such prompts out",
                )
        if too_long:
            would = "training would stop: " if config.overlength == "error" else ""
            self.voice.warn(f"{would}{too_long:,} prompts are too long to be answered, and left out")
        if not kept:
            raise DataError("no prompt leaves room for an answer", hint="raise --max-length, or give shorter prompts")
        return kept

    @property
    def batches(self) -> Batches:
        """See `Material`."""
        return self._batches

    @property
    def examples(self) -> list[Example]:
        """See `Material`: nothing of a prompt is trained."""
        return [
            Example(one.input.tokens, np.zeros(len(one.input.tokens), np.float32), one.input.images)
            for one in self.ready
        ]

    @property
    def asked(self) -> list[Prompt]:
        """See `Material`."""
        return self.held_out

    def tokens(self, total_steps: int) -> Tokens | None:
        """See `Material`: every answer may be as long as there is room."""
        most = [len(one.input.tokens) + one.max_tokens for one in self.ready]
        asked = sum(most[i] for step in range(1, total_steps + 1) for i in self._batches.at(step))
        return Tokens(self.config.group_size * asked, exact=False)


def read_prompts(config: TrainConfig, voice: Voice) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on and those held out: of a file of prompts, or of conversations up to their last answer.

    Raises:
        DataError: a row cannot be used.
    """
    from tinkertools.chat.splitting import split_by

    prompts, words = _read(config.data, config.num_examples)
    voice.say(f"data: {config.data}: {len(prompts):,} prompts ({words})")
    if config.val_fraction:
        return split_by(prompts, [_content(prompt) for prompt in prompts], config.val_fraction, "prompts")
    if not config.eval_data:
        return prompts, []
    held, words = _read(config.eval_data, 0)
    voice.say(f"held out: {config.eval_data}: {len(held):,} prompts ({words})")
    return prompts, held


def _read(name: str, most: int) -> tuple[list[Prompt], str]:
    from tinkertools.chat.records import read_all
    from tinkertools.chat.sources import find_source

    if _holds_prompts(Path(name)):
        prompts = load_prompts(Path(name))
        return (prompts[:most] if most else prompts), "prompts without answers"
    conversations, row_format = read_all(find_source(name), PrepareDefaults.errors_shown, most)
    prompts = prompts_of(conversations, len(conversations))
    if not prompts:
        raise DataError(f"{name}: no conversation asks the assistant anything", hint="give prompts, or conversations")
    return prompts, row_format.description


def _holds_prompts(path: Path) -> bool:
    """Whether the first row of a file is a prompt: a text, a list of messages, or messages that end with the user's."""
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return False
    with explain_os_errors(path), path.open("rb") as file:
        start = file.read(_FIRST_BYTES).strip()
    try:
        first = orjson.loads(path.read_bytes() if path.suffix == ".json" else start.split(b"\n", 1)[0])
    except ValueError:
        return False  # whoever reads it will say what is wrong
    if path.suffix == ".json" and isinstance(first, list):
        first = first[0] if first else None
    if isinstance(first, str | list):
        return True
    messages = first.get("messages") if isinstance(first, dict) else None
    return isinstance(messages, list) and bool(messages) and dict(messages[-1]).get("role") in ("user", "tool")


def _content(prompt: Prompt) -> bytes:
    """What makes prompts equal: what is asked, whatever the answer."""
    asked = {name: value for name, value in prompt.conversation.items() if name != "metadata"}
    return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS, default=str)


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """A hash of the prompts with their references: both decide what is trained."""
    return fingerprint(
        [
            {**prompt.conversation, "messages": [*prompt.messages, {"role": "assistant", "content": prompt.reference}]}
            for prompt in prompts
        ]
    )
