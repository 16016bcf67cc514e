"""Data made ready for a model: rendered or taken from the cache, checked, and fitted to the model's length."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinkertools.chat import cache
from tinkertools.chat.conversations import Conversation
from tinkertools.chat.datums import Fitted, fit
from tinkertools.chat.pairs import FittedPairs, Pair, check_pairs, fit_pairs, render_pairs
from tinkertools.chat.preferences import Preference
from tinkertools.chat.preview import lengths
from tinkertools.chat.rendering import RenderedData, Renderer, render_all
from tinkertools.chat.selfcheck import check
from tinkertools.config import Overlength, PrepareDefaults
from tinkertools.local.limits import Limits
from tinkertools.reporting import ProgressMaker, Voice


@dataclass(frozen=True)
class Ready:
    """Data ready for training.

    `tokenised` says in words where the tokens came from, `checked` how many conversations the self-check looked at.
    """

    rendered: RenderedData
    fitted: Fitted
    conversations: int
    max_length: int | None
    tokenised: str
    checked: int


def make_ready(
    renderer: Renderer,
    conversations: Sequence[Conversation],
    fingerprint: str,
    limits: Limits,
    progress: ProgressMaker,
    *,
    max_length: int = 0,
    overlength: Overlength = "error",
    use_cache: bool = True,
) -> Ready:
    """Render conversations for training, hold them against what will be sampled, and fit them to the model.

    Args:
        renderer: of the base model.
        conversations: what is trained on.
        fingerprint: their hash, by which the cache knows them.
        limits: the model's, as far as they are known.
        progress: makes the display of the rendering.
        max_length: the most tokens an example; 0 means the model's limit.
        overlength: what becomes of longer examples.
        use_cache: take rendered data from the cache, and keep it there.

    Raises:
        DataError: conversations cannot be rendered, the self-check failed, or nothing is left to train.
    """
    path = cache.cache_file(fingerprint, renderer) if use_cache else None
    rendered = cache.load(path) if path else None
    if rendered is not None:
        tokenised = f"tokens: from the cache ({path})"
    else:
        with progress("render", len(conversations), "conversations") as report:
            rendered = render_all(renderer, conversations, PrepareDefaults.errors_shown, report)
        if path is None:
            tokenised = "tokens: rendered; the cache is off"
        elif problem := cache.save(path, rendered):
            tokenised = f"tokens: rendered; not kept: {problem}"
        else:
            tokenised = f"tokens: not in the cache; rendered and kept for the next run ({path})"
    checked = check(renderer, conversations, rendered, limits.vocabulary)
    limit = _limit(max_length, limits)
    fitted = fit(rendered, len(conversations), limit, overlength, renderer.stop_tokens)
    return Ready(rendered, fitted, len(conversations), limit, tokenised, checked)


def _limit(max_length: int, limits: Limits) -> int | None:
    return min((length for length in (max_length, limits.max_length) if length), default=None)


@dataclass(frozen=True)
class ReadyPairs:
    """Preferences ready for training: all `pairs`, and those that fit; `checked` answers were looked at."""

    pairs: list[Pair]
    fitted: FittedPairs
    max_length: int | None
    checked: int


def make_pairs_ready(
    renderer: Renderer,
    preferences: Sequence[Preference],
    limits: Limits,
    progress: ProgressMaker,
    *,
    max_length: int = 0,
    overlength: Overlength = "error",
) -> ReadyPairs:
    """As `make_ready`, for preferences; `renderer` is one of `pairs.TRAIN_PAIRS_ON`. Nothing is kept in the cache.

    Raises:
        DataError: preferences cannot be rendered, the self-check failed, or no pair is left.
    """
    with progress("render", len(preferences), "preferences") as report:
        pairs = render_pairs(renderer, preferences, PrepareDefaults.errors_shown, report)
    checked = check_pairs(renderer, preferences, pairs, limits.vocabulary)
    limit = _limit(max_length, limits)
    return ReadyPairs(pairs, fit_pairs(pairs, limit, overlength), limit, checked)


def tell(ready: Ready, voice: Voice) -> None:
    """What will be trained on, where it came from, and what was done to make it fit; every row is accounted for."""
    rendered, fitted = ready.rendered, ready.fitted
    voice.say(ready.tokenised)
    share = fitted.trained_tokens / fitted.tokens
    voice.say(
        f"examples: {len(fitted.examples):,} of {ready.conversations:,} conversations, with {fitted.tokens:,} tokens, "
        f"{fitted.trained_tokens:,} of them trained ({share:.1%})"
    )
    voice.say(f"tokens an example: {lengths(rendered.examples)}; limit {_shown(ready.max_length)}")
    if rendered.split:
        voice.say(
            f"split: {rendered.split:,} conversations into {rendered.examples_of_split:,} examples, since the "
            "renderer rewrites earlier turns"
        )
    if rendered.saved_tokens:
        voice.say(
            f"saved: {rendered.saved_tokens:,} tokens, since turns that share their history are trained in one example"
        )
    counts = {
        f"cut, {fitted.cut_tokens:,} tokens in all": fitted.cut,
        "dropped as too long": fitted.dropped,
        "dropped, since no whole turn fits": fitted.unfinished,
        "left out, with nothing to train": fitted.untrained,
    }
    if any(counts.values()):
        voice.warn("; ".join(f"{count:,} {what}" for what, count in counts.items() if count))
    voice.say(f"self-check: {ready.checked} conversations are trained exactly as they are sampled")


def tell_pairs(ready: ReadyPairs, voice: Voice) -> None:
    """What pairs will be trained on, and how many are left out."""
    fitted = ready.fitted
    voice.say(
        f"pairs: {len(fitted.pairs):,} of {len(ready.pairs):,}, with {fitted.tokens:,} tokens on both sides, "
        f"{fitted.trained_tokens:,} of them in answers ({fitted.trained_tokens / fitted.tokens:.1%})"
    )
    for side, examples in (
        ("chosen", [pair.chosen for pair in ready.pairs]), ("rejected", [pair.rejected for pair in ready.pairs]),
    ):  # fmt: skip
        voice.say(f"tokens, {side}: {lengths(examples)}; limit {_shown(ready.max_length)}")
    if fitted.dropped:
        voice.warn(f"{fitted.dropped:,} dropped as too long")
    voice.say(f"self-check: {ready.checked} answers are trained exactly as they are sampled")


def _shown(limit: int | None) -> str:
    return "not known" if limit is None else f"{limit:,}"
