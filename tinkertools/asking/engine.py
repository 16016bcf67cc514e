"""Models on our engines, asked as a service is."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkertools.asking.endpoints import Failed, Question, Reply
from tinkertools.asking.models import TEMPERATURE, AskedModel, in_folder
from tinkertools.config import AUTO_RENDERER, OUTPUT_DIR, ServerSettings
from tinkertools.engines import Choice, choose
from tinkertools.errors import EngineError, RunError

if TYPE_CHECKING:
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient, Service
    from tinkertools.runs.directory import Weights


@dataclass(frozen=True)
class EngineEndpoint:
    """A model on one of our engines."""

    sampler: "SamplingClient"
    renderer: "Renderer"
    max_length: int | None
    max_tokens: int

    async def reply(self, question: Question) -> Reply:
        """See `Endpoint`."""
        from tinker import types

        from tinkertools.chat.datums import to_model_input
        from tinkertools.chat.examples import RenderError

        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.text}]
        try:
            asked = self.renderer.generation_prompt({"messages": messages})
        except RenderError as error:
            raise Failed(f"the model's renderer: {error}") from error
        read = len(asked.tokens)
        limit = self.max_tokens
        if self.max_length is not None:
            limit = min(limit, self.max_length - read)
        if limit < 1:
            raise Failed(f"the question has {read:,} tokens, and the model takes {self.max_length:,}")
        params = types.SamplingParams(max_tokens=limit, temperature=TEMPERATURE, seed=0, stop=self.renderer.stop_tokens)
        try:
            pending = self.sampler.sample(to_model_input(asked.tokens, asked.images), 1, params)
            sequence = (await _in_thread(pending.result)).sequences[0]
        except EngineError as error:
            raise Failed(error.message) from error
        text = self.renderer.decode(sequence.tokens)
        return Reply(text, sequence.stop_reason != "stop", read, len(sequence.tokens))


def engine_endpoint(service: "Service", choice: Choice, weights: "Weights | None", model: AskedModel) -> EngineEndpoint:
    """The model on an engine that is open.

    Raises:
        RunError: nobody says what the weights were trained on.
    """
    from tinkertools.chat.rendering import load_renderer

    source = weights.source(choice.engine) if weights else None
    base_model = choice.base_model
    if not base_model:
        from tinkertools import remote

        assert isinstance(service, remote.ServiceClient) and source is not None
        found = service.base_model_of(source)
        if found is None:
            raise RunError(
                f"the server does not say what {source} was trained on",
                hint=f"name another model with {model.option}, such as a base model",
            )
        base_model = found
    renderer = load_renderer(base_model, (weights.renderer if weights else None) or AUTO_RENDERER)
    sampler = service.create_sampling_client(source, base_model)
    return EngineEndpoint(sampler, renderer, service.max_length(base_model), model.max_tokens)


def engine_of(model: AskedModel) -> tuple[Choice, "Weights | None"]:
    """The engine of a model, and the adapter, where it has one. A server's adapter may have a base yet to be asked."""
    from tinkertools.runs.directory import find_weights

    if model.provider == "local":
        weights, base_model = in_folder(model.option, model.model)
        return choose("local", base_model, ServerSettings(None, False)), weights
    if model.model.startswith("tinker://"):
        return Choice("tinker", "", "the model is on a server", model.url), find_weights(model.model, OUTPUT_DIR)
    return choose("tinker", model.model, ServerSettings(model.url, False)), None


async def _in_thread(function: Callable[[], Any]) -> Any:
    """What a call that blocks returns. Its thread holds nobody up who leaves."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="tt asks").start()
    return await asyncio.wrap_future(future)
