"""Self-play: two adapters on one base model learn a game by playing it against each other.

A step plays `batch` matches between the run's adapter and its opponent, each start position once with either of them in
seat 0. The return of a match, 1, 0 or −1, is that of each of a player's moves in it. What it is better or worse than
the baseline, see `baselines`, is the advantage of all tokens of the move (REINFORCE with a baseline: Williams 1992,
https://doi.org/10.1007/BF00992696). Advantages are divided by the player's number of moves in the step, so that the
loss, a sum over tokens, is a mean over moves however the step is cut into requests.
"""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from tinkertools.config import PolicyLoss, TrainConfig
from tinkertools.engines import SNAPSHOT_SECONDS, snapshot
from tinkertools.errors import DataError, RunError
from tinkertools.games import FixedPlayer, Match, ModelPlayer, Move, Rules, find_game, paired, play, score
from tinkertools.methods.base import Bench, find_renderer
from tinkertools.methods.policy import policy_datum, policy_loss, policy_loss_config
from tinkertools.prompts import Prompt
from tinkertools.reporting import Voice
from tinkertools.seeds import derived

if TYPE_CHECKING:
    from tinker import types

    from tinkertools.chat.conversations import Conversation
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient, TrainingClient
    from tinkertools.local.limits import Limits

# The adapter that the run's own plays against, by which its state and final weights are named.
OPPONENT = "opponent"

# Matches of the fixed opponent with itself, by which a game is known again and its faults are found before training.
_REHEARSED = 20


@dataclass
class Games:
    """A game to be learnt by playing; `rehearsed` are matches of the fixed opponent with itself."""

    config: TrainConfig
    voice: Voice
    rules: Rules
    rehearsed: list[Match]
    renderer: "Renderer"
    batches: None = None
    rehearse: ClassVar[None] = None  # games must be played first

    @property
    def data(self) -> dict[str, Any]:
        """See `Material`. A game is known by what it says and does in the rehearsed matches."""
        return {"fingerprint": _fingerprint(self.rehearsed), "game": self.rules.name}

    def make_ready(self, limits: "Limits", *, strict: bool = True) -> None:
        """See `Material`."""
        longest = max(len(self.renderer.generation_prompt(prompt.conversation).tokens) for prompt in self._prompts())
        self.voice.say(f"game: {self.rules.name}: prompts of up to {longest:,} tokens")
        if limits.max_length is None or longest + self.config.max_tokens <= limits.max_length:
            return
        words = (
            f"--game {self.rules.name}: a prompt of {longest:,} tokens and an answer of up to "
            f"{self.config.max_tokens:,} do not fit into the model's {limits.max_length:,}"
        )
        if strict:
            room = limits.max_length - longest
            raise DataError(words, hint=f"--max-tokens {room}" if room > 0 else "make the game's prompt() shorter")
        self.voice.warn(words)

    @property
    def examples(self) -> "Sequence[Example]":
        """See `Material`: what the fixed opponent answers."""
        found = self.renderer.render(itertools.islice(self._played(), _REHEARSED))
        return [example for one in found if not isinstance(one, Exception) for example in one]

    @property
    def asked(self) -> list[Prompt]:
        """See `Material`."""
        return self._prompts()

    def tokens(self, _: int) -> None:
        """See `Material`: the players decide how long a game is."""

    def begin(self, bench: Bench) -> "SelfPlay":
        """See `Material`."""
        return SelfPlay(bench, self.rules, self.renderer, opponent_of(bench))

    def _prompts(self) -> list[Prompt]:
        return [
            Prompt({"messages": [{"role": "user", "content": move.prompt}]})
            for match in self.rehearsed
            for move in match.moves
        ]

    def _played(self) -> "Iterator[Conversation]":
        for match in self.rehearsed:
            for move in match.moves:
                answer = {"role": "assistant", "content": move.text}
                yield {"messages": [{"role": "user", "content": move.prompt}, answer]}


def read(config: TrainConfig, voice: Voice) -> Games:
    """The game, rehearsed.

    Raises:
        UsageError: there is no such game.
        DataError: it is broken.
    """
    rules = find_game(config.game)
    return Games(config, voice, rules, rehearse(rules), find_renderer(config, voice, config.train_on_what))


