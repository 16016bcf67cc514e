"""Matches: what is checked of a game, how they are counted, and that playing many at once changes nothing."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools import local
from tinkertools.chat.rendering import load_renderer
from tinkertools.errors import DataError, UsageError
from tinkertools.games import (
    FixedPlayer,
    Match,
    ModelPlayer,
    Move,
    Rules,
    find_game,
    paired,
    play,
    score,
    whole_name,
)  # fmt: skip
from tinkertools.seeds import derived

NIM = find_game("nim")

COUNTING = '''
class Counting:
    """Players count to three, one number each; who says three wins, and 'pass' is a draw."""

    def __init__(self, seed):
        self.said, self.player, self.winner = seed % 2, seed % 2, None

    def prompt(self):
        return f"{self.said} was said."

    def play(self, answer):
        if answer == "pass":
            self.winner = "draw"
            return
        self.said += 1
        if self.said == 3:
            self.winner = self.player
        self.player = 1 - self.player

    def fixed_move(self):
        return str(self.said + 1)
'''


def game_in(folder: Path, changes: tuple[str, str] = ("", "")) -> str:
    """`--game` of a file with the game of counting, changed."""
    assert changes[0] in COUNTING
    file = folder / "counting.py"
    file.write_text(COUNTING.replace(*changes) if changes[0] else COUNTING)
    return f"{file}:Counting"


class Scripted:
    """A player whose answers depend on its seed alone; it notes what is asked together."""

    def __init__(self, draw: Callable[[random.Random, Match], str]) -> None:
        self._draw = draw
        self.asked: list[int] = []
        self._open = False

    def together(self) -> AbstractContextManager[None]:
        self.asked.append(0)
        return nullcontext()

    def ask(self, match: Match, seed: int) -> Callable[[], Move]:
        self.asked[-1] += 1
        move = Move(match.player, match.prompt(), self._draw(random.Random(seed), match), asked="a prompt")
        return lambda: move


def any_number(rng: random.Random, match: Match) -> str:
    return str(rng.randint(0, 3))


@given(seed=st.integers(0, 2**31 - 1), count=st.integers(1, 9))
def test_lockstep_is_one_by_one(seed: int, count: int) -> None:
    many = paired(NIM, count, seed)
    play(many, (Scripted(any_number), FixedPlayer()), seed)
    for number, match in enumerate(many):
        alone = Match(NIM, match.seed, match.first)
        moves: list[Move] = []
        while alone.winner is None:
            text = alone.fixed_move()
            if alone.player == 0:
                text = any_number(random.Random(derived(seed, "move", number, len(moves))), alone)
            moves.append(Move(alone.player, alone.prompt(), text))
            alone.make(moves[-1])
        assert [(move.player, move.prompt, move.text) for move in match.moves] == [
            (move.player, move.prompt, move.text) for move in moves
        ]
        assert (match.winner, match.illegal) == (alone.winner, alone.illegal)


def test_all_open_matches_are_asked_at_once() -> None:
    player = Scripted(lambda rng, match: "1")
    play([Match(NIM, seed, first=0) for seed in range(10)], (player, FixedPlayer()), 0)
    assert player.asked[0] == 10
    assert 0 not in player.asked[::2]  # of two turns, one is the other's
    assert player.asked[2] == 10


def test_pairs_share_their_start_and_change_seats() -> None:
    matches = paired(NIM, 5, 3)
    assert [match.first for match in matches] == [0, 1, 0, 1, 0]
    assert [match.seat_of for match in matches[:2]] == [(0, 1), (1, 0)]
    assert [match.player for match in matches] == [0, 1, 0, 1, 0]
    assert matches[0].seed == matches[1].seed != matches[2].seed
    assert paired(NIM, 5, 3)[4].seed == matches[4].seed != paired(NIM, 5, 4)[4].seed


def test_seeds_depend_on_every_part() -> None:
    assert derived(1, "move", 2, 3) == derived(1, "move", 2, 3)
    found = {derived(*parts) for parts in [(1, 23), (12, 3), (1, 2, 3), ("1", "2", "x"), (123,)]}
    assert len(found) == 5
    assert all(0 <= seed < 2**31 for seed in found)


def test_wins_draws_and_illegal_moves_are_counted(tmp_path: Path) -> None:
    rules = find_game(game_in(tmp_path))
    # Seed 0: seat 0 says 1, seat 1 says 2, seat 0 says 3 and wins. Seed 1: seat 1 says 2, seat 0 says 3 and wins.
    matches = [Match(rules, seed, first) for seed, first in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    play(matches[:3], (FixedPlayer(), FixedPlayer()), 0)
    assert [(match.winner, len(match.moves)) for match in matches[:3]] == [(0, 3), (1, 3), (0, 2)]
    assert [move.player for move in matches[1].moves] == [1, 0, 1]
    assert [move.player for move in matches[2].moves] == [1, 0]
    play(matches[3:], (Scripted(lambda rng, match: "pass"), FixedPlayer()), 0)
    illegal = Match(NIM, 0, first=1)
    play([illegal], (FixedPlayer(), Scripted(lambda rng, match: "all")), 0)
    assert (illegal.winner, illegal.illegal, len(illegal.moves)) == (0, True, 1)
    every = [*matches, illegal]
    assert [match.return_of(0) for match in every] == [1, -1, 1, 0, 1]
    assert [match.return_of(1) for match in every] == [-1, 1, -1, 0, -1]
    found = score(every)
    assert (found.win_rate, found.draws, found.illegal, found.moves) == (3.5 / 5, 1 / 5, 1 / 5, (3 + 3 + 2 + 1 + 1) / 5)
    assert score(every, 1).win_rate == pytest.approx(1.5 / 5)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('return f"{self.said} was said."', "return self.said", r"prompt\(\) returned 0, but must return text"),
        ('return f"{self.said} was said."', "return '  '", r"prompt\(\) returned '  '"),
        ('return f"{self.said} was said."', "1 / 0", r"prompt failed: counting.py:9: ZeroDivisionError: division by"),
        ("return str(self.said + 1)", "return 7", r"fixed_move\(\) returned 7"),
        ("self.said == 3", "self.said == -3", r"there is no winner after 1,000 moves .*seed 0, after 1000 moves"),
        ("self.winner = self.player", "self.winner = 2", "winner is 2, but must be 0, 1, 'draw' or None"),
        ("self.winner = self.player", "self.winner = True", "winner is True"),
        ("self.player = 1 - self.player", "self.player = 'B'", "player is 'B', but must be 0 or 1"),
        ("self.said, self.player, self.winner = seed % 2, seed % 2, None", "pass", "game has no player, winner"),
        ("def __init__(self, seed)", "def __init__(self)", "__init__ failed: TypeError: "),
        ("def fixed_move", "def fixed_moves", "the game has no fixed_move"),
        ('if answer == "pass"', "if answer.x", r"play failed: counting.py:12: AttributeError: 'str' object has no"),
    ],
)
def test_a_broken_game_is_told_by_its_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    rules = find_game(game_in(tmp_path, (old, new)))
    with pytest.raises(DataError, match=words) as caught:
        play([Match(rules, 0)], (FixedPlayer(), FixedPlayer()), 0)
    assert caught.value.message.startswith(f"--game {tmp_path}/counting.py:Counting: ")
    assert "after " in caught.value.message
    assert "mend the game" in str(caught.value.hint)


def test_the_fixed_opponent_must_keep_the_rules(tmp_path: Path) -> None:
    name = game_in(tmp_path, ('if answer == "pass"', "if answer == '2':\n            raise Wrong('no')\n        if 0"))
    file = Path(name.rpartition(":")[0])
    file.write_text("from tinkertools.games import IllegalMove as Wrong\n" + file.read_text())
    with pytest.raises(DataError, match=r"fixed_move\(\) answered '2', which play\(\) refuses: no .*after 2 moves"):
        play([Match(find_game(name), 0)], (FixedPlayer(), FixedPlayer()), 0)


@pytest.fixture
def clean_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.usefixtures("clean_modules")
def test_games_are_found_by_file_and_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = game_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    for given_ in (name, "counting.py:Counting", "counting:Counting"):
        rules = find_game(given_)
        assert rules.name == given_
        assert rules.make(1).prompt() == "1 was said."
    assert str(tmp_path) not in sys.path
    assert whole_name("counting.py:Counting") == name
    assert [whole_name(one) for one in ("nim", "a.b:C", "no.py:C")] == ["nim", "a.b:C", "no.py:C"]


@pytest.mark.usefixtures("clean_modules")
@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("chess", "there is no such game", "--game takes nim, FILE.py:CLASS or MODULE:CLASS"),
        ("no.py:Game", "there is no file no.py", "check the path"),
        ("no_such_module:Game", "ModuleNotFoundError: No module named 'no_such_module'", "--game takes nim"),
        ("counting.py:Chess", "counting.py has no class Chess", "--game counting.py:Counting"),
        ("counting.py:prompt", "counting.py has no class prompt", "--game counting.py:Counting"),
        ("broken.py:Game", "broken.py:2: SyntaxError: ", "mend the game's file"),
        ("needs.py:Game", "needs.py:1: ModuleNotFoundError: No module named 'no_lib'", "install no_lib"),
        ("raises.py:Game", "raises.py:3: ValueError: no", "mend the game's file"),
    ],
)
def test_what_is_no_game_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str, hint: str
) -> None:
    game_in(tmp_path)
    (tmp_path / "broken.py").write_text("x = 1\nclass Game(:\n")
    (tmp_path / "needs.py").write_text("import no_lib\n")
    (tmp_path / "raises.py").write_text("\n\nraise ValueError('no')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        find_game(name)
    assert caught.value.message.startswith(f"--game {name}: ")
    assert words in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_model_plays_in_lockstep_as_alone(untied: str, tmp_path: Path) -> None:
    renderer = load_renderer(untied)

    def answers(rules: Rules, at_once: bool) -> list[tuple[str, tuple[int, ...]]]:
        matches = [Match(rules, seed) for seed in range(6)]
        player = ModelPlayer(sampler, renderer, max_tokens=3, temperature=1.0)
        if at_once:
            play(matches, (player, player), 7)
        else:
            for number, match in enumerate(matches):
                while match.winner is None:
                    match.make(player.ask(match, derived(7, "move", number, len(match.moves)))())
        return [(move.text, move.tokens) for match in matches for move in match.moves]

    # Any answer is a move of counting: its matches have two and three moves.
    counting = find_game(game_in(tmp_path))
    with local.ServiceClient(store=tmp_path / "store") as service:
        sampler = service.create_sampling_client(base_model=untied)
        found = answers(counting, at_once=True)
        assert found == answers(counting, at_once=False) == answers(counting, at_once=True)
    assert len(found) == 15
    assert len(set(found)) > 10
