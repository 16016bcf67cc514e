"""Policy gradients: what a model sampled becomes datums and a loss, for every method that learns from its own answers.

The losses are Tinker's (https://tinker-docs.thinkingmachines.ai/tinker/losses): sums over tokens of a function of
log p, what the model that is trained gives an answer's token; log q, what the one that sampled it gave; and how much
better than expected the token was, its advantage.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tinkertools.config import PolicyLoss

if TYPE_CHECKING:
    from tinker import types

    from tinkertools.chat.examples import Prompt


def policy_datum(
    prompt: "Prompt", answer: Sequence[int], logprobs: Sequence[float], advantages: Sequence[float]
) -> "types.Datum":
    """An answer as the policy losses take it: one shift, and zeros for logprobs and advantages within the prompt.

    Args:
        prompt: what was answered, P tokens.
        answer: the tokens that were sampled, N ≥ 1 of them, the end of the turn among them.
        logprobs: what the sampler gave each of them, log q, (N,).
        advantages: of each of them, (N,). The losses are sums: a mean over a step is made by dividing these.
    """
    import numpy as np
    import torch
    from tinker import types

    from tinkertools.chat.datums import to_model_input
    from tinkertools.chat.examples import Tokens

    if not len(answer) == len(logprobs) == len(advantages) > 0:
        raise ValueError(f"{len(answer)} tokens, {len(logprobs)} logprobs and {len(advantages)} advantages")
    tokens: Tokens = np.concatenate((prompt.tokens, np.asarray(answer, np.int32)))
    before = np.zeros(len(prompt.tokens) - 1, np.float32)

    def shifted(values: Sequence[float]) -> types.TensorData:
        return types.TensorData.from_torch(torch.from_numpy(np.concatenate((before, np.asarray(values, np.float32)))))

    return types.Datum(
        model_input=to_model_input(tokens[:-1], prompt.images),
        loss_fn_inputs={
            # As in `chat.datums`: a place of an image has target 0, and no advantage.
            "target_tokens": types.TensorData.from_torch(torch.from_numpy(np.maximum(tokens[1:], 0).astype(np.int64))),
            "logprobs": shifted(logprobs),
            "advantages": shifted(advantages),
        },
    )


def policy_loss_config(loss: PolicyLoss) -> dict[str, float] | None:
    """The thresholds of a loss, said to every engine so that none takes others; None where it has none."""
    from tinkertools.local.losses import settings_of

    return settings_of(loss, None) or None


def policy_loss(loss: PolicyLoss, datums: Sequence["types.Datum"], output: Any) -> float:
    """The loss summed over all tokens, of what `forward_backward` returned of the datums.

    Servers differ in what they tell of a loss; all tell the logprobs that it is made of.

    Raises:
        EngineError: it is not a finite number.
    """
    from tinkertools.local.losses import loss_named, settings_of, total

    found = loss_named(loss)
    inputs = [
        {name: datum.loss_fn_inputs[name].to_torch() for name in found.inputs if name in datum.loss_fn_inputs}
        for datum in datums
    ]
    for datum, one in zip(datums, inputs, strict=True):
        one["weights"] = (datum.loss_fn_inputs["advantages"].to_torch() != 0).float()
    logprobs = [one["logprobs"].to_torch() for one in output.loss_fn_outputs]
    return total(found, settings_of(loss, None), logprobs, inputs)
