"""Self-play: what is learnt from matches, that it wins, and runs of it through the command line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import interrupted_at
from marks import mostly_slow
from peft import PeftModel
from run_files import log_of, run_of, without_times, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tinkertools import local
from tinkertools.chat.examples import Prompt
from tinkertools.chat.rendering import load_renderer
from tinkertools.errors import DataError
from tinkertools.games import FixedPlayer, Match, ModelPlayer, Move, Rules, find_game, paired, play, score
from tinkertools.methods.selfplay import baselines, learnt, rehearse
from tinkertools.runs.directory import RunDirectory

Tt = Callable[..., Any]
WEIGHTS = "adapter_model.safetensors"

LONGER = '''
class Longer:
    """Each says something, once; who says more wins."""

    def __init__(self, seed):
        self.said, self.winner = [], None

    @property
    def player(self):
        return len(self.said)

    def prompt(self):
        return "Say much."

    def play(self, answer):
        self.said.append(len(answer))
        if len(self.said) == 2:
            one, other = self.said
            self.winner = "draw" if one == other else 0 if one > other else 1

    def fixed_move(self):
        return "a" * 24
'''


@pytest.fixture
def longer(tmp_path: Path) -> str:
    """`--game` of a game in which any answer is a move."""
    file = tmp_path / "longer.py"
    file.write_text(LONGER)
    return f"{file}:Longer"


@pytest.fixture
def train(tt: Tt, untied: str, longer: str) -> Tt:
    """`tt train --method selfplay` of four steps."""
    return lambda *more: tt(
        "train", "--method", "selfplay", "--base-model", untied, "--game", longer, "--batch", 12, "--max-steps", 4,
        "--max-tokens", 4, "--eval-games", 10, "--learning-rate", "1e-2", *more,
    )  # fmt: skip


def final_weights(run: RunDirectory) -> list[Path]:
    return [run.final_weights / WEIGHTS, run.path / "opponent_lora_weights" / WEIGHTS]


def finished(winner: Any, first: int, *moves: tuple[int, str, list[int]]) -> Match:
    """A match of which only its end and its moves count."""
    match = Match(find_game("nim"), 0, first)
    for player, prompt, tokens in moves:
        asked = Prompt(np.array([1, 2, 3], np.int32))
        logprobs = tuple(-float(token) for token in tokens)
        match.moves.append(Move(player, prompt, "", asked, tuple(tokens), logprobs))
    match.winner = winner
    return match


def test_advantages_are_returns_less_what_the_position_brought_elsewhere() -> None:
    # In seat 0, player 0 wins, loses and draws: 1, −1, 0, mean 0. In seat 1 it wins twice and loses once: mean 1/3.
    # Prompt a was answered in each seat: 1 is held against (1 + 0) / 2 and against (1 + 1/3) / 2. No other came back.
    matches = [
        finished(0, 0, (0, "a", [5, 6]), (1, "x", [7])),
        finished(1, 0, (0, "b", [5]), (1, "y", [7]), (0, "c", [8]), (1, "z", [9])),
        finished("draw", 0, (0, "d", [5])),
        finished(0, 1, (1, "x", [7]), (0, "e", [5])),
        finished(0, 1, (0, "f", [5]), (0, "a", [5, 6])),
        finished(1, 1, (0, "g", [5])),
    ]
    found = learnt(matches, 0)
    # Eight moves; the draw has no advantage; the two equal moves are one datum, with both advantages.
    expected: dict[tuple[int, ...], list[float]] = {
        (5, 6): [1 / 2 + 1 / 3], (5,): [-1, 2 / 3, 2 / 3, -4 / 3], (8,): [-1],
    }  # fmt: skip
    by_tokens: dict[tuple[int, ...], list[float]] = {}
    for datum in found.datums:
        targets = datum.loss_fn_inputs["target_tokens"].tolist()
        advantages = datum.loss_fn_inputs["advantages"].tolist()
        assert targets[:2] == [2, 3]
        assert advantages[:2] == [0, 0]
        assert len({*advantages[2:]}) == 1
        assert datum.loss_fn_inputs["logprobs"].tolist() == [0, 0, *(-float(token) for token in targets[2:])]
        by_tokens.setdefault(tuple(targets[2:]), []).append(advantages[2])
    assert set(by_tokens) == set(expected)
    for tokens, advantages in expected.items():
        assert sorted(by_tokens[tokens]) == pytest.approx(sorted(one / 8 for one in advantages))
    assert found.trained_tokens == 2 + 1 + 1 + 1 + 1 + 2 + 1
    # The other player's returns are the opposite ones.
    other = learnt(matches, 1)
    total = sum(one.loss_fn_inputs["advantages"].tolist()[2] for one in other.datums)
    assert len(other.datums) == 3
    assert total == pytest.approx((-1 / 2 + 1 + 1 - 1 / 3) / 4)


def test_a_match_says_nothing_of_its_own_moves() -> None:
    # Of four matches in seat 0, player 0 wins two: mean 0.
    matches = [
        finished(0, 0, (0, "a", [5]), (1, "a", [5]), (0, "a", [6]), (0, "b", [5])),
        finished(1, 0, (0, "a", [5])),
        finished(1, 0, (0, "a", [5]), (0, "c", [5])),
        finished(0, 0),
    ]
    expected = [[-2 / 3, -2 / 3, 0], [(2 - 1) / 4], [(2 - 1) / 4, 0], []]
    assert baselines(matches, 0) == [pytest.approx(one) for one in expected]


@pytest.mark.parametrize("others", [1, 10, 1000])
def test_a_position_that_is_lost_whatever_is_done_teaches_ever_less(others: int) -> None:
    lost = [finished(1, 0, (0, "a", [5 + number % 3])) for number in range(others + 1)]
    won = [finished(0, 0, (0, "b", [5])) for _ in lost]
    for [found] in baselines([*lost, *won], 0)[: len(lost)]:
        assert found == pytest.approx(-others / (others + 1))


def test_where_all_matches_end_alike_there_is_nothing_to_learn() -> None:
    matches = [finished(0, 0, (0, "a", [5]), (1, "x", [7])), finished(0, 0, (0, "b", [5]), (1, "x", [8]))]
    assert learnt(matches, 0).datums == learnt(matches, 1).datums == []


def test_a_game_that_does_not_repeat_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "longer.py"
    file.write_text("import random\n" + LONGER.replace('"a" * 24', "str(random.random())"))
    with pytest.raises(DataError, match=r"the match of seed \d+ goes another way when it is played again"):
        rehearse(find_game(f"{file}:Longer"))


def test_both_adapters_are_trained_and_kept(train: Tt, untied: str) -> None:
    found = train("--eval-every", 2, "--save-every", 2)
    run = run_of(found)
    steps, evals = (log_of(run)[name] for name in ("steps", "evals"))
    assert [entry["step"] for entry in evals] == [0, 2, 4]
    assert all(set(entry) == {"step", "win_rate", "illegal"} and entry["illegal"] == 0 for entry in evals)
    for entry in steps:
        assert math.isfinite(entry["loss"]) and math.isfinite(entry["opponent_loss"])
        assert entry["moves"] == 2 and entry["illegal"] == 0
        assert 0 <= entry["win_rate"] <= 1 and (entry["win_rate"] * 24) % 1 == pytest.approx(0, abs=1e-6)
        assert 0 < entry["trained_tokens"] <= 12 * 2 * 4 < entry["tokens"]
    own, other = (load_file(path) for path in final_weights(run))
    assert own.keys() == other.keys()
    assert all(any(values.any() for key, values in one.items() if "lora_B" in key) for one in (own, other))
    assert not all(torch.equal(own[key], other[key]) for key in own)
    for path in final_weights(run):
        base = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32)
        before = base(torch.tensor([[5, 6, 7]])).logits.detach().clone()
        after = PeftModel.from_pretrained(base, path.parent)(torch.tensor([[5, 6, 7]])).logits
        assert not torch.equal(before, after)
    assert "win rate" in found.err


@pytest.mark.parametrize("case", mostly_slow([(1, ()), (2, ("--policy-loss", "ppo")), (3, ("--save-every", 1))], 1))
def test_a_resumed_run_is_an_uninterrupted_one(train: Tt, tt: Tt, case: tuple[int, tuple[Any, ...]]) -> None:
    step, more = case
    options = ("--eval-every", 2, *more)
    whole = run_of(train(*options, "--run-name", "whole"))
    with interrupted_at(step):
        found = train(*options, "--run-name", "stopped")
    assert found.code == 130, found.err
    assert (Path("checkpoints/stopped/training_state/opponent") / WEIGHTS).is_file()
    stopped = run_of(tt("train", "--resume", "checkpoints/stopped"))
    assert without_times(stopped) == without_times(whole)
    assert log_of(stopped)["evals"] == log_of(whole)["evals"]
    for one, other in zip(final_weights(stopped), final_weights(whole), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_run_goes_on_only_with_its_game(train: Tt, tt: Tt, tmp_path: Path) -> None:
    with interrupted_at(1):
        assert train("--run-name", "stopped").code == 130
    file = tmp_path / "longer.py"
    file.write_text(LONGER.replace('"a"', '"o"'))
    found = tt("train", "--resume", "checkpoints/stopped")
    assert found.code == 1
    assert f"the game {file}:Longer has changed" in found.err
    file.write_text("# another comment\n" + LONGER)
    assert tt("train", "--resume", "checkpoints/stopped").code == 0


def test_a_step_without_a_difference_trains_nothing(train: Tt, tmp_path: Path) -> None:
    (tmp_path / "longer.py").write_text(LONGER.replace("len(answer)", "0"))
    run = run_of(train())
    for entry in log_of(run)["steps"]:
        assert (entry["draws"], entry["win_rate"], entry["loss"]) == (1.0, 0.5, 0.0)
        assert entry["trained_tokens"] == 0 < entry["tokens"]
        assert "grad_norm" not in entry
    for path in final_weights(run):
        assert not any(values.any() for key, values in load_file(path).items() if "lora_B" in key)


def test_what_is_wrong_is_told_before_anything_is_trained(train: Tt, tmp_path: Path) -> None:
    found = train("--game", "chess")
    assert (found.code, "--game chess: there is no such game" in found.err) == (2, True)
    found = train("--max-tokens", 120)
    assert found.code == 1
    assert "do not fit into the model's 128" in found.err
    assert "--max-tokens" in found.err.partition("do not fit")[2]
    (tmp_path / "longer.py").write_text(LONGER.replace("len(self.said) == 2", "len(self.said) == 'x'"))
    found = train()
    assert found.code == 1
    assert "player is 2, but must be 0 or 1" in found.err
    assert "Traceback" not in found.err
    assert not Path("checkpoints").exists()


def test_a_dry_run_shows_what_is_asked(tt: Tt) -> None:
    found = tt("train", "--method", "selfplay", "--max-steps", 5, "--dry-run", "--engine", "local")
    assert found.code == 0, found.err
    assert "game: nim" in found.err
    assert "Take 1, 2 or 3: who takes the last stone wins." in found.out
    assert "steps: 5 of 64 games" in found.err
    assert "time and memory: not known before a model has answered" in found.err


def win_rate(
    rules: Rules,
    base: str,
    run: RunDirectory,
    start: Path | None,
    store: Path,
    *,
    games: int = 200,
    temperature: float = 1.0,
) -> float:
    """Of a run's final weights against those it started from, both seats of every start position."""
    renderer = load_renderer(base)
    with local.ServiceClient(store=store) as service:
        samplers = (
            service.create_sampling_client(str(run.final_weights), base),
            service.create_sampling_client(str(start) if start else None, base),
        )
        one, other = (ModelPlayer(sampler, renderer, max_tokens=4, temperature=temperature) for sampler in samplers)
        matches = paired(rules, games, seed=4711)
        play(matches, (one, other), seed=4711)
    return score(matches).win_rate