def rehearse(rules: Rules) -> list[Match]:
    """Matches of the fixed opponent with itself.

    Raises:
        DataError: the game is broken, or a match does not repeat.
    """
    played = []
    for _ in range(2):
        matches = [Match(rules, derived("rehearsal", number)) for number in range(_REHEARSED)]
        play(matches, (FixedPlayer(), FixedPlayer()), 0)
        played.append(matches)
    for one, other in zip(*played, strict=True):
        if _story(one) != _story(other):
            raise DataError(
                f"--game {rules.name}: the match of seed {one.seed} goes another way when it is played again",
                hint="draw chance from random.Random(seed) alone, and keep nothing from match to match",
            )
    return played[0]


def _story(match: Match) -> list[Any]:
    return [match.winner, *([move.prompt, move.text] for move in match.moves)]


def _fingerprint(matches: Sequence[Match]) -> str:
    return hashlib.sha256(orjson.dumps([_story(match) for match in matches])).hexdigest()


def opponent_of(bench: Bench) -> "TrainingClient":
    """The adapter to play against: that of the saved state; else one that starts where the run's own does.

    Raises:
        RunError: the saved state has none.
    """
    config, service, saved = bench.config, bench.service, bench.saved
    if saved is not None:
        local = str(saved.directory / OPPONENT) if (saved.directory / OPPONENT).is_dir() else None
        source = saved.paths.get(f"{OPPONENT}_state") if config.engine == "tinker" else local
        if source is None:
            raise RunError(f"{saved.directory} holds no state of the {OPPONENT}", hint="start a new run")
        return service.create_training_client_from_state_with_optimizer(source)
    if config.load_checkpoint_path is None:
        seed = derived(config.seed, OPPONENT)
        return service.create_lora_training_client(
            config.base_model, config.rank, seed, config.train_mlp, config.train_attn, config.train_unembed
        )
    # The run's own client holds the weights that it starts from.
    start = bench.client.save_state(f"start_{OPPONENT}", ttl_seconds=SNAPSHOT_SECONDS).result().path
    return service.create_training_client_from_state(start, config.base_model)


@dataclass(frozen=True)
class Learnt:
    """What a player learns from in a step.

    Attributes:
        datums: of its moves, those whose advantages do not add up to 0.
        trained_tokens: of the answers that have an advantage.
    """

    datums: "list[types.Datum]"
    trained_tokens: int


def baselines(matches: Sequence[Match], player: int) -> list[list[float]]:
    """What each of a player's moves could be expected to bring, from the other finished matches of the step.

    A prompt tells the whole position, and how good a position is says nothing of the move that is made in it. So a move
    is held against the player's moves that answered the same prompt in other matches; its own match is left out (Kool,
    van Hoof and Welling 2019, https://openreview.net/forum?id=r1lgTGL5DE). The mean return of the player in that seat
    counts as one such move: all there is where nobody else came by, and hardly anything where many did.

    Returns:
        for each match, one baseline for each of the player's moves in it, in their order.
    """
    returns = {seat: [match.return_of(player) for match in matches if match.seat_of[player] == seat] for seat in (0, 1)}
    asked = [Counter(move.prompt for move in match.moves if move.player == player) for match in matches]
    totals: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for match, prompts in zip(matches, asked, strict=True):
        counts.update(prompts)
        for prompt, count in prompts.items():
            totals[prompt] += count * match.return_of(player)
    found = []
    for match, prompts in zip(matches, asked, strict=True):
        own, of_seat = match.return_of(player), returns[match.seat_of[player]]
        seat_mean = sum(of_seat) / len(of_seat)
        expected = {
            prompt: (totals[prompt] - count * own + seat_mean) / (counts[prompt] - count + 1)
            for prompt, count in prompts.items()
        }
        found.append([expected[move.prompt] for move in match.moves if move.player == player])
    return found


def learnt(matches: Sequence[Match], player: int) -> Learnt:
    """The moves of a player in finished matches, with their advantages: return less baseline, a mean over its moves.

    Equal answers to equal prompts are one datum, and their advantages add up to its own: where the model that is
    trained is the one that played, the losses are linear in them.
    """
    made = [
        (move, match.return_of(player) - baseline)
        for match, expected in zip(matches, baselines(matches, player), strict=True)
        for move, baseline in zip([move for move in match.moves if move.player == player], expected, strict=True)
    ]
    moves: dict[tuple[str, tuple[int, ...]], Move] = {}
    advantages: dict[tuple[str, tuple[int, ...]], float] = {}
    for move, advantage in made:
        key = (move.prompt, move.tokens)
        moves.setdefault(key, move)
        advantages[key] = advantages.get(key, 0.0) + advantage / len(made)
    datums = [
        policy_datum(move.asked, move.tokens, move.logprobs, [advantages[key]] * len(move.tokens))
        for key, move in moves.items()
        if advantages[key]
    ]
    return Learnt(datums, sum(len(move.tokens) for move, advantage in made if advantage))


