"""The chat templates in the `trl` wheel, each with a small tokenizer that has its family's control tokens.

The tokenizers are trained here, on a few words, in the forms that the families' own have: byte-level BPE that merges
runs of newlines, SentencePiece's BPE with spaces as `▁` (Gemma), or that with a `▁` before every piece (Llama 2, Phi).
"""

import re
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self
from unittest import mock

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tinkertools.chat.templates import ChatTemplateRenderer
from tinkertools.config import TEMPLATE_DATE

Form = Literal["bytes", "merging", "gemma", "llama"]
Message = dict[str, Any]

# As Qwen's and Llama 3's tokenizers cut text: newlines stand together, and with spaces before them.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BORDERS = ("", " ", "  ", "\n", "\n\n", "\n\n\n", " \n", "\n ", ":", "\t")
_CORPUS = [f"{a}{word}{b}" for a in _BORDERS for b in _BORDERS for word in ("Hi", "user", "assistant", "model")]


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer has beside words: `stops` are what the generation configuration of its models names."""

    controls: tuple[str, ...]
    stops: tuple[str, ...]
    eos: str
    bos: str | None = None
    form: Form = "merging"
    # Tokens that are not special, such as `<think>`.
    words: tuple[str, ...] = ()
    # Control tokens that swallow the spaces and newlines after them.
    swallow: tuple[str, ...] = ()


COHERE = Tokens(
    ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
     "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|END_OF_TURN_TOKEN|>",), "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>",
)  # fmt: skip
DEEPSEEK = Tokens(
    ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁outputs▁begin｜>",
     "<｜tool▁outputs▁end｜>"),
    ("<｜end▁of▁sentence｜>",), "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", words=("<think>", "</think>"),
)  # fmt: skip
GEMMA = Tokens(("<start_of_turn>", "<end_of_turn>"), ("<eos>", "<end_of_turn>"), "<eos>", "<bos>", "gemma")
GEMMA4 = Tokens(
    ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>", "<|tool_call>",
     "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
    ("<eos>", "<turn|>", "<|tool_response>"), "<eos>", "<bos>", "gemma",
)  # fmt: skip
GLM = Tokens(
    ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    ("<|endoftext|>", "<|user|>", "<|observation|>"), "<|endoftext|>",
    words=("<think>", "</think>", "<tool_call>", "</tool_call>"),
)  # fmt: skip
GPT_OSS = Tokens(
    ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>", "<|constrain|>"),
    ("<|return|>", "<|endoftext|>", "<|call|>"), "<|return|>", "<|startoftext|>",
)  # fmt: skip
IDEFICS = Tokens(("<end_of_utterance>", "<image>"), ("<|end_of_text|>", "<end_of_utterance>"), "<|end_of_text|>",
                 "<|begin_of_text|>")  # fmt: skip
LFM2 = Tokens(
    ("<|im_start|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>", "<|tool_call_end|>"),
    ("<|im_end|>",), "<|im_end|>", "<|startoftext|>",
)  # fmt: skip
LLAMA3 = Tokens(
    ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
    ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), "<|eot_id|>", "<|begin_of_text|>",
)  # fmt: skip
LLAVA = Tokens(("<image>",), ("</s>",), "</s>", "<s>", "llama")
MUSE = Tokens(("<|start|>", "<|message|>", "<|eom|>"), ("<|eot|>",), "<|eot|>", "<|begin_of_text|>")
NEMOTRON = Tokens(("<|im_start|>",), ("</s>", "<|im_end|>"), "<|im_end|>", "<s>", words=("<think>", "</think>"))
PHI = Tokens(
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), ("<|endoftext|>", "<|assistant|>", "<|end|>"),
    "<|endoftext|>", "<s>", "llama", swallow=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)  # fmt: skip
QWEN = Tokens(
    ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"), ("<|im_end|>", "<|endoftext|>"),
    "<|im_end|>", words=("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
)  # fmt: skip
SMOLVLM = Tokens(("<|im_start|>", "<end_of_utterance>", "<image>"), ("<end_of_utterance>",), "<end_of_utterance>")


# Why a conversation is refused.
OTHER_PROMPT = "the chat template writes the conversation before this turn differently from the prompt"
NO_END = "the chat template ends this turn without an end-of-turn token (<|endoftext|> or <|user|> or <|observation|>)"
NO_SYSTEM = "the chat template refuses the conversation: System role not supported"
NO_REASONING = "the chat template leaves this turn's reasoning out"

# What stands for the reasoning in `Template.thought`, and where the reasoning goes in a template that knows of none.
REASONING = "Because."
THOUGHT = f"<think>\n{REASONING}\n</think>\n\n"


@dataclass(frozen=True)
class Template:
    """A template and what is known of it: an assistant's turn is `before`, its text, and `end`."""

    name: str
    tokens: Tokens
    end: str
    before: str = ""
    # What stands before the text instead where the message has the reasoning REASONING.
    thought: str = THOUGHT
    # Whether earlier turns are written otherwise than they were sampled, so that each has an example of its own:
    # always, or only where they had reasoning.
    rewrites: bool = False
    rewrites_thought: bool = False
    # Why a conversation is refused; why one with a system message is, and one whose answers have reasoning.
    refused: str | None = None
    system_refused: str | None = None
    thought_refused: str | None = None
    # What it takes away around an assistant's text.
    trims: Literal["nothing", "newlines before", "spaces"] = "nothing"
    # It reads texts only where they stand in lists of parts.
    parts: bool = False
    # A tokenizer that merges newlines has a token across the end of its generation prompt.
    straddles: bool = False

    @property
    def is_twin(self) -> bool:
        """Whether it is TRL's copy of another template with marks around what the assistant says."""
        return self.name.endswith("_training")

    @property
    def knows_reasoning(self) -> bool:
        """Whether it looks for reasoning in a field of its own; what its comments tell does not count."""
        return re.search(r"reasoning_content|message\.thinking", re.sub(r"(?s)\{#.*?#\}", "", self.source)) is not None

    @property
    def source(self) -> str:
        """The template itself."""
        folder = template_folder()
        assert folder is not None
        return (folder / f"{self.name}.jinja").read_text()


