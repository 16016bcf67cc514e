"""Questions that ask for what another asks for already, found in bounded time."""

from collections import defaultdict, deque

from tinkertools.generating.questions import Pair, numbers_of, words_of

# How alike two questions are, and their answers, of 100 (`rapidfuzz.fuzz.ratio`), where one of the pairs is too many.
# Questions may differ by a name alone and ask for different things: their answers then differ as well.
NEAR_QUESTIONS = 90
NEAR_ANSWERS = 70

# A question is held against so many earlier ones that share one of so many of its longest words.
_COMPARED = 200
_LONGEST_WORDS = 2


class Repeats:
    """Remembers questions.

    A question repeats an earlier one where both have the same words and numbers, or nearly the same and nearly the same
    answer. Only the latest earlier ones with which it shares one of its longest words are looked at.
    """

    def __init__(self) -> None:
        self._same: set[str] = set()
        self._by_word: dict[str, deque[tuple[str, str, frozenset[str]]]] = defaultdict(lambda: deque(maxlen=_COMPARED))

    def add(self, pair: Pair) -> bool:
        """Remember a pair, and say whether it is new; one that repeats another is not remembered."""
        numbers = numbers_of(pair.question)
        words = words_of(pair.question)
        question, answer = " ".join(words), " ".join(words_of(pair.answer))
        exact = " ".join([question, *sorted(numbers)]) or pair.question
        keys = sorted(set(words), key=lambda word: (-len(word), word))[:_LONGEST_WORDS]
        if exact in self._same or self._is_near(question, answer, numbers, keys):
            return False
        self._same.add(exact)
        for key in keys:
            self._by_word[key].append((question, answer, numbers))
        return True

    def _is_near(self, question: str, answer: str, numbers: frozenset[str], keys: list[str]) -> bool:
        from rapidfuzz.fuzz import ratio

        return any(
            numbers == others
            and ratio(question, earlier, score_cutoff=NEAR_QUESTIONS) > 0
            and ratio(answer, earlier_answer, score_cutoff=NEAR_ANSWERS) > 0
            for key in keys
            for earlier, earlier_answer, others in self._by_word[key]
        )