@pytest.mark.slow
def test_what_has_played_itself_beats_its_start(train: Tt, untied: str, longer: str, tmp_path: Path) -> None:
    # A model of random weights: only where its likeliest answers come back is there something to hold on to.
    run = run_of(
        train("--max-steps", 24, "--batch", 64, "--temperature", 0.2, "--eval-every", 0, "--save-every", 0,
              "--learning-rate", "5e-3", "--seed", 3)
    )  # fmt: skip
    steps = log_of(run)["steps"]
    assert len(steps) == 24
    assert win_rate(find_game(longer), untied, run, None, tmp_path / "store", temperature=0.2) >= 0.7


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nim_is_learnt_by_playing(tt: Tt, starter: str, tmp_path: Path, seed: int) -> None:
    """From a start that knows the moves and not which are good."""
    matches = [Match(find_game("nim"), number) for number in range(300)]
    play(matches, (FixedPlayer(), FixedPlayer()), seed=0)
    moves = sorted({(move.prompt, move.text) for match in matches for move in match.moves})
    assert len(moves) == 33  # 12 heaps, three moves each but for the smallest ones
    rows = [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]}
        for prompt, text in moves
    ]
    write_rows(tmp_path / "moves.jsonl", rows)
    common = ["--base-model", starter, "--save-every", 0, "--eval-every", 0]
    start = run_of(
        tt("train", "--data", "moves.jsonl", "--batch", 33, "--epochs", 140, "--learning-rate", 1e-3, "--rank", 32,
           "--run-name", "start", *common)
    )  # fmt: skip
    run = run_of(
        tt("train", "--method", "selfplay", "--load-checkpoint-path", start.path, "--batch", 64, "--max-steps", 70,
           "--learning-rate", 3e-4, "--warmup-steps", 10, "--max-tokens", 4, "--seed", seed, "--run-name", "played",
           *common)
    )  # fmt: skip
    assert win_rate(find_game("nim"), starter, run, start.final_weights, tmp_path / "store", games=400) >= 0.7