@dataclass(frozen=True)
class SelfPlayPasses:
    """The passes of a step: its matches, what either player learns from them, and the futures of both; none where one
    of the two has nothing to learn, as when all matches went the same way."""

    loss: PolicyLoss
    matches: list[Match]
    learnt: tuple[Learnt, Learnt]
    futures: list[Any]

    @property
    def trains(self) -> bool:
        """See `Passes`."""
        return bool(self.futures)

    def result(self) -> dict[str, Any]:
        """`loss` and `opponent_loss`; `win_rate`, `draws`, `illegal` and `moves` as in `games.Score`.

        `tokens` are those of all prompts and answers of both players, `trained_tokens` those of the answers that
        either learns from.
        """
        losses = [
            policy_loss(self.loss, one.datums, future.result())
            for one, future in zip(self.learnt, self.futures, strict=bool(self.futures))
        ]
        moves = [move for match in self.matches for move in match.moves]
        found = score(self.matches)
        return {
            "loss": losses[0] if losses else 0.0,
            "opponent_loss": losses[1] if losses else 0.0,
            "win_rate": found.win_rate,
            "draws": found.draws,
            "illegal": found.illegal,
            "moves": found.moves,
            "trained_tokens": sum(one.trained_tokens for one in self.learnt) if losses else 0,
            "tokens": sum(len(move.asked.tokens) + len(move.tokens) for move in moves),
        }


@dataclass(frozen=True)
class AgainstFixed:
    """Matches against the game's fixed opponent: the same start positions and chance at each evaluation."""

    bench: Bench
    rules: Rules
    renderer: "Renderer"
    asked: "itertools.count[int]" = field(default_factory=itertools.count)

    def submit(self, client: "TrainingClient") -> "SamplingClient":
        """See `Evaluation`: the weights of now; what is played with them is not begun yet."""
        return snapshot(client, self.bench.service, self.bench.config.base_model, f"evaluation_{next(self.asked):04d}")

    def result(self, pending: "SamplingClient") -> dict[str, Any]:
        """`win_rate`, with draws as half a win, and `illegal`, the share of matches lost by an illegal move."""
        config = self.bench.config
        seed = derived(config.seed, "evaluation")
        matches = paired(self.rules, config.eval_games, seed)
        play(matches, (player_of(config, pending, self.renderer), FixedPlayer()), seed)
        found = score(matches)
        return {"win_rate": found.win_rate, "illegal": found.illegal}


def player_of(config: TrainConfig, sampler: "SamplingClient", renderer: "Renderer") -> ModelPlayer:
    """A model that plays as the run has it play."""
    return ModelPlayer(sampler, renderer, config.max_tokens, config.temperature)


class SelfPlay:
    """The run's adapter, player 0, against its opponent, player 1."""

    # The next step is played with what this one teaches.
    steps_in_flight = 1
    shown = ("loss", "win_rate")

    def __init__(self, bench: Bench, rules: Rules, renderer: "Renderer", opponent: "TrainingClient") -> None:
        self._bench = bench
        self._rules = rules
        self._renderer = renderer
        self._clients = (bench.client, opponent)
        self.companions: Mapping[str, TrainingClient] = {OPPONENT: opponent}
        self.evaluation = AgainstFixed(bench, rules, renderer)

    def epoch_of(self, step: int) -> int:
        """See `Method`. There is no end of data, and so one epoch."""
        return 1

    def submit(self, step: int) -> SelfPlayPasses:
        """See `Method`. The matches are played before it returns."""
        config = self._bench.config
        seed = derived(config.seed, "step", step)
        matches = paired(self._rules, config.batch, seed)
        one, other = (
            player_of(
                config,
                snapshot(client, self._bench.service, config.base_model, f"player_{number}_{step:04d}"),
                self._renderer,
            )
            for number, client in enumerate(self._clients)
        )
        play(matches, (one, other), seed)
        found = (learnt(matches, 0), learnt(matches, 1))
        loss, thresholds = config.policy_loss, policy_loss_config(config.policy_loss)
        futures = []
        if all(each.datums for each in found):
            futures = [
                client.forward_backward(each.datums, loss, thresholds)
                for client, each in zip(self._clients, found, strict=True)
            ]
        return SelfPlayPasses(loss, matches, found, futures)
