"""What a game is."""

from typing import Literal, Protocol

# Who has won: player 0, player 1, or nobody.
Winner = Literal[0, 1, "draw"]


class IllegalMove(Exception):
    """An answer that is no move, or one that the rules forbid: whoever gave it has lost."""


class Game(Protocol):
    """One match between player 0 and player 1, from its start to its end.

    A class of these five parts is a game; it need not inherit from this one. All that happens must follow from the seed
    and the answers: chance is drawn from `random.Random(seed)`.
    """

    def __init__(self, seed: int) -> None:
        """Set up the start position of a seed."""

    @property
    def player(self) -> int:
        """Whose turn it is, 0 or 1."""

    @property
    def winner(self) -> Winner | None:
        """0, 1 or "draw" once the match is over; None before."""

    def prompt(self) -> str:
        """What the player whose turn it is is told: the whole position, and how to answer."""

    def play(self, answer: str) -> None:
        """Make the move that is in a model's answer.

        Raises:
            IllegalMove: there is none in it, or none that the rules allow.
        """

    def fixed_move(self) -> str:
        """What the fixed opponent answers here: the one that models are measured against."""
