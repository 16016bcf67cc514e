"""Who makes moves: a model, or the game's fixed opponent."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkertools.engines import together
from tinkertools.errors import EngineError
from tinkertools.games.matches import Match, Move

if TYPE_CHECKING:
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient


@dataclass(frozen=True)
class FixedPlayer:
    """Plays what the game's `fixed_move` says."""

    def together(self) -> AbstractContextManager[None]:
        """See `Player`."""
        return nullcontext()

    def ask(self, match: Match, seed: int) -> Callable[[], Move]:
        """See `Player`. The game draws its chance by itself, from the match's own seed."""
        move = Move(match.player, match.prompt(), match.fixed_move())
        return lambda: move


@dataclass(frozen=True)
class ModelPlayer:
    """A model that is told the prompt as a user's message and answers; its reasoning is not part of the move."""

    sampler: "SamplingClient"
    renderer: "Renderer"
    max_tokens: int
    temperature: float

    def together(self) -> AbstractContextManager[None]:
        """See `Player`."""
        return together(self.sampler)

    def ask(self, match: Match, seed: int) -> Callable[[], Move]:
        """See `Player`."""
        from tinker import types

        from tinkertools.chat.datums import to_model_input
        from tinkertools.chat.examples import split_reasoning

        player, prompt = match.player, match.prompt()
        asked = self.renderer.generation_prompt({"messages": [{"role": "user", "content": prompt}]})
        params = types.SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, seed=seed, stop=self.renderer.stop_tokens
        )
        waiting = self.sampler.sample(to_model_input(asked.tokens, asked.images), 1, params)

        def wait() -> Move:
            sequence = waiting.result().sequences[0]
            if sequence.logprobs is None:
                raise EngineError("the server gave no logprobs of what was sampled, without which nothing is learnt")
            _, text = split_reasoning({"role": "assistant", "content": self.renderer.decode(sequence.tokens)})
            return Move(player, prompt, text, asked, tuple(sequence.tokens), tuple(sequence.logprobs))

        return wait