def _family(*names: str, **known: Any) -> list[Template]:
    return [Template(name, **known) for name in names]


_QWEN3_5: dict[str, Any] = {
    "tokens": QWEN, "end": "<|im_end|>", "before": "\n</think>\n\n", "thought": "Because.\n</think>\n\n",
    "trims": "spaces", "straddles": True,
}  # fmt: skip
_QWEN3_5_NO_THINKING = _QWEN3_5 | {"before": "", "straddles": False, "thought_refused": OTHER_PROMPT}
_NEMOTRON: dict[str, Any] = {
    "tokens": NEMOTRON, "end": "<|im_end|>", "refused": OTHER_PROMPT, "rewrites_thought": True, "trims": "spaces",
}  # fmt: skip

TEMPLATES = [
    *_family("cohere", "cohere_training", tokens=COHERE, end="<|END_OF_TURN_TOKEN|>", trims="spaces"),
    *_family("cohere2", "cohere2_training", tokens=COHERE, end="<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    *_family("deepseek_r1_distill", "deepseekv3", "deepseekv3_training", tokens=DEEPSEEK, end="<｜end▁of▁sentence｜>",
             refused=OTHER_PROMPT, thought_refused=OTHER_PROMPT),
    *_family("deepseek_r1_distill_training", tokens=DEEPSEEK, end="<｜end▁of▁sentence｜>", refused=OTHER_PROMPT,
             thought="Because.\n</think>\n\n"),
    *_family("diffusion_gemma", "diffusion_gemma_training", "gemma4_v5", tokens=GEMMA4, end="<turn|>", trims="spaces",
             thought="<|channel>thought\nBecause.\n<channel|>", rewrites_thought=True),
    *_family("gemma", "gemma_training", tokens=GEMMA, end="<end_of_turn>", trims="spaces", system_refused=NO_SYSTEM),
    *_family("gemma3", "gemma3_training", tokens=GEMMA, end="<end_of_turn>", trims="spaces"),
    *_family("gemma4_v2", tokens=GEMMA4, end="<turn|>", trims="spaces"),
    *_family("gemma4", "gemma4_v3", "gemma4_v4", tokens=GEMMA4, end="<turn|>", trims="spaces",
             thought_refused=NO_REASONING),
    *_family("glm4moe", tokens=GLM, end="<|user|>", refused=NO_END, thought_refused=NO_END),
    *_family("glm4moe_training", tokens=GLM, end="<|user|>", before="\n<think></think>\n", trims="spaces",
             thought="\n<think>Because.</think>\n", rewrites_thought=True),
    *_family("gptoss", "gptoss_training", tokens=GPT_OSS, end="<|return|>", rewrites=True,
             before="<|channel|>final<|message|>", rewrites_thought=True,
             thought="<|channel|>analysis<|message|>Because.<|end|><|start|>assistant<|channel|>final<|message|>"),
    *_family("idefics3", "idefics3_training", tokens=IDEFICS, end="<end_of_utterance>", before=" ", parts=True,
             thought=" " + THOUGHT),
    *_family("lfm2", "lfm2_training", "lfm2_v2", "lfm2_v2_training", tokens=LFM2, end="<|im_end|>"),
    *_family("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", tokens=LFM2, end="<|im_end|>",
             thought="<think>Because.</think>", rewrites_thought=True),
    *_family("llama3", "llama3_training", "llama3_1", "llama3_2", tokens=LLAMA3, end="<|eot_id|>", trims="spaces"),
    *_family("llava_next", "llava_next_training", tokens=LLAVA, end="</s>", before=" ", parts=True,
             thought=" " + THOUGHT),
    *_family("muse_glimmer", "muse_glimmer_training", tokens=MUSE, end="<|eot|>", before=" to=user<|message|>",
             thought=" to=self<|message|>Because.<|eom|><|start|>assistant to=user<|message|>"),
    *_family("nemotron_3_nano", "nemotron_3_nano_training", "nemotron_3_super", "nemotron_3_super_training",
             thought="Because.\n</think>\n", **_NEMOTRON),
    *_family("nemotron_3_ultra", "nemotron_3_ultra_training", "nemotron_3_5_lightning",
             "nemotron_3_5_lightning_training", thought="Because.</think>", **_NEMOTRON),
    *_family("phi3", "phi3_training", "phi3_5", "phi3_5_training", tokens=PHI, end="<|end|>"),
    *_family("qwen2_5", "qwen2_5_training", "qwen2_5_vl", "qwen2_5_vl_training", "qwen3_vl", "qwen3_vl_training",
             "qwen3_instruct_2507", "qwen3_instruct_2507_training", tokens=QWEN, end="<|im_end|>"),
    *_family("qwen3", tokens=QWEN, end="<|im_end|>", before="<think>\n\n</think>\n\n", rewrites=True,
             rewrites_thought=True, trims="newlines before"),
    *_family("qwen3_training", tokens=QWEN, end="<|im_end|>", before="<think>\n\n</think>\n\n",
             trims="newlines before"),
    *_family("qwen3_5_think", "qwen3_6", rewrites=True, rewrites_thought=True, **_QWEN3_5),
    *_family("qwen3_5_think_training", "qwen3_6_training", "qwen3_8", "qwen3_8_training", **_QWEN3_5),
    *_family("qwen3_5_nothink", rewrites=True, **_QWEN3_5_NO_THINKING),
    *_family("qwen3_5_nothink_training", **_QWEN3_5_NO_THINKING),
    *_family("smolvlm", "smolvlm_training", tokens=SMOLVLM, end="<end_of_utterance>", before=" ", parts=True,
             thought=" " + THOUGHT),
]  # fmt: skip


