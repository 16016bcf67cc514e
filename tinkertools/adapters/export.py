"""What servers need beside the weights: vLLM's command line and Ollama's Modelfile.

Nothing is written that a server would ignore or refuse: such an export is refused here, with the reason.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tinkertools.adapters.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tinkertools.errors import RunError

if TYPE_CHECKING:
    from tinkertools.adapters.go_template import GoTemplate

VLLM_SCRIPT = "serve_vllm.sh"
MODELFILE = "Modelfile"
EXPORTED_FILES = (VLLM_SCRIPT, MODELFILE)

# The values of --max-lora-rank: https://github.com/vllm-project/vllm/blob/main/vllm/config/lora.py
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Layers that hold a row for each token, under the names that PEFT, servers and models give them.
_VOCABULARY_LAYERS = frozenset(("lm_head", "unembed_tokens", "embed_tokens", "embed_out", "wte"))
# What `ollama create` converts from safetensors itself, and of which it takes adapters as such. The documentation
# tells less of the first and more of the second than the source does:
# https://github.com/ollama/ollama/blob/main/convert/convert.go, https://docs.ollama.com/import
_OLLAMA_MODELS = frozenset((
    "LlamaForCausalLM", "MllamaForConditionalGeneration", "Llama4ForConditionalGeneration",
    "Mistral3ForConditionalGeneration", "Ministral3ForCausalLM", "MixtralForCausalLM", "GemmaForCausalLM",
    "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma3nForConditionalGeneration",
    "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "Phi3ForCausalLM", "Qwen2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration",
    "Olmo3ForCausalLM", "CohereForCausalLM", "GptOssForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM",
    "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Lfm2VlForConditionalGeneration", "Qwen3NextForCausalLM",
    "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration", "NemotronHForCausalLM",
))  # fmt: skip
_OLLAMA_ADAPTERS = frozenset(("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Gemma2ForCausalLM"))
_MERGE = "add --merge: merged weights need no adapter to be loaded"
# What Ollama takes of a generation configuration: https://docs.ollama.com/modelfile
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True)
class Served:
    """What a repository holds, as a server sees it.

    Attributes:
        name: what the model is called.
        base_model: the public name of its base.
        merged: whether the weights are merged, or an adapter's.
        rank: of the adapter.
        modules: the layers that the adapter changes, with their full names.
        architecture: of the base, as its configuration names it; None where that is not on this machine.
        settings: the adapter's configuration.
    """

    name: str
    base_model: str
    merged: bool
    rank: int | None = None
    modules: frozenset[str] = frozenset()
    architecture: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vocabulary_layer(self) -> str | None:
        """The output layer or the embeddings, where the adapter changes them."""
        return next((name for m in sorted(self.modules) if (name := m.rpartition(".")[2]) in _VOCABULARY_LAYERS), None)


def modules_of(adapter: Path) -> frozenset[str]:
    """The full names of the layers that an adapter changes.

    Raises:
        RunError: it is not readable.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as opened:
            names = list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise RunError(f"{adapter} is not readable as an adapter: {error}", hint="download it again") from error
    return frozenset(
        name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names if ".lora_" in name
    )


def settings_of(adapter: Path) -> dict[str, Any]:
    """An adapter's configuration.

    Raises:
        RunError: it is not readable.
    """
    file = adapter / ADAPTER_CONFIG
    try:
        settings = orjson.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is not readable: {error}", hint="download it again") from error
    return settings if isinstance(settings, dict) else {}


def architecture_of(base: Path | None) -> str | None:
    """The architecture that a model's configuration names."""
    try:
        names = orjson.loads((base / "config.json").read_bytes()).get("architectures") if base else None
    except (OSError, ValueError, AttributeError):
        return None
    return str(names[0]) if names else None


# --- vLLM


def vllm_problem(served: Served) -> str | None:
    """Why vLLM would not serve it as it was trained; None where it does.

    vLLM takes adapters of the output layer only for model classes that list it in `embedding_modules`, which releases
    before mid-2026 do for few: it refuses the others (https://github.com/thinking-machines-lab/tinker-cookbook/issues/193,
    https://github.com/vllm-project/vllm/pull/33234), and a vocabulary above 258,048 anywhere. Adapters whose layers
    have other names than the server's modules are served as the bare base model, without a word
    (https://github.com/vllm-project/vllm/issues/34186, https://github.com/vllm-project/vllm/issues/48019).
    """
    if served.merged:
        return None
    if layer := served.vocabulary_layer:
        return f"the adapter changes {layer}, which vLLM's --enable-lora refuses for many models and versions"
    if served.rank is not None and served.rank > _VLLM_RANKS[-1]:
        return f"the adapter's rank is {served.rank}, and vLLM's --max-lora-rank takes {_VLLM_RANKS[-1]} at most"
    wrapped = (served.architecture or "").endswith("ForConditionalGeneration")
    if wrapped and not any("language_model" in module for module in served.modules):
        return (
            f"vLLM keeps the layers of {served.architecture} under language_model, and serves an adapter without that "
            "name as the bare base model, without a word"
        )
    return None


def vllm_command(served: Served, path: str) -> str:
    """The command that serves what is at `path`: a folder, or a repository on the Hub."""
    if served.merged:
        return f"vllm serve {shlex.quote(path)}"
    rank = next((rank for rank in _VLLM_RANKS if rank >= (served.rank or 0)), _VLLM_RANKS[-1])
    return (
        f"vllm serve {shlex.quote(served.base_model)} --enable-lora --max-lora-rank {rank} "
        f"--lora-modules {shlex.quote(f'{served.name}={path}')}"
    )


