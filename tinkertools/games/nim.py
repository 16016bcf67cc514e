"""Nim with one heap: the game that ships."""

import random
import re

from tinkertools.games.rules import IllegalMove, Winner

# Stones at the start, and the most that may be taken at once.
_START = (5, 12)
_MOST_TAKEN = 3

_NUMBER = re.compile(r"\d+")


class Nim:
    """A heap of 5 to 12 stones. In turn each player takes 1, 2 or 3; whoever takes the last one wins.

    A move is an answer with exactly one number in it. Who leaves a multiple of 4 wins against everybody; the fixed
    opponent knows nothing of that and takes any legal number, each as likely.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.stones = random.Random(f"nim {seed}").randint(*_START)
        self.player = 0
        self.winner: Winner | None = None

    def prompt(self) -> str:
        """See `Game`."""
        return f"Take 1, 2 or 3: who takes the last stone wins. Say a number. Stones: {self.stones}"

    def play(self, answer: str) -> None:
        """See `Game`."""
        numbers = _NUMBER.findall(answer)
        if len(numbers) != 1:
            raise IllegalMove(f"one number is wanted, and there are {len(numbers)} in the answer")
        taken = int(numbers[0]) if len(numbers[0]) < 10 else self.stones + 1
        if not 1 <= taken <= min(_MOST_TAKEN, self.stones):
            raise IllegalMove(f"{numbers[0]} cannot be taken of {self.stones}")
        self.stones -= taken
        if not self.stones:
            self.winner = 1 if self.player else 0
        self.player = 1 - self.player

    def fixed_move(self) -> str:
        """See `Game`."""
        rng = random.Random(f"nim {self._seed} {self.stones}")
        return str(rng.randint(1, min(_MOST_TAKEN, self.stones)))
