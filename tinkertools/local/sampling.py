"""The sampling client of the embedded engine."""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from tinker import types

from tinkertools.local import responses
from tinkertools.local.failures import BadRequest
from tinkertools.local.generation import Generation, Row
from tinkertools.local.limits import tokens_of
from tinkertools.local.model import BaseModel
from tinkertools.local.scoring import Question, Scores, score
from tinkertools.local.selection import Choice
from tinkertools.local.stops import TextStops
from tinkertools.local.twins import Ready, awaits, submits
from tinkertools.local.worker import LocalFuture, Request, Requests

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Prompt:
    """A prompt, how to answer it, and what to tell of it besides."""

    question: Question
    num_samples: int
    params: types.SamplingParams
    top_logprobs: int
    targets: types.TensorData | None


@dataclass
class _Answer:
    """A request and the rows that answer it."""

    request: Request
    rows: list[Row]
    scores: Scores = field(default_factory=Scores)


class SamplingClient(Ready):
    """As `tinker.SamplingClient`: answers from a base model with an adapter, or from the base alone.

    Requests are answered side by side, also those that come while others are being answered.
    """

    def __init__(self, base: BaseModel, adapter: str | None) -> None:
        self._base = base
        self._adapter = adapter

    def sample(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: types.TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> LocalFuture[types.SampleResponse]:
        """`num_samples` answers to a prompt. Temperature 0 takes the likeliest token.

        The end-of-turn token is part of the answer. `logprobs` are the model's own, whatever the temperature. With a
        seed, sample k uses seed + k, and the draws do not depend on what else is sampled at the time.
        """
        question = Question(
            tokens_of(prompt, "the prompt"),
            logprobs=include_prompt_logprobs,
            top=topk_prompt_logprobs,
            last=_last_n(prompt_logprobs_last_n, include_prompt_logprobs),
            targets=None if target_prompt_logprobs is None else _targets(target_prompt_logprobs),
            draws=_not_negative("prompt_alt_tokens_k", prompt_alt_tokens_k),
            temperature=sampling_params.temperature,
            generator=_generator(sampling_params.seed, 0),
        )
        wanted = _Prompt(question, num_samples, sampling_params, topk_sample_logprobs, target_prompt_logprobs)
        return self._base.worker.submit_shared(("sample", self._adapter), wanted, self._sample)

    def compute_logprobs(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> LocalFuture[list[float | None]]:
        """log p of each token of `prompt` given those before it; None for the first, or for all but the last n."""
        question = Question(tokens_of(prompt, "the sequence"), last=_last_n(prompt_logprobs_last_n, True))
        return self._base.worker.submit_shared(("logprobs", self._adapter), question, self._compute_logprobs)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is asked for in the block is begun when it ends, all of it side by side; it must not be waited for.

        Beside what else an answer is computed shows in the last digits of its numbers, and without this that depends on
        how fast the requests come.
        """
        asked = threading.Event()
        self._base.worker.submit(asked.wait)
        try:
            yield
        finally:
            asked.set()

    def get_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base model's tokenizer."""
        return self._base.tokenizer

    def get_base_model(self) -> str:
        """The name of the base model."""
        return self._base.name

    sample_async = awaits(sample)
    compute_logprobs_async = awaits(compute_logprobs)
    get_base_model_async = submits(get_base_model)

    # What follows runs on the worker's thread.

    def _sample(self, requests: Requests) -> None:
        answers: dict[Row, _Answer] = {}
        with self._base.using(self._adapter):
            generation = Generation(self._base)
            while True:
                for answer in self._begun(requests.take()):
                    answers |= dict.fromkeys(answer.rows, answer)
                    generation.add(answer.rows)
                if not generation.busy:
                    return
                self._base.worker.check()
                for row in generation.step():
                    answer = answers.pop(row)
                    if not answer.request.finished and all(other.ended for other in answer.rows):
                        answer.request.finish(_response(answer))

    def _begun(self, requests: Sequence[Request]) -> list[_Answer]:
        """The rows of those requests that can be answered, and what they ask of their prompts."""
        answers = []
        for request in requests:
            if error := self._error_of(request.item):
                request.finish(error)
            else:
                rows = [self._row(request.item, k) for k in range(request.item.num_samples)]
                answers.append(_Answer(request, rows))
        asked = [answer for answer in answers if answer.request.item.question.asked]
        for answer, scores in zip(asked, score(self._base, [a.request.item.question for a in asked]), strict=True):
            answer.scores = scores
        return answers

    def _compute_logprobs(self, requests: Requests) -> None:
        with self._base.using(self._adapter):
            while taken := requests.take():
                valid = []
                for request in taken:
                    if error := self._question_error(request.item):
                        request.finish(error)
                    else:
                        valid.append(request)
                for request, scores in zip(valid, score(self._base, [r.item for r in valid]), strict=True):
                    request.finish(scores.logprobs)

    def _error_of(self, prompt: _Prompt) -> BadRequest | None:
        if error := self._question_error(prompt.question):
            return error
        length, params = len(prompt.question.tokens), prompt.params
        if length >= self._base.max_length:
            return BadRequest(
                f"a prompt of {length} tokens leaves no room to answer; the model takes {self._base.max_length}"
            )
        if prompt.num_samples < 1:
            return BadRequest(f"num_samples is {prompt.num_samples}, but must be at least 1")
        if not 0 <= params.temperature < float("inf"):
            return BadRequest(f"the temperature is {params.temperature}, but must be 0 or more")
        if params.max_tokens is not None and params.max_tokens < 1:
            return BadRequest(f"max_tokens is {params.max_tokens}, but must be at least 1")
        if not 0 < params.top_p <= 1:
            return BadRequest(f"top_p is {params.top_p}, but must be more than 0 and at most 1")
        if "" in _texts(params):
            return BadRequest("a stop is an empty text, which would end every answer", hint="leave it out")
        if prompt.top_logprobs < 0:
            return BadRequest(f"topk_sample_logprobs is {prompt.top_logprobs}, but must be 0 or more")
        return None

    def _question_error(self, question: Question) -> BadRequest | None:
        tokens, targets = question.tokens, question.targets
        if not tokens:
            return BadRequest("the prompt is empty")
        if len(tokens) > self._base.max_length:
            return BadRequest(f"a sequence of {len(tokens)} tokens; the model takes {self._base.max_length}")
        if min(tokens) < 0 or max(tokens) >= self._base.vocabulary:
            return BadRequest(f"the prompt has ids outside the vocabulary of {self._base.vocabulary}")
        if question.top < 0:
            return BadRequest(f"topk_prompt_logprobs is {question.top}, but must be 0 or more")
        if question.last is not None and question.last >= len(tokens):
            return BadRequest(
                f"prompt_logprobs_last_n is {question.last}, but must be less than the prompt's {len(tokens)} tokens"
            )
        if targets is not None:
            if len(targets) != len(tokens) - 1:
                return BadRequest(
                    f"target_prompt_logprobs has {len(targets)} rows, but a prompt of {len(tokens)} tokens needs "
                    f"{len(tokens) - 1}"
                )
            if targets.numel() and (int(targets.min()) < -1 or int(targets.max()) >= self._base.vocabulary):
                return BadRequest(f"target_prompt_logprobs has ids outside the vocabulary of {self._base.vocabulary}")
        return None

    def _row(self, prompt: _Prompt, k: int) -> Row:
        params = prompt.params
        tokenizer = self._base.tokenizer
        room = self._base.max_length - len(prompt.question.tokens)
        texts = _texts(params)
        tokens = [] if params.stop is None or texts else [token for token in params.stop if isinstance(token, int)]
        if params.stop is None and isinstance(tokenizer.eos_token_id, int):
            tokens = [tokenizer.eos_token_id]
        return Row(
            prompt.question.tokens,
            limit=room if params.max_tokens is None else min(room, params.max_tokens),
            choice=Choice(params.temperature, params.top_k, params.top_p, _generator(params.seed, k)),
            stop_tokens=frozenset(tokens),
            stop_texts=TextStops(tokenizer, texts) if texts else None,
            top_logprobs=min(prompt.top_logprobs, self._base.vocabulary),
        )


def _response(answer: _Answer) -> types.SampleResponse | BaseException:
    failed = [row.error for row in answer.rows if row.error]
    if failed:
        return failed[0]
    prompt = answer.request.item
    sequences = []
    for row in answer.rows:
        tops = None
        if row.top_logprobs:
            tops = (
                np.asarray([ids for ids, _ in row.tops], np.int32),
                np.asarray([values for _, values in row.tops], np.float32),
            )
        assert row.stop_reason is not None
        sequences.append(responses.sampled_sequence(row.tokens, row.logprobs, row.stop_reason, tops))
    return responses.sample_response(sequences, answer.scores, prompt.targets)


def _generator(seed: int | None, k: int) -> torch.Generator:
    return torch.Generator().manual_seed(secrets.randbits(63) if seed is None else (seed + k) & ((1 << 63) - 1))


def _texts(params: types.SamplingParams) -> list[str]:
    """The stops that are texts."""
    if isinstance(params.stop, str):
        return [params.stop]
    return [stop for stop in params.stop or [] if isinstance(stop, str)]


# At once, as the SDK does.


def _targets(data: types.TensorData) -> torch.Tensor:
    if data.dtype != "int64":
        raise BadRequest(f"target_prompt_logprobs must be an int64 tensor of token ids, not {data.dtype}")
    if data.shape is None or len(data.shape) != 2:
        raise BadRequest(f"target_prompt_logprobs must be [len(prompt) - 1, K], not of shape {data.shape}")
    sparse = getattr(data, "sparse_crow_indices", None) is not None
    # Only a sparse tensor has cells to fill; older SDKs know no other than dense ones here.
    return data.to_torch(pad_value=-1) if sparse else data.to_torch()


def _not_negative(name: str, value: int) -> int:
    if value < 0:
        raise BadRequest(f"{name} must be 0 or greater, got {value}")
    return value


def _last_n(last_n: int | None, include_prompt_logprobs: bool) -> int | None:
    if last_n is None:
        return None
    if last_n < 1:
        raise BadRequest(f"prompt_logprobs_last_n must be 1 or greater, got {last_n}")
    if not include_prompt_logprobs:
        raise BadRequest("prompt_logprobs_last_n applies to prompt logprobs; set include_prompt_logprobs")
    return last_n
