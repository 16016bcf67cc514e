"""The rules of Nim, against a search of all its positions."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.games import IllegalMove
from tinkertools.games.nim import Nim

seeds = st.integers(0, 2**31 - 1)


@cache
def wins(stones: int) -> bool:
    """Whether who moves can force a win, by trying everything."""
    return any(stones == taken or not wins(stones - taken) for taken in (1, 2, 3) if taken <= stones)


def test_who_leaves_a_multiple_of_four_wins() -> None:
    assert [stones for stones in range(1, 21) if not wins(stones)] == [4, 8, 12, 16, 20]


@given(seed=seeds, draws=st.lists(st.integers(1, 3), min_size=12, max_size=12))
def test_a_match_of_legal_moves_is_the_sum_of_what_is_taken(seed: int, draws: list[int]) -> None:
    game = Nim(seed)
    stones = game.stones
    assert 5 <= stones <= 12
    player = 0
    for drawn in draws:
        assert game.player == player
        assert game.winner is None
        assert game.prompt().endswith(f" Stones: {stones}")
        taken = min(drawn, stones)
        game.play(f"I take {taken}.")
        stones -= taken
        if not stones:
            break
        player = 1 - player
    assert game.winner == player
    assert game.stones == stones == 0


@given(seed=seeds, seat=st.integers(0, 1))
def test_the_best_player_wins_every_match_that_can_be_won(seed: int, seat: int) -> None:
    game = Nim(seed)
    sure = wins(game.stones) == (seat == 0)
    while game.winner is None:
        best = next((n for n in (1, 2, 3) if n <= game.stones and not wins(game.stones - n)), 1)
        game.play(str(best) if game.player == seat else game.fixed_move())
    assert game.winner == seat or not sure


@given(seed=seeds)
def test_the_fixed_opponent_is_legal_and_repeats(seed: int) -> None:
    one, other = Nim(seed), Nim(seed)
    while one.winner is None:
        assert one.fixed_move() == one.fixed_move() == other.fixed_move()
        assert 1 <= int(one.fixed_move()) <= min(3, one.stones)
        other.play(one.fixed_move())
        one.play(one.fixed_move())
    assert other.winner == one.winner


def test_the_fixed_opponent_takes_each_number_as_often() -> None:
    counts = [sum(Nim(seed).fixed_move() == str(taken) for seed in range(3000)) for taken in (1, 2, 3)]
    assert all(900 < count < 1100 for count in counts)
    starts = {Nim(seed).stones for seed in range(200)}
    assert starts == set(range(5, 13))


@pytest.mark.parametrize("answer", ["", "none", "0", "4", "-", "1 or 2", "1, 2 or 3", "12", "9" * 5000, "³"])
def test_other_answers_are_no_moves(answer: str) -> None:
    game = Nim(0)
    stones = game.stones
    with pytest.raises(IllegalMove):
        game.play(answer)
    assert (game.stones, game.player, game.winner) == (stones, 0, None)


def test_more_than_there_is_cannot_be_taken() -> None:
    game = Nim(0)
    while game.stones > 2:
        game.play("1")
    with pytest.raises(IllegalMove, match="3 cannot be taken of 2"):
        game.play("3")


@given(answer=st.text(max_size=40))
def test_any_text_is_a_move_or_none(answer: str) -> None:
    game = Nim(1)
    stones = game.stones
    try:
        game.play(answer)
    except IllegalMove:
        assert game.stones == stones
    else:
        assert 1 <= stones - game.stones <= 3
