"""How likely a model finds held-out conversations while it is trained: asked of the training client, step by step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinkertools.chat.examples import Example
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import TrainingClient

_TOKENS_AT_ONCE = 16384

# An evaluation on its way: examples, and the future of what the model thinks of them.
Pending = list[tuple[Sequence["Example"], Any]]


@dataclass(frozen=True)
class HeldOut:
    """Examples that are not trained on.

    Attributes:
        examples: the examples.
        trained_bytes: UTF-8 bytes of the text whose tokens would be trained, ends of turns left out.
    """

    examples: list["Example"]
    trained_bytes: int

    def submit(self, client: "TrainingClient") -> Pending:
        """Ask for the likelihoods under the weights that the client has then, without waiting for them."""
        from tinkertools.chat.datums import to_datums

        return [(part, client.forward(to_datums(part), "cross_entropy")) for part in parts(self.examples)]

    def result(self, pending: Pending) -> dict[str, float]:
        """Wait for the answers: `nll` (mean per trained token, natural log), `perplexity`, `bits_per_byte`,
        `trained_tokens`.

        Bits per byte are the NLL of all trained tokens in bits over the bytes of their text, and so can be compared
        between tokenizers.
        """
        found = [masked_nll(examples, future.result()) for examples, future in pending]
        nll, weight = sum(part[0] for part in found), sum(part[1] for part in found)
        return {
            "nll": nll / weight,
            "perplexity": perplexity(nll / weight),
            "bits_per_byte": nll / math.log(2) / max(1, self.trained_bytes),
            "trained_tokens": sum(example.trained_tokens for example in self.examples),
        }


def parts(examples: Sequence["Example"]) -> Iterator[list["Example"]]:
    """Examples that are sent together: some thousands of tokens keep an engine busy, and no server minds them."""
    part: list[Example] = []
    tokens = 0
    for example in examples:
        if part and tokens + len(example.tokens) > _TOKENS_AT_ONCE:
            yield part
            part, tokens = [], 0
        part.append(example)
        tokens += len(example.tokens)
    yield part


def masked_nll(examples: Sequence["Example"], output: Any) -> tuple[float, float]:
    """Σ −logprob · weight over all tokens of the examples, natural log, and Σ weight.

    Args:
        examples: those that were sent.
        output: what `forward` or `forward_backward` gave with the loss `cross_entropy`.
    """
    nll = weight = 0.0
    for example, found in zip(examples, output.loss_fn_outputs, strict=True):
        logprobs = found["logprobs"].to_torch().double().numpy()
        nll -= float((logprobs * example.weights[1:]).sum())
        weight += float(example.weights[1:].sum())
    return nll, weight


def perplexity(nll: float) -> float:
    """e to the mean NLL; infinite where that is no number."""
    return math.exp(nll) if nll < 700 else math.inf


def trained_bytes(examples: Sequence["Example"], renderer: "Renderer") -> int:
    """UTF-8 bytes of the text of trained tokens, ends of turns left out."""
    ends = set(renderer.stop_tokens)
    return sum(
        len(renderer.text([token for token in example.tokens[start:end].tolist() if token not in ends]).encode())
        for example in examples
        for start, end in example.runs
    )
