"""A model made ready to be asked, whoever answers."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tinkertools.asking.endpoints import Endpoint
from tinkertools.asking.engine import engine_endpoint, engine_of
from tinkertools.asking.hosted import AnthropicEndpoint, OpenAIEndpoint
from tinkertools.asking.models import AskedModel
from tinkertools.engines import open_service
from tinkertools.reporting import Notify


@asynccontextmanager
async def open_endpoint(model: AskedModel, notify: Notify, timeout: float) -> AsyncIterator[Endpoint]:
    """A model, ready to be asked; for a `with` block.

    Args:
        model: who is asked.
        notify: is told what is waited for, and what the model does not take.
        timeout: seconds that an answer may take, with all that is asked again for it.
    """
    async with AsyncExitStack() as stack:
        if model.hosted:
            make = OpenAIEndpoint if model.provider == "openai" else AnthropicEndpoint
            hosted = make(model, notify, timeout)
            stack.push_async_callback(hosted.close)
            yield hosted
        else:
            choice, weights = engine_of(model)
            service = open_service(choice, None, notify, timeout=timeout)
            stack.enter_context(service)
            yield engine_endpoint(service, choice, weights, model)