def template_folder() -> Path | None:
    """Where TRL keeps its templates; it is not imported, since that loads torch and more."""
    spec = find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


needs_trl = pytest.mark.skipif(template_folder() is None, reason="trl, whose wheel holds the chat templates, is absent")


@cache
def _trained(form: Form) -> str:
    """A tokenizer of a form without any control tokens, as JSON."""
    settings: dict[str, Any] = {"show_progress": False, "vocab_size": 600}
    if form in ("bytes", "merging"):
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLIT), "isolated"), byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        settings |= {"initial_alphabet": byte_level.alphabet()} | ({"vocab_size": 256} if form == "bytes" else {})
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        spaces: list[Any] = [normalizers.Replace(" ", "▁")]
        joins: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if form == "llama":
            spaces.insert(0, normalizers.Prepend("▁"))
            joins.append(decoders.Strip(" ", 1, 0))
        tokenizer.normalizer = normalizers.Sequence(spaces)
        # Newlines have tokens of their own; words and the spaces before them are learnt apart from them.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|▁*[^▁\n]+|▁+"), "isolated")
        tokenizer.decoder = decoders.Sequence(joins)
        settings["special_tokens"] = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(_CORPUS, trainers.BpeTrainer(**settings))
    if form in ("gemma", "llama"):
        tokenizer.pre_tokenizer = None
    return str(tokenizer.to_str())


