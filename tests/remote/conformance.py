"""What code of the SDK sees of a service, written down as JSON. It does not know which service it is.

python conformance.py ASKED.json FOUND.json
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tinker
from tinker import types

# Seconds that the service may take for an answer; the first of each shape may have to be compiled.
PATIENCE = 120
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-12}


def text(tokens: list[int]) -> types.ModelInput:
    return types.ModelInput.from_ints(tokens)


def done(future: Any) -> Any:
    return future.result(timeout=PATIENCE)


def datum(tokens: list[int], **inputs: list[float]) -> types.Datum:
    """`inputs` hold a value for each token but the first: those of the targets."""
    targets = types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1])
    others = {
        name: types.TensorData(data=values, dtype="float32", shape=[len(values)]) for name, values in inputs.items()
    }
    return types.Datum(model_input=text(tokens[:-1]), loss_fn_inputs={"target_tokens": targets, **others})


def logprobs_of(output: Any) -> list[list[float]]:
    return [record["logprobs"].tolist() for record in output.loss_fn_outputs]


def loss_of(output: Any) -> float:
    """The sum over all tokens, as the service tells it: at once, or token by token."""
    if "loss:sum" in output.metrics:
        return float(output.metrics["loss:sum"])
    return sum(sum(record["elementwise_loss"].tolist()) for record in output.loss_fn_outputs)


def scored(sampler: Any, texts: list[list[int]]) -> list[list[float | None]]:
    # One after another: a service may compile each number of requests that it finds waiting.
    return [done(sampler.compute_logprobs(text(tokens))) for tokens in texts]


def answer(sampler: Any, prompt: list[int], count: int, params: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = done(sampler.sample(text(prompt), count, types.SamplingParams(**params), **more))
    return {
        "kind": type(response).__name__,
        "fields": given(response, "sequences", "prompt_logprobs", "topk_prompt_logprobs"),
        "prompt_logprobs": response.prompt_logprobs,
        "sequences": [
            {
                "tokens": list(one.tokens),
                "logprobs": list(one.logprobs),
                "stop_reason": one.stop_reason,
                "fields": given(one, "tokens", "tokens_np", "logprobs", "logprobs_np", "stop_reason"),
            }
            for one in response.sequences
        ],
    }


def given(response: Any, *names: str) -> list[str]:
    """Those of the names that a response has a value for."""
    return [name for name in names if getattr(response, name, None) is not None]


def failure(ask: Callable[[], Any]) -> list[str]:
    """The classes of the error that a request ends with, the nearest first; none where it is answered."""
    try:
        ask()
    except Exception as error:  # noqa: BLE001 - which it is, is what is asked
        return [kind.__name__ for kind in type(error).__mro__]
    return []


def base_model(service: Any, asked: dict[str, Any]) -> dict[str, Any]:
    sampler = service.create_sampling_client(base_model=asked["base_model"])
    return {
        "logprobs": scored(sampler, asked["texts"]),
        "answers": {
            name: answer(sampler, one["prompt"], one["count"], one["params"]) for name, one in asked["prompts"].items()
        },
        "with_prompt": answer(
            sampler, asked["texts"][0], 1, {"max_tokens": 1, "temperature": 0.0}, include_prompt_logprobs=True
        ),
    }


def training(service: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """An adapter from its first moment to what it has learned; `start` names another's first moment."""
    if asked["start"]:
        client = service.create_training_client_from_state(asked["start"])
    else:
        client = service.create_lora_training_client(asked["base_model"], asked["rank"], seed=1, train_unembed=False)
    plain = [datum(tokens) for tokens in asked["texts"]]
    found: dict[str, Any] = {"forward": logprobs_of(done(client.forward(plain, "cross_entropy")))}
    fresh = done(client.save_weights_for_sampler("fresh")).path
    found["fresh"] = scored(service.create_sampling_client(model_path=fresh), asked["texts"])
    found["policy"] = policy_losses(client, asked)
    data = [datum(tokens, weights=weights) for tokens, weights in asked["batch"]]
    adam = types.AdamParams(learning_rate=asked["learning_rate"], **ADAM)
    found["losses"] = []
    for _ in range(asked["steps"]):
        # One after the other: SkyRL 0.3.0 may take a step before the gradient that it was sent after, where both reach
        # it while it looks for work.
        passed = done(client.forward_backward(data, "cross_entropy"))
        stepped = done(client.optim_step(adam))
        found["losses"].append(loss_of(passed))
    found["learned"] = logprobs_of(done(client.forward(data, "cross_entropy")))
    path = done(client.save_weights_for_sampler("trained")).path
    sampler = service.create_sampling_client(model_path=path)
    texts = [tokens for tokens, _ in asked["batch"]]
    found["trained"] = scored(sampler, [*asked["texts"], *texts])
    found["kinds"] = [type(one).__name__ for one in (passed, stepped)]
    found["archives"] = archives(service, [fresh, path])
    if asked["refused"]:
        found["refused"] = refused(service, client, asked)
    return found