def vllm_script(served: Served) -> str:
    """`serve_vllm.sh`: the command, run in the folder that it is in, with the options it is given.

    Raises:
        RunError: vLLM would not serve it as it was trained.
    """
    if problem := vllm_problem(served):
        raise RunError(f"--export vllm: {problem}", hint=_MERGE)
    name = f" --served-model-name {shlex.quote(served.name)}" if served.merged else ""
    comment = "# sh serve_vllm.sh --port 8000: any option of `vllm serve` may follow."
    if not served.merged and "/" not in served.base_model:
        comment += f"\n# {served.base_model} was a folder: put its path in place of the name."
    return f'#!/bin/sh\n{comment}\ncd "$(dirname "$0")" || exit 1\nexec {vllm_command(served, ".")}{name} "$@"\n'


# --- Ollama


def check_ollama(served: Served) -> None:
    """Refuse an adapter that Ollama would refuse, or serve otherwise than it was trained.

    Its converter knows the adapters of two architectures, and of their layers those of attention and MLP; it hands on
    `lora_alpha` alone (https://github.com/ollama/ollama/blob/main/convert/convert_llama_adapter.go).

    Raises:
        RunError: it is one.
    """
    if served.merged:
        return
    problem = None
    if layer := served.vocabulary_layer:
        problem = f"the adapter changes {layer}, which Ollama's ADAPTER does not take"
    elif served.architecture not in _OLLAMA_ADAPTERS:
        problem = (
            f"Ollama's ADAPTER does not take adapters of {served.architecture or 'an unknown architecture'}: only of "
            f"{', '.join(sorted(_OLLAMA_ADAPTERS))}"
        )
    elif served.settings.get("use_rslora") or served.settings.get("alpha_pattern"):
        problem = "the adapter is scaled by √rank or layer by layer, which Ollama's ADAPTER does not know of"
    if problem:
        raise RunError(f"--export ollama: {problem}", hint=_MERGE)


def modelfile(
    served: Served, template: "GoTemplate", stops: Sequence[str], sampling: Mapping[str, float]
) -> tuple[str, list[str]]:
    """Ollama's Modelfile, and what its user has to know, which stands in it as comments too.

    Args:
        served: what `check_ollama` takes.
        template: the chat template.
        stops: the texts of the tokens that end an answer.
        sampling: what the base's generation configuration says.
    """
    notes = list(template.notes)
    if served.merged and served.architecture in _OLLAMA_MODELS:
        source = "FROM ."
    elif served.merged:
        source = "FROM ./model.gguf"
        notes.append(
            f"Ollama does not convert {served.architecture} itself; llama.cpp makes the file that FROM names: "
            "python convert_hf_to_gguf.py . --outfile model.gguf"
        )
    else:
        source = f"FROM {served.base_model}\nADAPTER ."
        notes += [
            f"Ollama has names of its own: put its name of {served.base_model} into FROM, not quantised if there is "
            "one, or a folder or GGUF file of it",
            # https://github.com/ollama/ollama/issues/13314
            "Ollama looks for model*.safetensors only: before `ollama create`, here: ln -s adapter_model.safetensors "
            "model.safetensors",
        ]
    lines = [
        "# ollama create NAME -f Modelfile; for conversations, without tools or images.",
        *(f"# {note}" for note in notes),
        source,
        f'TEMPLATE """{template.text}"""',
        *(f"PARAMETER stop {_quoted(stop)}" for stop in stops),
        *(f"PARAMETER {name} {sampling[name]:g}" for name in _SAMPLING if name in sampling),
    ]
    return "\n".join(lines) + "\n", notes


def ollama_files(served: Served, base: Path | None) -> tuple[str, list[str]]:
    """The Modelfile of what is served, with the base model's chat template, and what its user has to know.

    Raises:
        RunError: Ollama would not serve it as it was trained, or the base is not on this machine.
        ModelError: its chat template cannot be written as Ollama's.
    """
    from transformers import GenerationConfig

    from tinkertools.adapters.go_template import make_go_template
    from tinkertools.chat.templates import ChatTemplateRenderer
    from tinkertools.chat.tokenizing import end_of_turn_tokens, load_tokenizer

    if base is None:
        raise RunError(
            f"--export ollama: {served.base_model} is not on this machine, and its chat template is needed",
            hint=f"hf download {served.base_model}, or --base-model FOLDER; then the same command again",
        )
    check_ollama(served)
    tokenizer = load_tokenizer(str(base))
    template = make_go_template(tokenizer, served.base_model)
    tokens = ChatTemplateRenderer(tokenizer, end_of_turn_tokens(str(base), tokenizer)).stop_tokens
    stops = [str(tokenizer.convert_ids_to_tokens(token)) for token in tokens]
    sampling: dict[str, float] = {}
    if (base / "generation_config.json").is_file():
        config = GenerationConfig.from_pretrained(base)
        values = {name: getattr(config, name, None) for name in _SAMPLING} if config.do_sample else {}
        sampling = {name: value for name, value in values.items() if value is not None}
    return modelfile(served, template, stops, sampling)


def _quoted(text: str) -> str:
    """A value as a Modelfile takes it: https://github.com/ollama/ollama/blob/main/parser/parser.go."""
    return f'"""{text}"""' if '"' in text else f'"{text}"'
