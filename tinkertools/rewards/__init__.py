"""What an answer of a model is worth, for reinforcement learning: `--reward SPEC`.

| SPEC | value |
|---|---|
| `math` | 1 where the answer ends in the reference's number, else -0.1 (`solutions`) |
| `regex:PATTERN` | 1 where the pattern is found in the answer, else 0 |
| `code` | 0.3 for a program that parses, 0.5 x the share of tests passed, 0.2 for style; -0.5 if it does not parse |
| `judge:NAME` | what a model says from 0 to 100, as a share (`judged`) |
| `score:RUN` | what a reward model says, which the caller hands in |
| `MODULE:FUNCTION`, `FILE.py:FUNCTION` | what the user's function returns, sync or async, of one `Sample` (`workers`) |

Programs of models run in the `sandbox`; patterns and functions of the user in processes that can be ended.
"""

from tinkertools.errors import UsageError
from tinkertools.reporting import Notify
from tinkertools.rewards.samples import Reward, Rewarded, Sample, Scorer
from tinkertools.rewards.specs import RewardSpec, parse_reward

__all__ = ["Reward", "RewardSpec", "Rewarded", "Sample", "Scorer", "open_reward", "parse_reward"]


def open_reward(spec: RewardSpec, scorer: Scorer | None, notify: Notify, *, timeout: float) -> Reward:
    """The reward of a spec, ready to be called; for a `with` block.

    Args:
        spec: which.
        scorer: what says the values of `score:RUN`; others need none.
        notify: is told what is waited for.
        timeout: seconds that a sample may take: a pattern, a function, a judge's reply, all tests of a program.

    Raises:
        UsageError: a function of the user cannot be loaded, programs cannot be run safely here, or there is no scorer.
        TinkertoolsError: a judge cannot be opened.
    """
    from tinkertools.rewards.judged import JudgeReward
    from tinkertools.rewards.programs import CodeReward
    from tinkertools.rewards.solutions import MathReward, ScoreReward
    from tinkertools.rewards.worker import Regex
    from tinkertools.rewards.workers import Workers

    if spec.kind == "math":
        return MathReward()
    if spec.kind == "code":
        return CodeReward(timeout)
    if spec.kind == "regex":
        return Workers(spec.text, Regex(spec.argument), timeout)
    if spec.kind == "function":
        assert spec.function is not None
        return Workers(spec.text, spec.function, timeout)
    if spec.kind == "judge":
        assert spec.judge is not None
        return JudgeReward(spec.text, spec.judge, notify, timeout)
    if scorer is None:
        raise UsageError(f"--reward {spec.text}: no reward model was opened", hint="name a run of a reward model")
    return ScoreReward(spec.text, scorer)