def policy_losses(client: Any, asked: dict[str, Any]) -> dict[str, float]:
    """Losses of actions whose probabilities were other ones when they were taken."""
    texts = [tokens for tokens, _ in asked["batch"]]
    now = logprobs_of(done(client.forward([datum(tokens) for tokens in texts], "cross_entropy")))
    data = []
    for (tokens, weights), logprobs in zip(asked["batch"], now, strict=True):
        # Ratios on both sides of both thresholds of PPO, with advantages of both signs.
        shifts, advantages = ([-0.5, -0.1, 0.1, 0.5], [1.0, -0.75, 0.5, -1.25, 2.0])
        acts = [i if weight else None for i, weight in enumerate(weights)]
        before = [0.0 if i is None else logprobs[i] + shifts[i % 4] for i in acts]
        data.append(datum(tokens, logprobs=before, advantages=[0.0 if i is None else advantages[i % 5] for i in acts]))
    return {
        name: loss_of(done(client.forward(data, loss_fn, config)))
        for name, (loss_fn, config) in asked["policies"].items()
    }


def archives(service: Any, paths: list[str]) -> list[str]:
    """Where archives of checkpoints are to be had, where the service makes any."""
    rest = service.create_rest_client()
    if not hasattr(rest, "get_checkpoint_archive_url"):
        return paths
    found = []
    for path in paths:
        run, *_, name = path.removeprefix("tinker://").split("/")
        found.append(done(rest.get_checkpoint_archive_url(run, name)).url)
    return found


def refused(service: Any, client: Any, asked: dict[str, Any]) -> dict[str, list[str]]:
    """What cannot be done, and how each is told."""
    base, tokens, run = asked["base_model"], asked["texts"][0], client.model_id
    data = [datum(tokens)]
    sampler = service.create_sampling_client(base_model=base)
    one = {"max_tokens": 1}

    def sampled_from(path: str) -> Any:
        return answer(service.create_sampling_client(model_path=path), tokens, 1, one)

    asks: dict[str, Callable[[], Any]] = {
        "a loss that nobody knows": lambda: done(client.forward(data, "no_such_loss")),
        "a setting that the loss does not have": lambda: done(client.forward(data, "ppo", {"no_such_setting": 1.0})),
        "no data": lambda: done(client.forward([], "cross_entropy")),
        "a negative learning rate": lambda: done(client.optim_step(types.AdamParams(learning_rate=-1.0))),
        "a step without a gradient": lambda: done(client.optim_step(types.AdamParams(learning_rate=0.0))),
        "rank 0": lambda: service.create_lora_training_client(base, 0),
        "nothing to train": lambda: service.create_lora_training_client(
            base, 4, train_mlp=False, train_attn=False, train_unembed=False
        ),
        "neither weights nor a base model": service.create_sampling_client,
        "a base model that is not there": lambda: answer(
            service.create_sampling_client(base_model="no/such-model"), tokens, 1, one
        ),
        "weights that are not there": lambda: sampled_from(f"tinker://{run}/sampler_weights/none"),
        "a run that is not there": lambda: sampled_from("tinker://none/sampler_weights/none"),
        "a state that is not there": lambda: done(client.load_state(f"tinker://{run}/weights/none")),
        "a name with a blank": lambda: done(client.save_state("a b")),
        "no room for an answer": lambda: answer(sampler, tokens, 1, {"max_tokens": 0}),
    }
    return {name: failure(ask) for name, ask in asks.items()}


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    service = tinker.ServiceClient()
    found = {"version": tinker.__version__, "models": models(service), "trained": training(service, asked)}
    if not asked["start"]:
        found["base"] = base_model(service, asked)
    Path(sys.argv[2]).write_text(json.dumps(found))


def models(service: Any) -> list[str]:
    return [model.model_name for model in service.get_server_capabilities().supported_models]


if __name__ == "__main__":
    main()
