"""Rewards that hold an answer against its row: the number of a problem of mathematics, a model's judgement of a run."""

import math
from collections.abc import Sequence

from tinkertools.evidence.numbers import final_number
from tinkertools.rewards.samples import Closing, Rewarded, Sample, Scorer

# The recipe for GSM8K: what a right and a wrong number are worth.
RIGHT, WRONG = 1.0, -0.1


class MathReward(Closing):
    """1 where an answer ends in the number that the reference ends in, else -0.1.

    Numbers are read by `evidence.numbers.final_number` and compared exactly, by value: 0.5 is 1/2, and 0.333 is not
    1/3. The number of an answer that was cut counts only behind `####` or in a box: the last one may be any.
    """

    name = "math"

    def __call__(self, samples: Sequence[Sample]) -> list[Rewarded]:
        """See `Reward`."""
        return [self._rewarded(sample) for sample in samples]

    def _rewarded(self, sample: Sample) -> Rewarded:
        if sample.reference is None:
            return Rewarded(None, "the row has no answer to compare with")
        expected = final_number(sample.reference)
        if expected is None:
            return Rewarded(None, "the row's answer has no number after ####, in \\boxed{} or at its end")
        found = final_number(sample.answer, anywhere=sample.finished)
        return Rewarded(RIGHT if found == expected else WRONG)


class ScoreReward(Closing):
    """What a reward model says.

    Attributes:
        name: as `--reward` takes it.
    """

    def __init__(self, name: str, scorer: Scorer) -> None:
        """Hand the model in.

        Args:
            name: as `--reward` takes it.
            scorer: what it says of samples.
        """
        self.name = name
        self._scorer = scorer

    def __call__(self, samples: Sequence[Sample]) -> list[Rewarded]:
        """See `Reward`."""
        scores = self._scorer(samples) if samples else []
        if len(scores) != len(samples):
            raise ValueError(f"{len(scores)} scores of {len(samples)} samples")
        return [Rewarded(float(s)) if math.isfinite(s) else Rewarded(None, f"returned {s}") for s in scores]
