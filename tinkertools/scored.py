"""What a reward model says of a file: the score of each answer, and, of preferences, how many it ranks right."""

from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.examples import Example, RenderError
from tinkertools.chat.preferences import Preference
from tinkertools.config import PrepareDefaults
from tinkertools.errors import DataError
from tinkertools.evidence.statistics import Wins, wins
from tinkertools.reporting import ProgressMaker
from tinkertools.scoring import QUESTION, scored_prompts, scores_of, sides_of

if TYPE_CHECKING:
    from tinkertools.chat.rendering import Renderer
    from tinkertools.chat.sources import Source
    from tinkertools.engines import SamplingClient
    from tinkertools.runs.directory import Weights

RESULTS_VERSION = 1


@dataclass(frozen=True)
class ScoredFile:
    """Rows and their scores.

    Attributes:
        rows: conversations, or preferences.
        scores: of each conversation its score; of each preference those of the chosen and the rejected answer. None
            where a side is too long for the model.
        preferences: whether they are preferences.
    """

    rows: list[Conversation] | list[Preference]
    scores: list[tuple[float, ...] | None]
    preferences: bool

    @property
    def left_out(self) -> int:
        """Rows without a score."""
        return self.scores.count(None)

    @property
    def known(self) -> list[tuple[float, ...]]:
        """The scores of the rows that have them."""
        return [found for found in self.scores if found is not None]

    @property
    def accuracy(self) -> Wins | None:
        """How often the chosen answer has the higher score; a tie is half."""
        if not self.preferences:
            return None
        differences = [chosen - rejected for chosen, rejected in self.known]
        won, lost = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
        return wins(won, len(differences) - won - lost, lost)

    @property
    def margin(self) -> float | None:
        """By how much the chosen answer's score is the higher one, in the mean."""
        return fmean(chosen - rejected for chosen, rejected in self.known) if self.preferences else None

    def to_json(self) -> dict[str, Any]:
        """The rows with their scores, and what they come to."""
        if not self.preferences:
            conversations = zip(cast("list[Conversation]", self.rows), self.scores, strict=True)
            return {
                "scores": [
                    {"messages": row["messages"], "score": found[0] if found else None} for row, found in conversations
                ]
            }
        rows = []
        for row, found in zip(cast("list[Preference]", self.rows), self.scores, strict=True):
            chosen, rejected = found or (None, None)
            rows.append(
                {"prompt": row["prompt"]}
                | {"chosen": row["chosen"], "chosen_score": chosen}
                | {"rejected": row["rejected"], "rejected_score": rejected}
            )
        assert self.accuracy is not None
        return {"scores": rows, "accuracy": asdict(self.accuracy), "margin": self.margin}

    def table(self) -> list[tuple[str, str]]:
        """What they come to, in words."""
        if not self.preferences:
            values = [value for (value,) in self.known]
            return [
                ("conversations", f"{len(values):,}"),
                ("score", f"{fmean(values):.3f}, {min(values):.3f} to {max(values):.3f}"),
            ]
        found = self.accuracy
        assert found is not None
        assert found.rate is not None
        ties = f", {found.tied:,} ties" if found.tied else ""
        chosen, rejected = zip(*self.known, strict=True)
        return [
            ("preferences", f"{len(self.known):,}"),
            ("accuracy", f"{found.rate:.1%} ({found.low:.1%} to {found.high:.1%}{ties})"),
            ("margin", f"{self.margin:.3f}"),
            ("score, chosen", f"{fmean(chosen):.3f}"),
            ("score, rejected", f"{fmean(rejected):.3f}"),
        ]


def read_rows(source: "Source") -> tuple[list[Conversation] | list[Preference], bool]:
    """Conversations that end with an answer, or preferences; and which of the two they are.

    Raises:
        DataError: a row cannot be used.
    """
    from tinkertools.chat.records import Reader, Refused, explain_refusals

    reader = Reader(source)
    rows: list[Any] = []
    refused: list[Refused] = []
    for item in reader.read():
        if isinstance(item, Refused):
            refused.append(item)
        else:
            rows.append(item)
    if refused:
        raise explain_refusals(refused[: PrepareDefaults.errors_shown], len(refused), "mend these rows, or remove them")
    assert reader.format is not None
    if not reader.format.preferences:
        for number, row in enumerate(rows, 1):
            if row["messages"][-1]["role"] != "assistant":
                raise DataError(
                    f"{source.name}: conversation {number} does not end with an assistant message, so there is no "
                    "answer to score",
                    hint="end it with the answer, or remove it",
                )
    return rows, reader.format.preferences


def score_rows(
    rows: list[Conversation] | list[Preference], *, preferences: bool,
    sampler: "SamplingClient", renderer: "Renderer", max_length: int | None, progress: ProgressMaker,
) -> ScoredFile:  # fmt: skip
    """The score of each row.

    Args:
        rows: conversations or preferences.
        preferences: which.
        sampler: of the reward model.
        renderer: of its base.
        max_length: the most tokens it takes.
        progress: makes the display of the work.

    Raises:
        DataError: a row cannot be rendered, or all are too long.
        EngineError: one could not be scored.
    """
    each = 2 if preferences else 1
    asked: list[Conversation] = (
        [side for row in cast("list[Preference]", rows) for side in sides_of(row)]
        if preferences
        else cast("list[Conversation]", rows)
    )
    examples: list[Example] = []
    for number, found in enumerate(scored_prompts(renderer, asked)):
        if isinstance(found, RenderError):
            raise DataError(f"row {number // each + 1} cannot be scored: {found}", hint="mend it, or remove it")
        examples.append(found)
    of_row = [examples[i : i + each] for i in range(0, len(examples), each)]
    fits = [max_length is None or all(len(one.tokens) <= max_length for one in row) for row in of_row]
    wanted = [one for row, fit in zip(of_row, fits, strict=True) if fit for one in row]
    if not wanted:
        raise DataError(
            f"all {len(rows):,} rows are longer than the {max_length:,} tokens that the model takes",
            hint="score shorter conversations",
        )
    values: list[float] = []
    with progress("score", len(wanted), "answers") as report:
        for value in scores_of(sampler, wanted):
            values.append(value)
            report(len(values))
    coming = iter(values)
    scores = [tuple(next(coming) for _ in range(each)) if fit else None for fit in fits]
    return ScoredFile(rows, scores, preferences)


def results(found: ScoredFile, weights: "Weights", base_model: str, file: str) -> dict[str, Any]:
    """All that is known, as JSON values."""
    return {
        "version": RESULTS_VERSION,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "base_model": base_model,
        "lora_weights": weights.name,
        "settings": {"score": file, "question": QUESTION},
        **found.to_json(),
    }


def method_note(weights: "Weights") -> str | None:
    """What to know of weights that are no reward model's; None where they are, or nobody can say."""
    from tinkertools.runs.directory import run_of

    run = run_of(weights)
    method = run.read_config()["config"].get("method", "sft") if run else None
    if method in (None, "reward"):
        return None
    return f"{weights.name} was trained with --method {method}, not reward: its scores are what any model would say"
