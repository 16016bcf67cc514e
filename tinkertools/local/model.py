"""A base model in memory: one copy of its weights, any number of adapters on it, one thread that uses them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tinkertools.chat.tokenizing import LOADING_HINT, load_tokenizer
from tinkertools.config import LORA_ALPHA
from tinkertools.errors import EngineError, ModelError
from tinkertools.local import cache, lora, memory, packing
from tinkertools.local.checkpoints import read_adapter
from tinkertools.local.limits import max_length_of, read_config
from tinkertools.local.vocabulary import OutputLayer
from tinkertools.local.worker import Worker
from tinkertools.reporting import Notify

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Parts of a module's path that tell attention from MLP in the decoder layers of Hugging Face's models.
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")

# Logits of the check that a model's output is its output layer on its last hidden states.
_LOGIT_TOLERANCE = 1e-3


class BaseModel:
    """The frozen weights of a base model, its tokenizer, and the adapters made or loaded on it."""

    def __init__(self, name: str, *, device: str | None = None, notify: Notify = warnings.warn) -> None:
        self.name = name
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(name)
        self._peft: PeftModel | None = None
        self._adapters = 0
        self.budget = memory.TokenBudget(self.device, notify)
        self.worker = Worker(Path(name).name)
        try:
            self._model: PreTrainedModel = self.worker.submit(self._load).result()
        except BaseException:
            self.worker.close(cancel=True)
            raise

    @property
    def config(self) -> Any:
        """The configuration of the text model."""
        return self._model.config.get_text_config()

    @property
    def max_length(self) -> int:
        """The most tokens a sequence may have."""
        return max_length_of(self.config)

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        embeddings: Any = self._model.get_input_embeddings()
        return int(embeddings.weight.shape[0])

    def hidden_states(
        self, tokens_N: torch.Tensor, positions_N: torch.Tensor, attention: packing.Attention
    ) -> torch.Tensor:
        """The decoder's output (N, hidden) for a row of tokens that belong together as `attention` says."""
        return _hidden_states(self._model, tokens_N, positions_N, attention)

    def output_layer(self, adapter: str | None) -> OutputLayer:
        """The layer that makes logits of hidden states, as `using(adapter)` computes it.

        Raises:
            EngineError: the adapter makes more of it than W + scale · B A.
        """
        layer: Any = self._model.get_output_embeddings()
        base: Any = getattr(layer, "base_layer", layer)
        trained = adapter if adapter in getattr(layer, "lora_A", ()) else None
        if type(base) is not torch.nn.Linear or (trained and not lora.is_plain(layer, trained)):
            raise EngineError(
                f"the output layer of {self.name} or of its adapter is more than a linear layer with plain LoRA",
                hint="merge the adapter, or use a Tinker server",
            )
        if trained is None:
            return OutputLayer(base.weight, base.bias)
        a, b = layer.lora_A[trained].weight, layer.lora_B[trained].weight
        return OutputLayer(base.weight, base.bias, a, b, layer.scaling[trained])

    def cost(self, tokens: int, logits: int) -> float:
        """How much work a forward pass is, in multiplications: for some tokens, and logits for some of them."""
        layer: Any = self._model.get_output_embeddings()
        output: torch.Tensor = getattr(layer, "base_layer", layer).weight
        return float(tokens * self._layer_parameters + logits * output.numel())

    def bytes_per_token(self, tokens: int) -> float:
        """What a pass with the adapter in use keeps for its gradient, measured with that many tokens."""
        ids = torch.arange(tokens, device=self.device) % self.vocabulary
        positions = torch.zeros(tokens, dtype=torch.long, device=self.device)
        parameters = frozenset(p.untyped_storage().data_ptr() for p in self._model.parameters())
        apart = packing.Packed([1] * tokens)
        return memory.saved_bytes(lambda: self.hidden_states(ids, positions, apart), parameters) / tokens

    def logits(self, hidden_N_D: torch.Tensor) -> torch.Tensor:
        """float32 logits (N, vocabulary) for hidden states (N, hidden)."""
        output: torch.Tensor = self._model.get_output_embeddings()(hidden_N_D)
        return output.float()

    def adapter_parameters(self, adapter: str) -> dict[str, torch.nn.Parameter]:
        """The trainable tensors of an adapter by their place in the model."""
        return {name: p for name, p in self._model.named_parameters() if f".{adapter}." in name and "lora_" in name}

    def add_adapter(self, rank: int, seed: int, *, attn: bool, mlp: bool, unembed: bool) -> str:
        """A fresh adapter (A random by `seed`, B zero), on the parts that are switched on. Returns its name.

        Raises:
            EngineError: the model has no such parts.
        """
        from peft import LoraConfig

        switches = {"attn": attn, "mlp": mlp, "unembed": unembed}
        targets = sorted({name for part, on in switches.items() if on for name in self._layers[part]})
        if not targets:
            raise EngineError(
                f"{self.name}: found no layers to train in a {type(self._model).__name__}",
                hint="the embedded engine trains models with linear attention and MLP projections",
            )
        config = LoraConfig(
            r=rank,
            lora_alpha=LORA_ALPHA,
            target_modules=targets,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.name,
        )
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return self._install(config)

    def load_adapter(self, directory: Path) -> str:
        """Install the adapter of a folder in PEFT's layout. Returns its name.

        Raises:
            EngineError: the folder holds none, or one that does not fit this model in every tensor.
        """
        from peft import PeftConfig

        tensors = read_adapter(directory)
        try:
            adapter = self._install(PeftConfig.from_pretrained(str(directory)))
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise EngineError(
                f"{directory} holds no adapter that fits {self.name}: {str(error).splitlines()[0]}",
                hint="use the base model that the adapter was trained on",
            ) from error
        # Not PEFT's own loading: it leaves out in silence what it cannot place.
        self.set_adapter_state(adapter, tensors)
        return adapter

    def parts_of(self, adapter: str) -> tuple[bool, bool, bool]:
        """Whether an adapter has attention, MLP and unembedding."""
        targets = set(self.adapter_config(adapter).target_modules or ())
        return (
            bool(targets & self._layers["attn"]),
            bool(targets & self._layers["mlp"]),
            bool(targets & self._layers["unembed"]),
        )

    def copy_adapter(self, adapter: str) -> str:
        """Install a second adapter of the same values. Returns its name."""
        copy = self._install(self.adapter_config(adapter))
        self.set_adapter_state(copy, self.adapter_state(adapter))
        return copy

    def remove_adapter(self, adapter: str) -> None:
        """Free the memory of an adapter that nobody will use any more."""
        assert self._peft is not None
        others = [name for name in self._peft.peft_config if name != adapter]
        if not others:
            self._peft.unload()
            self._peft = None
            return
        # PEFT warns where it has to choose the next one itself. Each computation names its own.
        self._peft.set_adapter(others[0], inference_mode=True)
        self._peft.delete_adapter(adapter)

    def adapter_config(self, adapter: str) -> "LoraConfig":
        """The PEFT configuration of an adapter."""
        assert self._peft is not None
        return self._peft.peft_config[adapter]  # type: ignore[return-value]

    def adapter_state(self, adapter: str) -> dict[str, torch.Tensor]:
        """An adapter's tensors under PEFT's names, as they stand in `adapter_model.safetensors`."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self._peft, adapter_name=adapter, save_embedding_layers=False)
        # Copies: the caller writes them while training may go on.
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def set_adapter_state(self, adapter: str, tensors: dict[str, torch.Tensor]) -> None:
        """Overwrite an adapter's tensors.

        Raises:
            EngineError: names or shapes are not this adapter's.
        """
        from peft import set_peft_model_state_dict

        present = self.adapter_state(adapter)
        wrong = sorted(present.keys() ^ tensors.keys()) or sorted(
            name for name, tensor in tensors.items() if present[name].shape != tensor.shape
        )
        if wrong:
            raise EngineError(
                f"{len(wrong)} saved tensors do not fit the adapter on {self.name}, such as {wrong[0]}",
                hint="use the base model, rank and layers that they were saved with",
            )
        set_peft_model_state_dict(self._peft, tensors, adapter_name=adapter)

    @contextmanager
    def using(self, adapter: str | None, *, train: bool = False) -> Iterator[None]:
        """Compute with an adapter, or with the base alone (None). Only the worker's thread may."""
        if self._peft is None:
            assert adapter is None
            with torch.no_grad():
                yield
        elif adapter is None:
            with self._peft.disable_adapter(), torch.no_grad():
                yield
        else:
            self._peft.set_adapter(adapter, inference_mode=not train)
            with torch.set_grad_enabled(train):
                yield

    def _install(self, config: Any) -> str:
        from peft import PeftModel

        # All of one length: PEFT takes whatever holds a name in its own for its tensors.
        adapter = f"adapter_{self._adapters:06d}"
        self._adapters += 1
        with warnings.catch_warnings():
            # PEFT warns that merging an adapter on a tied output layer changes the input embedding as well; here none
            # is ever merged.
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=adapter)
            else:
                self._peft.add_adapter(adapter, config)
        self._peft.eval()
        lora.install(self._peft)
        return adapter

    def _load(self) -> "PreTrainedModel":
        # On the worker's thread, like all computing: OpenMP keeps a team of threads for every thread that ever
        # computed, and lets all of them sleep after each small operation once they outnumber the processors. A
        # model loaded on the main thread makes training 30 % slower.
        model = _load(self.name, torch.bfloat16 if self.device.type == "cuda" else torch.float32, self.device)
        self._layers = _trainable_layers(model)
        inner = (module for module in model.get_decoder().modules() if isinstance(module, torch.nn.Linear))
        self._layer_parameters = sum(module.weight.numel() for module in inner)
        self._check_output_layer(model)
        packing.install(model)
        self.cache_bytes_per_token = cache.check(
            partial(_hidden_states, model),
            model.config.get_text_config().num_hidden_layers,
            model.config.get_text_config().vocab_size,
            self.device,
            self.name,
        )
        return model

    def _check_output_layer(self, model: "PreTrainedModel") -> None:
        """Some families scale or cap their logits after the output layer; computing without that would be wrong."""
        ids = torch.arange(8, device=self.device)[None]
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits[0].float()
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = model.get_output_embeddings()(hidden).float()
        if not torch.allclose(whole, ours, atol=_LOGIT_TOLERANCE, rtol=_LOGIT_TOLERANCE):
            raise ModelError(
                f"{self.name}: a {type(model).__name__} changes its logits after the output layer, which the "
                "embedded engine does not do",
                hint="train it on a Tinker server",
            )


