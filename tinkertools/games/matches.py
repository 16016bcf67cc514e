"""Playing matches: many at once, in lockstep, with every draw of chance derived from one seed."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tinkertools.errors import DataError
from tinkertools.games.rules import Game, IllegalMove, Winner
from tinkertools.seeds import derived

T = TypeVar("T")

# A match with more moves than this has no end.
MOST_MOVES = 1000

# Moves that are asked for at once: what the embedded engine answers side by side, and any server takes.
_AT_ONCE = 64

_PARTS = ("player", "winner", "prompt", "play", "fixed_move")


@dataclass(frozen=True)
class Rules:
    """A game by its name on the command line, and the class that a match of it is made with."""

    name: str
    make: Callable[[int], Game]


@dataclass(frozen=True)
class Move:
    """A move that was made: what the player was told, what it answered, and as what tokens if it is a model.

    Attributes:
        player: who made it, 0 or 1, as they are given to `play`.
        prompt: what it was told.
        text: what it answered.
        asked: the rendered prompt; None where no model answered.
        tokens: of the answer, (N,).
        logprobs: of those, natural log, (N,).
    """

    player: int
    prompt: str
    text: str
    asked: Any = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


class Player(Protocol):
    """Who makes moves: `FixedPlayer`, `ModelPlayer`."""

    def together(self) -> AbstractContextManager[None]:
        """A block within which moves are asked for that may be found side by side; none is waited for in it."""
        ...

    def ask(self, match: "Match", seed: int) -> Callable[[], Move]:
        """Begin to find a move in the match; what is returned waits for it. Chance comes from the seed."""
        ...


@dataclass
class Match:
    """One match, and what is checked of the game that it is played by.

    Attributes:
        seed: of the start position.
        first: the player in seat 0: the game's player 0.
        moves: those made so far.
        illegal: whether the last one was illegal.
        winner: the player that has won, or "draw"; None while the match is open.
    """

    rules: Rules
    seed: int
    first: int = 0
    moves: list[Move] = field(default_factory=list)
    illegal: bool = False
    winner: Winner | None = None

    def __post_init__(self) -> None:
        self._game = self._call("__init__", lambda: self.rules.make(self.seed))
        if missing := [name for name in _PARTS if not self._has(name)]:
            raise self._wrong(f"the game has no {', '.join(missing)}")
        self._look()

    @property
    def player(self) -> int:
        """Whose turn it is."""
        return self._seated(self._seat)

    @property
    def seat_of(self) -> tuple[int, int]:
        """The seats of player 0 and player 1."""
        return (0, 1) if self.first == 0 else (1, 0)

    def prompt(self) -> str:
        """What the player whose turn it is is told."""
        return self._text("prompt", self._game.prompt)

    def fixed_move(self) -> str:
        """What the fixed opponent would answer."""
        return self._text("fixed_move", self._game.fixed_move)

    def make(self, move: Move, *, fixed: bool = False) -> None:
        """Take an answer: the game goes on, or is over.

        Args:
            move: by the player whose turn it is.
            fixed: whether it is the game's own fixed move, which is legal or the game is broken.

        Raises:
            DataError: the game is broken.
        """
        self.moves.append(move)
        try:
            self._call("play", lambda: self._game.play(move.text))
        except IllegalMove as error:
            if fixed:
                raise self._wrong(f"fixed_move() answered {move.text!r}, which play() refuses: {error}") from error
            self.illegal = True
            self.winner = 1 if move.player == 0 else 0
            return
        self._look()
        if self.winner is None and len(self.moves) >= MOST_MOVES:
            raise self._wrong(f"there is no winner after {MOST_MOVES:,} moves")

    def return_of(self, player: int) -> float:
        """What the match brought a player: 1 for a win, −1 for a loss, 0 for a draw."""
        assert self.winner is not None
        return 0.0 if self.winner == "draw" else 1.0 if self.winner == player else -1.0

    def _has(self, name: str) -> bool:
        return self._call(name, lambda: hasattr(self._game, name))

    def _seated(self, seat: int) -> int:
        return seat if self.first == 0 else 1 - seat

    def _look(self) -> None:
        """Read whose turn it is and who has won."""
        winner: Any = self._call("winner", lambda: self._game.winner)
        if winner is not None and winner != "draw" and not _is_seat(winner):
            raise self._wrong(f"winner is {winner!r}, but must be 0, 1, 'draw' or None")
        self.winner = winner if winner in (None, "draw") else 1 if self._seated(winner) else 0
        if winner is None:
            self._seat: int = self._call("player", lambda: self._game.player)
            if not _is_seat(self._seat):
                raise self._wrong(f"player is {self._seat!r}, but must be 0 or 1")

    def _text(self, what: str, function: Callable[[], Any]) -> str:
        text = self._call(what, function)
        if not isinstance(text, str) or not text.strip():
            raise self._wrong(f"{what}() returned {text!r}, but must return text")
        return text

    def _call(self, what: str, function: Callable[[], T]) -> T:
        """What the user's code returns.

        Raises:
            DataError: it failed.
            IllegalMove: `play` said so.
        """
        try:
            return function()
        except IllegalMove as error:
            if what == "play":
                raise
            raise self._wrong(f"{what} raised IllegalMove, which only play() may") from error
        except Exception as error:
            raise self._wrong(f"{what} failed: {described(error, __file__)}") from error

    def _wrong(self, words: str) -> DataError:
        return DataError(
            f"--game {self.rules.name}: {words} (the match of seed {self.seed}, after {len(self.moves)} moves)",
            hint="mend the game; what it needs is in the README under Self-play",
        )


def _is_seat(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in (0, 1)


def described(error: BaseException, here: str) -> str:
    """An error of a user's code and its place, in a line.

    Args:
        error: the error.
        here: the file that ran that code, which is not the place.
    """
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != here]
    inner = [one for one in frames if not one.filename.startswith("<frozen importlib")]
    place = f"{Path(inner[-1].filename).name}:{inner[-1].lineno}: " if inner else ""
    words = str(error)
    if isinstance(error, SyntaxError) and error.filename:
        place, words = f"{Path(error.filename).name}:{error.lineno}: ", error.msg
    return f"{place}{type(error).__name__}: {' '.join(words.split())}".rstrip(": ")


def paired(rules: Rules, count: int, seed: int) -> list[Match]:
    """So many matches, in pairs: each pair from one start position, once with player 0 in seat 0, once with player 1.

    Args:
        rules: of the game.
        count: how many; the last pair of an odd number lacks its second match.
        seed: the start positions follow from it.
    """
    return [Match(rules, derived(seed, "start", number // 2), first=number % 2) for number in range(count)]


def play(matches: Sequence[Match], players: tuple[Player, Player], seed: int) -> None:
    """Play open matches to their ends, in lockstep: at each turn, the moves of all that are open are asked for at once.

    The seed of a move is derived from `seed`, the match's place among `matches` and the number of the move, so that it
    does not depend on how long other matches are.

    Raises:
        DataError: the game is broken.
        EngineError: a model could not be asked.
    """
    while going := [(number, match) for number, match in enumerate(matches) if match.winner is None]:
        # A player's requests stand together: its model is asked in one go.
        going.sort(key=lambda pair: pair[1].player)
        for part in _parts(going):
            with ExitStack() as asking:
                for player in players:
                    asking.enter_context(player.together())
                asked = [
                    (match, players[match.player].ask(match, derived(seed, "move", number, len(match.moves))))
                    for number, match in part
                ]
            for match, wait in asked:
                move = wait()
                match.make(move, fixed=move.asked is None)


def _parts(going: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(going), _AT_ONCE):
        yield going[start : start + _AT_ONCE]


@dataclass(frozen=True)
class Score:
    """What matches brought one of the players.

    Attributes:
        win_rate: the share that it won; a draw is half a win.
        draws: the share of draws.
        illegal: the share that ended with an illegal move, whoever made it.
        moves: the mean number of moves of a match, of both players.
    """

    win_rate: float
    draws: float
    illegal: float
    moves: float


def score(matches: Sequence[Match], player: int = 0) -> Score:
    """What finished matches brought a player."""
    count = len(matches)
    return Score(
        win_rate=sum((1 + match.return_of(player)) / 2 for match in matches) / count,
        draws=sum(match.winner == "draw" for match in matches) / count,
        illegal=sum(match.illegal for match in matches) / count,
        moves=sum(len(match.moves) for match in matches) / count,
    )