def make_tokenizer(template: Template, form: Form | None = None) -> Any:
    """A tokenizer with the template's control tokens, in its family's form unless another is asked for."""
    tokens = template.tokens
    tokenizer = Tokenizer.from_str(_trained(form or tokens.form))
    special = dict.fromkeys([tokens.bos, tokens.eos, *tokens.stops, *tokens.controls])
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=t in tokens.swallow) for t in special if t]
    )
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in tokens.words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=tokens.bos, eos_token=tokens.eos, chat_template=template.source
    )


def make_renderer(template: Template, form: Form | None = None) -> ChatTemplateRenderer:
    """The renderer of a model with the template and its family's tokens."""
    tokenizer = make_tokenizer(template, form)
    return ChatTemplateRenderer(tokenizer, tokenizer.convert_tokens_to_ids(list(template.tokens.stops)))


class TheDay(datetime):
    """The clock of templates that write the date."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """The day that templates are given."""
        return cls(TEMPLATE_DATE.year, TEMPLATE_DATE.month, TEMPLATE_DATE.day, tzinfo=tz)


@dataclass(frozen=True)
class Plain:
    """What `transformers` makes of a template by itself: the truth that the renderer is held against."""

    template: Template
    form: Form
    tokenizer: Any = field(repr=False)

    @classmethod
    def of(cls, template: Template, form: Form | None = None) -> "Plain":
        """The same tokenizer as the renderer's, but another object."""
        return cls(template, form or template.tokens.form, make_tokenizer(template, form))

    def apply(self, messages: list[Message], **options: Any) -> Any:
        """`apply_chat_template`, on the day that templates are given."""
        if not self.template.knows_reasoning:  # it stands in the text
            messages = [
                {"role": m["role"], "content": THOUGHT + m["content"]} if "reasoning_content" in m else m
                for m in messages
            ]
        if self.template.parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        with mock.patch.object(chat_template_utils, "datetime", TheDay):
            return self.tokenizer.apply_chat_template(messages, **options)

    def text(self, tokens: list[int]) -> str:
        """The text of tokens, control tokens included."""
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def prompt_text(self, messages: list[Message]) -> str:
        """The generation prompt as text."""
        return str(self.apply(messages, tokenize=False, add_generation_prompt=True))

    def prompt(self, messages: list[Message]) -> list[int]:
        """The generation prompt."""
        return list(self.apply(messages, tokenize=True, return_dict=False, add_generation_prompt=True))

    def said(self, text: str, before: str) -> str:
        """What the model must emit to say a text, in the tokenizer's words."""
        if self.template.trims == "spaces":
            text = text.strip()
        elif self.template.trims == "newlines before":
            text = text.lstrip("\n")
        said = before + text + self.template.end
        if not self.template.tokens.swallow:
            return said
        # The last control token of the prompt has taken the spaces, and the tokenizer puts one before a word.
        return " " * (self.form == "llama") + said.lstrip()
