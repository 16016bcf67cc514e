"""Games for two that models play against each other: what a game is, one that ships, and how matches are played."""

from tinkertools.games.loading import find_game, whole_name
from tinkertools.games.matches import Match, Move, Player, Rules, Score, paired, play, score
from tinkertools.games.players import FixedPlayer, ModelPlayer
from tinkertools.games.rules import Game, IllegalMove, Winner

__all__ = [
    "FixedPlayer", "Game", "IllegalMove", "Match", "ModelPlayer", "Move", "Player", "Rules", "Score", "Winner",
    "find_game", "paired", "play", "score", "whole_name",
]  # fmt: skip
