"""What `--reward` is taken for, and what is refused at once, with nothing started."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tinkertools.errors import UsageError
from tinkertools.rewards import Rewarded, RewardSpec, Sample, open_reward, parse_reward
from tinkertools.rewards.sandbox import policy


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789")
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    Path("mine.py").write_text("raise SystemExit('imported')\ndef good(sample): return 1\nother = good\n")
    Path("package/sub").mkdir(parents=True)
    Path("package/__init__.py").write_text("raise SystemExit('imported')")
    Path("package/sub/deep.py").write_text(
        "async def good(sample): return 1\nclass A:\n    def of(self, s): return 1\n"
    )
    Path("bad.py").write_text("def good(sample):\n    return (\n")
    Path("star.py").write_text("from mine import *\n")


@pytest.mark.parametrize(
    ("text", "kind", "argument"),
    [
        ("math", "math", ""),
        (" math ", "math", ""),
        ("regex:a:b|c", "regex", "a:b|c"),
        ("judge:openai:gpt-x", "judge", "openai:gpt-x"),
        ("score:checkpoints/run", "score", "checkpoints/run"),
        ("mine:good", "function", ""),
        ("mine.py:other", "function", ""),
        ("package.sub.deep:good", "function", ""),
        ("package/sub/deep.py:A.of", "function", ""),
        ("star:anything", "function", ""),
        ("math:sqrt", "function", ""),
        ("os.path:basename", "function", ""),
    ],
)
def test_what_a_spec_is_taken_for(text: str, kind: str, argument: str) -> None:
    before = psutil.Process().children()  # of other tests: servers, for one
    spec = parse_reward(text)
    assert (spec.text, spec.kind, spec.argument) == (text.strip(), kind, argument)
    assert spec.needs_reference == (kind == "math")
    assert [child for child in psutil.Process().children() if child not in before] == []


@pytest.mark.skipif(bool(policy.missing()), reason=f"this system lacks {policy.missing()}")
def test_code_is_a_reward() -> None:
    assert parse_reward("code") == RewardSpec("code", "code")


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("", "(empty): there is no such reward", "--reward takes math, regex:PATTERN"),
        ("maths", "maths: there is no such reward", "did you mean math?"),
        ("coed", "coed: there is no such reward", "did you mean code?"),
        ("jugde", "no such reward", "did you mean judge:NAME?"),
        ("jugde:gpt-4o", "gpt-4o is not the name of a function", "did you mean judge:NAME?"),
        ("regexp:abc", "there is no module regexp", "did you mean regex:PATTERN?"),
        ("regex", "lacks what it is about", "--reward regex:PATTERN"),
        ("score:", "lacks what it is about", "--reward score:RUN"),
        ("regex:(a", "is no regular expression at column 1: missing ), unterminated subpattern", "Python's syntax"),
        ("judge:nobody", "it is not clear who that is", "openai:MODEL"),
        ("judge:anthropic:claude-x", "needs a key, and ANTHROPIC_API_KEY is not set", "export ANTHROPIC_API_KEY"),
        ("nowhere:good", "there is no module nowhere", "--reward takes"),
        ("package.nowhere:good", "there is no module package.nowhere", "--reward takes"),
        ("mine.good:good", "there is no module mine.good", "--reward takes"),
        ("mine:goood", "mine.py has no goood", "did you mean mine:good?"),
        ("mine.py:x", "mine.py has no x", "did you mean mine.py:good?"),
        ("nowhere.py:good", "there is no file nowhere.py with Python code", "check the path"),
        ("package/sub:good", "there is no file package/sub with Python code", "check the path"),
        ("bad.py:good", "bad.py:2 is not valid Python: '(' was never closed", "mend it"),
        ("mine.py:", "nothing is not the name of a function", "--reward takes"),
        ("mine.py:a b", "a b is not the name of a function", "--reward takes"),
    ],
)
def test_what_is_refused(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_reward(text)
    assert said in error.value.message and hint in (error.value.hint or "")


def test_a_reward_model_is_handed_in() -> None:
    samples = [Sample([{"role": "user", "content": "?"}], answer, None, {}, True) for answer in ("a", "bb", "ccc")]
    spec = parse_reward("score:checkpoints/run")
    with open_reward(spec, lambda found: [float(len(s.answer)) for s in found], print, timeout=1) as reward:
        assert reward.name == "score:checkpoints/run"
        assert reward(samples) == [Rewarded(1.0), Rewarded(2.0), Rewarded(3.0)]
        assert reward([]) == []
    with open_reward(spec, lambda found: [float("nan"), float("inf"), 0.5], print, timeout=1) as reward:
        assert reward(samples) == [Rewarded(None, "returned nan"), Rewarded(None, "returned inf"), Rewarded(0.5)]
    with (
        open_reward(spec, lambda found: [1.0], print, timeout=1) as reward,
        pytest.raises(ValueError, match="1 scores of 3"),
    ):
        reward(samples)
    with pytest.raises(UsageError, match="no reward model was opened"):
        open_reward(spec, None, print, timeout=1)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, tinkertools.rewards.worker, tinkertools.rewards.workers, tinkertools.rewards.programs\n"
        "heavy = ('torch', 'transformers', 'datasets', 'tinker', 'numpy', 'openai', 'anthropic', 'pydantic')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