def _hidden_states(
    model: "PreTrainedModel", tokens_N: torch.Tensor, positions_N: torch.Tensor, attention: packing.Attention
) -> torch.Tensor:
    decoder: Any = model.get_decoder()
    with packing.attending(attention):
        output = decoder(input_ids=tokens_N[None], position_ids=positions_N[None], use_cache=False)
    hidden_1_N_D: torch.Tensor = output.last_hidden_state
    return hidden_1_N_D[0]


def _trainable_layers(model: "PreTrainedModel") -> dict[str, set[str]]:
    """The names of the linear layers of a plain model (no adapter in it yet), by part: attn, mlp, unembed."""
    output = model.get_output_embeddings()
    found: dict[str, set[str]] = {"attn": set(), "mlp": set(), "unembed": set()}
    for name, module in model.named_modules():
        path = name.split(".")
        if module is output:
            found["unembed"].add(path[-1])
        elif isinstance(module, torch.nn.Linear):
            if any(part in path for part in _ATTENTION):
                found["attn"].add(path[-1])
            elif any(part in path for part in _MLP):
                found["mlp"].add(path[-1])
    return found


def _load(name: str, dtype: torch.dtype, device: torch.device) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    config = read_config(name)
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype)
    except Exception as error:
        raise ModelError(
            f"the model {name} cannot be loaded: {str(error).strip().splitlines()[0]}",
            hint=LOADING_HINT,
        ) from error
    model.requires_grad_(requires_grad=False)
    model.eval()
    return model.to(device)  # type: ignore[no-any-return]
