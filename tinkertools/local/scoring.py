"""What a model thinks of the tokens of a sequence: their logprobs, and what it would have expected in their place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from tinkertools.local.model import BaseModel
from tinkertools.local.packing import Packed
from tinkertools.local.selection import draws

# Elements of float32 logits that are held (64 MB).
_LOGIT_ELEMENTS = 1 << 24
# What the SDK writes where there is no likely token to tell of, before the first position that is scored.
NO_LOGPROB = -99999.0

# Ids and logprobs of the likeliest tokens, (positions, how many).
Tops = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Question:
    """A sequence and what to tell of it.

    Attributes:
        logprobs: the logprob of each token.
        top: the so many likeliest tokens at each position.
        last: logprobs and likeliest tokens for so many of the last positions only; None: for all but the first.
        targets: the logprobs of these ids, (T - 1, K) for the positions after the first; -1 asks for nothing.
        draws: so many draws at each position after the first, at `temperature`, by `generator`.
    """

    tokens: list[int]
    logprobs: bool = True
    top: int = 0
    last: int | None = None
    targets: torch.Tensor | None = None
    draws: int = 0
    temperature: float = 1.0
    generator: torch.Generator = field(default_factory=torch.Generator)

    @property
    def first(self) -> int:
        """The first position that logprobs and likeliest tokens are told of."""
        return 1 if self.last is None else len(self.tokens) - self.last

    @property
    def asked(self) -> bool:
        """Whether there is anything to tell."""
        return self.logprobs or self.top > 0 or self.targets is not None or self.draws > 0


@dataclass
class Scores:
    """Answers to a question; None for what was not asked for.

    Attributes:
        logprobs: one a token, None before the first that is told of.
        tops: ids and logprobs (T, top), with a logprob of -99999 before the first that is told of.
        targets: logprobs (T - 1, K), 0 where nothing was asked.
        draws: ids and logprobs (T - 1, draws).
    """

    logprobs: list[float | None] | None = None
    tops: Tops | None = None
    targets: torch.Tensor | None = None
    draws: tuple[torch.Tensor, torch.Tensor] | None = None


def score(base: BaseModel, questions: Sequence[Question]) -> list[Scores]:
    """The scores of each sequence. Runs where and with what adapter its caller does."""
    found = [Scores()] * len(questions)
    for group in _groups([len(question.tokens) for question in questions], base.budget.forward):
        base.worker.check()
        lengths = [len(questions[i].tokens) for i in group]
        tokens_N = torch.tensor([token for i in group for token in questions[i].tokens])
        positions_N = torch.cat([torch.arange(length) for length in lengths])
        hidden_N_D = base.hidden_states(tokens_N.to(base.device), positions_N.to(base.device), Packed(lengths))
        for i, hidden_T_D in zip(group, hidden_N_D.split(lengths), strict=True):
            found[i] = _scores(base, questions[i], hidden_T_D[:-1])
    return found


def _groups(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of like lengths, at most so many tokens together; the longest first, which shows the peak of memory."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and sum(lengths[j] for j in group) + lengths[i] > most:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _scores(base: BaseModel, question: Question, hidden_T_D: torch.Tensor) -> Scores:
    """`hidden_T_D` are those before each position after the first."""
    targets_T = torch.tensor(question.tokens[1:], dtype=torch.long, device=base.device)
    own: list[torch.Tensor] = []
    tops: list[tuple[torch.Tensor, torch.Tensor]] = []
    named: list[torch.Tensor] = []
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    points = torch.rand(len(targets_T), question.draws, generator=question.generator, dtype=torch.float64)
    size = max(1, _LOGIT_ELEMENTS // base.vocabulary)
    # Positions before the first that anything is told of need no logits.
    begin = 0 if question.targets is not None or question.draws else question.first - 1
    for start in range(begin, len(targets_T), size):
        rows = slice(start, start + size)
        logits_N_V = base.logits(hidden_T_D[rows])
        total_N_1 = logits_N_V.logsumexp(-1, keepdim=True)
        own.append(logits_N_V.gather(-1, targets_T[rows, None]) - total_N_1)
        if question.top:
            values, ids = logits_N_V.topk(min(question.top, logits_N_V.shape[1]))
            tops.append((ids.cpu(), (values - total_N_1).cpu()))
        if question.targets is not None:
            wanted = question.targets[rows].to(base.device)
            values = logits_N_V.gather(-1, wanted.clamp(min=0)) - total_N_1
            named.append(values.masked_fill(wanted < 0, 0.0))
        if question.draws:
            ids = draws(logits_N_V, question.temperature, points[rows].to(base.device))
            drawn.append((ids.cpu(), (logits_N_V.gather(-1, ids) - total_N_1).cpu()))
    scores = Scores()
    skipped = question.first - 1 - begin  # computed for something else
    if question.logprobs:
        known = torch.cat(own)[skipped:, 0].tolist() if own else []
        scores.logprobs = [None] * (len(question.tokens) - len(known)) + known
    if question.top:
        shape = len(question.tokens), min(question.top, base.vocabulary)
        scores.tops = np.zeros(shape, np.int32), np.full(shape, NO_LOGPROB, np.float32)
        if tops:
            for whole, part in zip(scores.tops, _joined(tops), strict=True):
                whole[question.first :] = part[skipped:].numpy()
    if question.targets is not None:
        scores.targets = torch.cat(named).cpu() if named else torch.zeros(question.targets.shape)
    if question.draws:
        scores.draws = _joined(drawn) if drawn else (points.long(), points.float())
    return scores


def _joined(chunks: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([ids for ids, _ in chunks]), torch.cat([values for _, values in chunks])
