"""Scores of texts: repetition and variety of answers, and how near an answer is to a reference.

Words are what counting and ROUGE-L work on: runs of letters and digits, in lower case, an apostrophe or hyphen being
between words. Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan write no spaces between words; there each
character with its marks is a word. Korean has spaces.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# What chrF and ROUGE-L read of a text, in characters: longer ones would take seconds. Tables count whole texts.
MOST_CHARACTERS = 20_000

# Scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U000323af"
)


def repetition(text: str) -> float:
    """The share of a text's word 4-grams that stand in it already: 1 − different / all, 0 below four words.

    This is seq-rep-4 (Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training") on words. A mark
    of punctuation counts as a word, so that "!!!!!!" is repetition.
    """
    grams = _grams(_units(text), 4)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams / n-grams over all texts: distinct-n (Li et al. 2016, "A Diversity-Promoting Objective").

    None goes across two texts. A mark of punctuation counts as a word. Without any n-gram it is 0. It falls as texts
    grow longer, so it compares models on the same prompts only.
    """
    grams = [gram for text in texts for gram in _grams(_units(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def exact_match(answer: str, reference: str) -> bool:
    """Whether two texts are the same but for white space at both ends and for how accents are encoded (NFC)."""
    return _normal(answer) == _normal(reference)


def chrf(answer: str, reference: str) -> float:
    """chrF, 0 to 100: F2 of character 1- to 6-grams without white space (Popović 2015), as sacreBLEU computes it.

    Only the first 20,000 characters of each are read. Two texts without a character are the same: 100.
    """
    from sacrebleu.metrics.chrf import CHRF

    answer, reference = answer[:MOST_CHARACTERS], reference[:MOST_CHARACTERS]
    if not answer.strip() and not reference.strip():
        return 100.0
    return float(CHRF().sentence_score(answer, [reference]).score)


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L, 0 to 1: F1 of the longest common subsequence of words (Lin 2004, "ROUGE").

    With L its length, precision is L / words of the answer, recall L / words of the reference. On English it is the
    rouge-score library's, without a stemmer; that one drops all other letters. Emoji are words; punctuation is none,
    but where neither text has anything else. Only the first 20,000 characters of each are read.
    """
    from rapidfuzz.distance import LCSseq

    answer, reference = answer[:MOST_CHARACTERS], reference[:MOST_CHARACTERS]
    ours, theirs = _words(answer), _words(reference)
    if not ours and not theirs:
        ours, theirs = _units(answer), _units(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    # Numbers for words: the library would compare what it hashes them to.
    numbers = {word: number for number, word in enumerate(dict.fromkeys([*ours, *theirs]))}
    common = LCSseq.similarity([numbers[word] for word in ours], [numbers[word] for word in theirs])
    # 2PR / (P + R), with the length divided out.
    return 2 * common / (len(ours) + len(theirs))


def _units(text: str) -> list[str]:
    """Words, and other characters that are seen by themselves, each as one."""
    pattern, unseen = _pattern()
    return [unit for unit in pattern.findall(unicodedata.normalize("NFC", text).lower()) if unit not in unseen]


def _words(text: str) -> list[str]:
    """Words and emoji, without punctuation."""
    return [unit for unit in _units(text) if len(unit) > 1 or unit.isalnum() or unicodedata.category(unit) == "So"]


@lru_cache(maxsize=1)
def _pattern() -> tuple[re.Pattern[str], frozenset[str]]:
    """What is a word or one other character, and which characters are not seen by themselves.

    Python's own class of word characters lacks the marks that vowels are in Hindi, Arabic or Tamil: words would end
    at them. Those beyond the first plane, of rare scripts, are left out: they would make the class ten times slower.
    """
    kinds = {chr(c): unicodedata.category(chr(c)) for c in range(0x10000)}
    marks = "".join(character for character, kind in kinds.items() if kind in ("Mn", "Mc"))
    # Joiners, directions of writing, control characters.
    unseen = frozenset(marks).union(character for character, kind in kinds.items() if kind in ("Cf", "Cc"))
    letter = rf"(?![{_UNSPACED}])[^\W_]"
    return re.compile(rf"[{_UNSPACED}][{marks}]*|{letter}(?:{letter}|[{marks}])*|\S"), unseen


def _grams(units: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(units[start:] for start in range(n)), strict=False))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
