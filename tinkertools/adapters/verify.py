"""Models run before they are published: what is sent answers as what was trained."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkertools.chat.tokenizing import load_tokenizer
from tinkertools.errors import RunError

if TYPE_CHECKING:
    import torch

# Larger models are not loaded: they are held against base and adapter tensor by tensor, which says the same.
_MOST_BYTES = 4 * 10**9
_PROMPTS = ("Hello!", "What is 7 plus 5?", "Write a short poem about the sea.", "def add(a, b):")
# How far logits may be apart, as a share of their spread: rounding of the merged weights moves each by half a unit in
# the last place, and some tens of layers add that up.
_APART = {"bfloat16": 2**-4, "float16": 2**-7, "float32": 2**-14}


def check_adapter(base: Path, adapter: Path) -> str:
    """Load an adapter as its users will, and run it; what was checked, in words.

    Raises:
        RunError: it does not load, or computes nothing.
    """
    if _too_large(base):
        return "checked: every tensor has a layer; the base model is too large to be run here"
    logits = _logits(_tuned(base, adapter), base)
    if not all(bool(one.isfinite().all()) for one in logits):
        raise RunError(f"{adapter} gives no numbers with {base}", hint="train again, with a lower --learning-rate")
    return f"checked: PEFT loads the adapter, and it answers {len(logits)} prompts"


def check_merged(base: Path, adapter: Path, merged: Path) -> str:
    """Hold the logits of merged weights against those of base and adapter; what was checked, in words.

    Raises:
        RunError: they are further apart than the rounding of the weights explains.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if (here := _ids(merged)) != (there := _ids(base)):
        raise RunError(
            f"the tokenizer in {merged} is not the base's: {here} for {there}", hint="remove it, merge again"
        )
    if _too_large(base):
        return "checked: the tokenizer is the base's; the model is too large to be run here"
    wanted = _logits(_tuned(base, adapter), base)
    with _quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(merged)
    allowed = _APART[str(model.dtype).removeprefix("torch.")]
    found = _logits(model.to(torch.float32), merged)
    apart = max(_apart(one, other) for one, other in zip(found, wanted, strict=True))
    if not apart <= allowed:
        raise RunError(
            f"{merged} answers otherwise than base and adapter: logits {apart:.2%} of their spread apart, "
            f"at most {allowed:.2%} is rounding",
            hint="this is a defect of tt: nothing was sent",
        )
    return f"checked: logits of {len(found)} prompts are {apart:.3%} of their spread from base and adapter's"


def _too_large(model: Path) -> bool:
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) > _MOST_BYTES


def _tuned(base: Path, adapter: Path) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with _quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, str(adapter))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' bars, and their word on tied layers, of which this module takes care."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _ids(tokenizer_of: Path) -> list[list[int]]:
    """Each prompt in tokens, which give it back.

    Raises:
        RunError: they do not.
    """
    tokenizer = load_tokenizer(str(tokenizer_of))
    found = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in _PROMPTS]
    for prompt, ids in zip(_PROMPTS, found, strict=True):
        if (back := str(tokenizer.decode(ids)).strip()) != prompt:
            raise RunError(f"the tokenizer in {tokenizer_of} makes {back!r} of {prompt!r}", hint="use the model's own")
    return found


def _logits(model: Any, tokenizer_of: Path) -> "list[torch.Tensor]":
    """Logits of each prompt, (tokens, vocabulary), in float32."""
    import torch

    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].float() for ids in _ids(tokenizer_of)]


def _apart(one: "torch.Tensor", other: "torch.Tensor") -> float:
    """The root mean square of the difference over the spread of the logits."""
    spread = float((other - other.mean(-1, keepdim=True)).square().mean().sqrt())
    return float((one - other).square().mean().sqrt()) / max(spread, 1e-12)
