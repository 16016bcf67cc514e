"""Passes of a server and of the embedded engine over the same adapter, written down as JSON.

python gradients.py ASKED.json FOUND.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tinker import types

from tinkertools import local, remote
from tinkertools.errors import EngineError

# A step that moves nothing: what is asked for is the norm of its gradient.
STILL = types.AdamParams(learning_rate=0.0)


def datum(tokens: list[int], **inputs: list[float]) -> types.Datum:
    """`inputs` hold a value for each token but the first: those of the targets."""
    given: dict[str, Any] = {"target_tokens": tokens[1:], **inputs}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=given)


def answers(data: list[Any], logprobs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The logprob of each answer: the tokens with a weight."""
    return [
        (values * one.loss_fn_inputs["weights"].to_torch()).sum() for one, values in zip(data, logprobs, strict=True)
    ]


def preference(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """A loss over pairs, as of DPO: the derivative by the logprobs of one is minus that of the other."""
    found = torch.stack(answers(data, logprobs))
    margins = 0.02 * (found[0::2] - found[1::2])
    return -torch.nn.functional.logsigmoid(margins).sum(), {"margin": float(margins.detach().mean())}


def squares(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Of every token, also of prompts."""
    return sum(((values**2).sum() for values in logprobs), torch.tensor(0.0)), {}


def passes(client: Any, asked: dict[str, Any], before: list[list[float]]) -> dict[str, Any]:
    """The loss and the norm of the gradient of each kind of pass."""
    data = [datum(tokens, weights=weights) for tokens, weights in asked["batch"]]
    actions = [
        datum(
            tokens,
            logprobs=[
                value + shift for value, shift in zip(values, [-0.5, -0.1, 0.1, 0.5] * len(values), strict=False)
            ],
            advantages=[(1.0 if i % 2 else -0.5) * weight for weight in weights],
        )
        for i, ((tokens, weights), values) in enumerate(zip(asked["batch"], before, strict=True))
    ]
    asks: dict[str, Any] = {
        "preference": lambda: client.forward_backward_custom(data, preference),
        "squares": lambda: client.forward_backward_custom(data, squares),
        "importance_sampling": lambda: client.forward_backward(actions, "importance_sampling"),
        "ppo": lambda: client.forward_backward(actions, "ppo", asked["thresholds"]),
        "cispo": lambda: client.forward_backward(actions, "cispo"),
    }
    found: dict[str, Any] = {}
    for name, ask in asks.items():
        pending = ask()
        step = client.optim_step(STILL)
        found[name] = {"metrics": pending.result().metrics, "step": step.result().metrics}
    moving = types.AdamParams(learning_rate=asked["learning_rate"], beta1=0.9, beta2=0.95, eps=1e-12)
    found["steps"] = []
    for _ in range(asked["steps"]):
        pending = client.forward_backward_custom(data, preference)
        client.optim_step(moving).result()
        found["steps"].append(pending.result().metrics["loss:sum"])
    return found


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    downloads = remote.Downloads(Path("downloads"), asked["base_model"], wanted=True)
    found: dict[str, Any] = {}
    with remote.ServiceClient(asked["base_url"], 120, print, downloads) as service:
        client = service.create_lora_training_client(asked["base_model"], asked["rank"], 1, True, True, False)
        fresh = service.checkpoint_directory(client.save_weights_for_sampler("fresh").result().path)
        output = client.forward([datum(tokens) for tokens, _ in asked["batch"]], "cross_entropy").result()
        before = [record["logprobs"].tolist() for record in output.loss_fn_outputs]
        found["there"] = passes(client, asked, before)
        try:
            client.forward([datum(asked["batch"][0][0])], "dro", {"beta": 0.1}).result()
        except EngineError as error:
            found["dro"] = error.message
    with local.ServiceClient(store=Path("store"), device="cpu") as engine:
        found["here"] = passes(engine.create_training_client_from_state(str(fresh)), asked, before)
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
