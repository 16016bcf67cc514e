"""Who may be asked: models of services with OpenAI's or Anthropic's API, and of our engines, as options name them."""

import importlib.util
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from tinkertools.config import OUTPUT_DIR, ServerSettings, without_password
from tinkertools.errors import RunError, UsageError

if TYPE_CHECKING:
    from tinkertools.runs.directory import Weights

Provider = Literal["openai", "anthropic", "tinker", "local"]

# Enough for much thinking and an answer, on services that count thinking as answer.
MAX_TOKENS = 4096
# On our own engines, whose models think little and are slow here; enough for a short answer.
MAX_TOKENS_OF_ENGINES = 512
TEMPERATURE = 0

# The variables of the environment that hold the key of a service and its address.
HOSTED: dict[Provider, tuple[str, str]] = {
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
}
_FAMILIES: tuple[tuple[re.Pattern[str], Provider], ...] = (
    (re.compile(r"claude"), "anthropic"),
    (re.compile(r"gpt|chatgpt|o\d"), "openai"),
)
_FORMS = "openai:MODEL, anthropic:MODEL, tinker:MODEL, tinker://PATH or local:FOLDER"


@dataclass(frozen=True)
class AskedModel:
    """A model that is asked.

    Attributes:
        provider: what answers.
        model: its name there: a folder for the embedded engine, a name or `tinker://` path on a Tinker server.
        address: of the server, without any password; None is the provider's own.
        url: of a Tinker server, as it was given.
        option: the option that named it, for errors: it is no part of who it is.
        max_tokens: most tokens of an answer.
    """

    provider: Provider
    model: str
    address: str | None = None
    url: str | None = field(default=None, repr=False)
    option: str = field(kw_only=True, compare=False)
    max_tokens: int = field(kw_only=True)

    @property
    def name(self) -> str:
        """The model as options take it, for people and for files."""
        return self.model if self.model.startswith("tinker://") else f"{self.provider}:{self.model}"

    @property
    def hosted(self) -> bool:
        """Whether a service that is no engine of ours answers."""
        return self.provider in HOSTED

    def identity(self) -> dict[str, Any]:
        """All that decides what this model answers, as JSON values; of models in folders, what is in them."""
        found: dict[str, Any] = {"provider": self.provider, "model": self.model, "address": self.address}
        found |= {"temperature": TEMPERATURE, "max_tokens": self.max_tokens}
        if self.provider == "local":
            from tinkertools.fingerprints import of_base_model, of_weights

            weights, base_model = in_folder(self.option, self.model)
            found["model"] = [of_base_model(base_model, "local"), of_weights(weights) if weights else None]
        return found


def parse_model(
    option: str, name: str, base_url: str | None = None, engine_tokens: int = MAX_TOKENS_OF_ENGINES
) -> AskedModel:
    """The model that an option names, once it is clear that it can be asked; nothing is sent.

    Args:
        option: such as `--judge`; errors name it.
        name: what the user typed.
        base_url: of a Tinker server, where an option names it.
        engine_tokens: most tokens of an answer by a model on one of our engines.

    Raises:
        UsageError: nobody is named by that, or a key, a library or a folder is missing.
    """
    provider, model = _split(option, name)
    if not model:
        raise UsageError(f"{option} {name} names no model", hint=f"{option} takes {_FORMS}")
    if provider == "local":
        if not Path(model).is_dir():
            raise UsageError(f"{option} {name}: there is no folder {model}", hint=f"{option} takes {_FORMS}")
        in_folder(option, model)
        return AskedModel(provider, str(Path(model).resolve()), option=option, max_tokens=engine_tokens)
    if provider == "tinker":
        server = ServerSettings.from_environment(base_url)
        if not (server.has_key or server.base_url or os.environ.get("TINKER_CREDENTIAL_CMD")):
            raise UsageError(
                f"{option} {name} is on a Tinker server, and there is no key for one",
                hint="export TINKER_API_KEY=… or write it into .env, or name a server of your own: --base-url URL",
            )
        url = server.base_url
        address = without_password(url) if url else None
        return AskedModel(provider, model, address, url, option=option, max_tokens=engine_tokens)
    return _hosted_model(option, name, provider, model)


def _split(option: str, name: str) -> tuple[Provider, str]:
    """Who answers to a name, and what the model is called there."""
    if name.startswith("tinker://"):
        return "tinker", name
    prefix, colon, model = name.partition(":")
    for provider in (*HOSTED, "tinker", "local"):
        if colon and prefix == provider:
            return provider, model
    if Path(name).is_dir():
        return "local", name
    for pattern, provider in _FAMILIES:
        if pattern.match(name):
            return provider, name
    raise UsageError(
        f"{option} {name}: it is not clear who that is",
        hint=f"{option} takes {_FORMS}; openai: stands for any server with an OpenAI API, at OPENAI_BASE_URL",
    )


def _hosted_model(option: str, name: str, provider: Provider, model: str) -> AskedModel:
    key, url = HOSTED[provider]
    address = os.environ.get(url)
    if address and (urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname):
        raise UsageError(f"{url} is no address of a server", hint=f"for example {url}=http://localhost:8000/v1")
    # A server of one's own often wants no key.
    if not os.environ.get(key) and not (provider == "openai" and address):
        also = ", or OPENAI_BASE_URL=… for a server of your own" if provider == "openai" else ""
        raise UsageError(
            f"{option} {name} needs a key, and {key} is not set", hint=f"export {key}=… or write it into .env{also}"
        )
    if importlib.util.find_spec(provider) is None:
        raise UsageError(
            f"{option} {name}: the library {provider} is not installed",
            hint="python -m pip install 'tinkertools[judge]'",
        )
    address = without_password(address) if address else None
    return AskedModel(provider, model, address, option=option, max_tokens=MAX_TOKENS)


def in_folder(option: str, folder: str) -> tuple["Weights | None", str]:
    """The adapter in a folder, where it holds one or is a run, and the base model.

    Raises:
        RunError: it is a run without weights, or an adapter that does not say its base.
    """
    from tinkertools.adapters.peft_files import is_adapter
    from tinkertools.runs.directory import RunDirectory, find_weights

    run = RunDirectory(Path(folder))
    if not (is_adapter(run.path) or (run.exists and run.log.is_file())):
        return None, folder
    weights = find_weights(folder, OUTPUT_DIR)
    if weights.directory is None or weights.base_model is None:
        raise RunError(
            f"{folder} does not say which base model it was trained on", hint=f"name another model with {option}"
        )
    return weights, weights.base_model
