"""What servers get beside the weights: Ollama's template says what the chat template says, or it is refused."""

import importlib.util
import json
import shutil
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tinkertools.adapters.export import (
    Served,
    check_ollama,
    modelfile,
    modules_of,
    ollama_files,
    vllm_command,
    vllm_problem,
    vllm_script,
)  # fmt: skip
from tinkertools.adapters.go_interpreter import run
from tinkertools.adapters.go_template import GoTemplate, make_go_template
from tinkertools.adapters.probes import talk
from tinkertools.errors import ModelError, RunError
from tinkertools.shipped import STARTER_MODEL

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ATTENTION = frozenset(("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"))
SPACE, REASONING, LATER, EMPTY, FIRST, DATE, NO_SYSTEM = (
    "takes away the space", "takes the reasoning", "a system message after the first", "an empty system message",
    "begins with an answer", "writes the date", "takes no system message",
)  # fmt: skip


def families() -> ModuleType:
    """The chat templates in TRL's wheel, as the tests of rendering load them."""
    if "families" not in sys.modules:
        file = Path(__file__).parents[1] / "chat" / "families.py"
        spec = importlib.util.spec_from_file_location("families", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["families"] = module
        spec.loader.exec_module(module)
    return sys.modules["families"]


@cache
def starter_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(STARTER_MODEL)


def tokenizer_with(template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(STARTER_MODEL)
    tokenizer.chat_template = template
    return tokenizer


def written(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def served(**changes: Any) -> Served:
    known: dict[str, Any] = {"name": "it", "base_model": "org/Base", "merged": False, "rank": 16, "modules": ATTENTION}
    return Served(**(known | {"architecture": "LlamaForCausalLM"} | changes))


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """The commands of a Modelfile, read as Ollama does: parser/parser.go, of which this is the state machine."""
    commands, state, name, read = [], "nothing", "", ""

    def value() -> str | None:
        stripped = read.strip()
        for quote in ('"""', '"'):
            if stripped.startswith(quote):
                closed = len(stripped) >= 2 * len(quote) and stripped.endswith(quote)
                return stripped[len(quote) : -len(quote)] if closed else None
        return stripped

    for character in text + "\n":
        space, newline = character in " \t", character in "\r\n"
        if state == "nothing" and not space and not newline:
            state, read = ("comment", "") if character == "#" else ("name", character)
        elif state == "comment" and newline:
            state = "nothing"
        elif state == "name":
            if space and read.lower() == "parameter":
                state, read = "parameter", ""
            elif space:
                state, name, read = "value", read.lower(), ""
            else:
                assert character.isascii()
                assert character.isalpha()
                read += character
        elif state == "parameter":
            state, name, read = ("value", read, "") if space else (state, name, read + character)
        elif state == "value":
            found = value()
            if (space or newline) and found is not None and not space:
                commands.append((name, found))
                state, read = "nothing", ""
            elif space or newline or character.isprintable():  # others are lost
                read += character
    assert state == "nothing"
    return commands


# --- the template


# What is said of each template in TRL's wheel, but for those that are written as they are, without a word.
NOTES = {
    "cohere": {SPACE}, "cohere2": {LATER, EMPTY}, "deepseek_r1_distill": {REASONING, LATER},
    "deepseekv3": {REASONING, LATER}, "diffusion_gemma": {SPACE}, "gemma": {SPACE, NO_SYSTEM}, "gemma3": {SPACE},
    "gemma4": {SPACE}, "gemma4_v2": {SPACE}, "gemma4_v3": {SPACE}, "gemma4_v4": {SPACE}, "gemma4_v5": {SPACE},
    "glm4moe": {SPACE, REASONING}, "gptoss": {DATE, EMPTY, FIRST}, "lfm2": {EMPTY}, "lfm2_v2": {EMPTY},
    "lfm2_2_5": {REASONING, EMPTY}, "lfm2_2_5_v2": {REASONING, EMPTY}, "lfm2_2_5_vl": {REASONING, EMPTY},
    "llama3": {SPACE}, "llama3_1": {SPACE}, "llama3_2": {SPACE, DATE}, "muse_glimmer": {DATE, LATER},
    "nemotron_3_nano": {SPACE, REASONING}, "nemotron_3_super": {SPACE, REASONING},
    "nemotron_3_ultra": {SPACE, REASONING}, "nemotron_3_5_lightning": {SPACE, REASONING}, "phi3": {FIRST},
    "phi3_5": {EMPTY, FIRST}, "qwen3": {REASONING}, "qwen3_5_think": {SPACE, REASONING},
    "qwen3_6": {SPACE, REASONING}, "qwen3_8": {SPACE, EMPTY}, "qwen3_5_nothink": {SPACE, REASONING},
}  # fmt: skip


def test_the_templates_that_trl_ships() -> None:
    known = families()
    if known.template_folder() is None:
        pytest.skip("trl, whose wheel holds the chat templates, is absent")
    found = {}
    for template in known.TEMPLATES:
        if template.is_twin:
            continue
        made = make_go_template(known.make_tokenizer(template), template.name)
        plain = known.Plain.of(template)
        for roles in ("u", "uau", "uauau") + (("su", "suau") if template.system_refused is None else ()):
            messages = talk(roles, *(f"{role} says {i}: {{{{ x }}}}" for i, role in enumerate(roles)))
            assert run(made.text, messages) == plain.prompt_text(messages), template.name
        if words := {key for key in (SPACE, REASONING, LATER, EMPTY, FIRST, DATE, NO_SYSTEM) if key in str(made.notes)}:
            found[template.name] = words
        assert len(made.notes) == len(words), made.notes
    assert found == NOTES


# A template's own text that Go or a Modelfile would read otherwise, and forms of other families.
OTHERS = {
    "braces": CHATML.replace("'\n' + m", "'{{\n{' + m"),
    "quotes": CHATML.replace("<|im_start|>", '"""\u00a0\u2028\ue000\r\t"'),
    "a default system message": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nHi.<|im_end|>\n' }}"
    "{% endif %}" + CHATML,
    "llama 2": "{% set at = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}{% set at.s = "
    "'<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}{% elif m.role == 'user' %}{{ '<s>[INST] ' + at.s + m.content + "
    "' [/INST]' }}{% set at.s = '' %}{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}",
    "mistral 7b 0.3": "{% set at = namespace(s='') %}{% if messages[0].role == 'system' %}{% set at.s = "
    "messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}{{ '<s>' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (at.s if loop.last else '') + m.content + '[/INST]' }}"
    "{% elif m.role == 'system' %}{{ raise_exception('roles must alternate') }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}",
    "the first turn differs": "{% for m in messages %}{% if m.role == 'user' %}{{ 'FIRST ' if loop.first else 'Q ' }}"
    "{% elif m.role == 'system' %}{{ 'S ' }}{% endif %}{{ m.content }}{% endfor %}{{ 'A ' }}",
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_templates(name: str) -> None:
    tokenizer = tokenizer_with(OTHERS[name])
    made = make_go_template(tokenizer, name)
    text, _ = modelfile(served(merged=True), made, [], {})
    (read,) = (value for command, value in read_modelfile(text) if command == "template")
    assert read == made.text
    for roles in ("u", "uau", "su", "suau", "suauau"):
        messages = talk(roles, *(f"text {i}" for i in range(len(roles))))
        assert run(read, messages) == written(tokenizer, messages)


REFUSED = {
    "{{ messages | length }}": "leaves out or moves texts in user",
    "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}": "writes texts twice",
    "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}": "later turns are not written as the first",
    CHATML + "{{ '!' if messages[0].role == 'system' }}": "a system message changes how the turns after it are written",
    CHATML.replace("m.content +", "m.content | upper +"): "leaves out or moves texts",
    CHATML.replace("m.content +", "m.content | replace('4', '5') +"): "it writes \"5.<|im_end|>",
    "{{ raise_exception('never') }}": "never",
}  # fmt: skip


@pytest.mark.parametrize("template", REFUSED)
def test_what_cannot_be_written_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match="cannot be written as Ollama's TEMPLATE") as refused:
        make_go_template(tokenizer_with(template), "org/Base")
    assert REFUSED[template].replace('"', "'") in refused.value.message.replace('"', "'")
    assert "--export vllm" in str(refused.value.hint)


def test_the_first_token_is_left_to_ollama_where_the_tokenizer_puts_it() -> None:
    bos = "<|im_start|>"
    tokenizer = tokenizer_with("{{ bos_token }}" + CHATML.replace("<|im_start|>", "@"))
    tokenizer.bos_token = bos
    assert make_go_template(tokenizer, "it").text.count(bos) == 2  # a system message or none
    number = tokenizer.convert_tokens_to_ids(bos)
    post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    tokenizer.backend_tokenizer.post_processor = post_processor
    made = make_go_template(tokenizer, "it")
    assert bos not in made.text
    assert made.notes == ()
    messages = talk("suau", "a", "b", "c", "d")
    assert bos + run(made.text, messages) == written(tokenizer, messages)
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "@")
    assert make_go_template(tokenizer, "it").notes == (
        f"Ollama puts {bos} before every conversation, the chat template does not",
    )


conversations = st.builds(
    lambda system, turns, last: talk(
        "s" * (system is not None) + "ua" * len(turns) + "u",
        *([] if system is None else [system]), *(text for turn in turns for text in turn), last,
    ),
    st.none() | st.text(min_size=1), st.lists(st.tuples(st.text(), st.text()), max_size=4), st.text(),
)  # fmt: skip


@settings(max_examples=200)
@given(conversations)
def test_any_conversation(messages: list[dict[str, str]]) -> None:
    for tokenizer, template in starter_and_chatml():
        assert run(template, messages) == written(tokenizer, messages)


@cache
def starter_and_chatml() -> list[tuple[Any, str]]:
    found = []
    for tokenizer in (starter_tokenizer(), tokenizer_with(CHATML)):
        made = make_go_template(tokenizer, "it")
        assert made.notes == ()
        found.append((tokenizer, made.text))
    return found


@pytest.mark.parametrize("bad", ["{{ if eq $i 0 }}x", "{{.Content}}", "{{ range .Tools }}{{ end }}"])
def test_the_interpreter_reads_only_its_own_language(bad: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        run(bad, talk("u", "a"))


# --- the Modelfile


def test_the_modelfile_of_the_starter() -> None:
    text, notes = ollama_files(served(merged=True, architecture="Qwen3ForCausalLM"), STARTER_MODEL)
    commands = read_modelfile(text)
    assert [name for name, _ in commands] == ["from", "template", "stop"]
    assert dict(commands)["stop"] == "<|im_end|>"
    messages = talk("suau", "Be kind.", "Hello!", "Hi.", "Bye!")
    assert run(dict(commands)["template"], messages) == written(starter_tokenizer(), messages)
    # Ollama cannot convert this architecture itself, and says nothing of it before.
    assert dict(commands)["from"] == "./model.gguf"
    assert notes == [
        "Ollama does not convert Qwen3ForCausalLM itself; llama.cpp makes the file that FROM names: "
        "python convert_hf_to_gguf.py . --outfile model.gguf"
    ]
    assert f"# {notes[0]}\n" in text


def test_sampling_is_taken_from_the_generation_configuration(tmp_path: Path) -> None:
    base = shutil.copytree(STARTER_MODEL, tmp_path / "base")
    for sample, expected in ((True, [("temperature", "0.6"), ("top_p", "0.95")]), (False, [])):
        values = {"do_sample": sample, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [2, 3]}
        (base / "generation_config.json").write_text(json.dumps(values))
        commands = read_modelfile(ollama_files(served(merged=True), base)[0])
        assert [value for name, value in commands if name == "stop"] == [
            starter_tokenizer().convert_ids_to_tokens(token) for token in (2, 3)
        ]
        assert [(name, value) for name, value in commands if name in ("temperature", "top_p", "top_k")] == expected


def test_what_a_modelfile_says_of_weights_and_adapters() -> None:
    template = GoTemplate("{{ .Content }}", ("one note",))
    text, notes = modelfile(served(merged=True), template, ["</s>", '"\n"'], {"top_p": 0.9, "temperature": 0.6})
    assert notes == ["one note"]
    assert read_modelfile(text) == [
        ("from", "."), ("template", "{{ .Content }}"), ("stop", "</s>"), ("stop", '"\n"'), ("temperature", "0.6"),
        ("top_p", "0.9"),
    ]  # fmt: skip
    text, notes = modelfile(served(), template, [], {})
    assert read_modelfile(text)[:2] == [("from", "org/Base"), ("adapter", ".")]
    assert "# Ollama has names of its own: put its name of org/Base into FROM" in text
    assert "ln -s adapter_model.safetensors model.safetensors" in text
    assert len(notes) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modules": ATTENTION | {"lm_head"}}, "the adapter changes lm_head, which Ollama's ADAPTER does not take"),
        ({"modules": frozenset(("model.unembed_tokens",))}, "the adapter changes unembed_tokens"),
        ({"architecture": "Qwen3ForCausalLM"}, "does not take adapters of Qwen3ForCausalLM: only of Gemma2ForCausalLM"),
        ({"architecture": None}, "an unknown architecture"),
        ({"settings": {"use_rslora": True}}, "scaled by √rank"),
    ],
)
def test_adapters_that_ollama_does_not_take(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match="--export ollama: ") as refused:
        check_ollama(served(**changes))
    assert words in refused.value.message
    assert "--merge" in str(refused.value.hint)
    check_ollama(served())
    check_ollama(served(**changes, merged=True))


def test_a_base_model_that_is_elsewhere() -> None:
    with pytest.raises(RunError, match="org/Base is not on this machine") as refused:
        ollama_files(served(), None)
    assert "hf download org/Base" in str(refused.value.hint)


# --- vLLM


@pytest.mark.parametrize(("rank", "maximum"), [(1, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_the_command_of_an_adapter(rank: int, maximum: int) -> None:
    assert vllm_command(served(rank=rank), "me/it") == (
        f"vllm serve org/Base --enable-lora --max-lora-rank {maximum} --lora-modules it=me/it"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modules": ATTENTION | {"lm_head"}}, "the adapter changes lm_head"),
        ({"modules": ATTENTION | {"model.embed_tokens"}}, "the adapter changes embed_tokens"),
        ({"rank": 513}, "rank is 513, and vLLM's --max-lora-rank takes 512 at most"),
        ({"architecture": "Qwen3_5ForConditionalGeneration"}, "under language_model"),
    ],
)
def test_adapters_that_vllm_does_not_serve(changes: dict[str, Any], words: str) -> None:
    problem = vllm_problem(served(**changes))
    assert problem is not None
    assert words in problem
    with pytest.raises(RunError, match="--export vllm: ") as refused:
        vllm_script(served(**changes))
    assert "--merge" in str(refused.value.hint)
    assert vllm_problem(served(**changes, merged=True)) is None


def test_adapters_of_wrapped_models_with_full_names_are_served() -> None:
    modules = frozenset(("model.language_model.layers.0.mlp.up_proj",))
    assert vllm_problem(served(architecture="Gemma3ForConditionalGeneration", modules=modules)) is None


@pytest.mark.parametrize("merged", [True, False])
def test_the_script_runs_where_it_is(merged: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    script, vllm = folder / "serve_vllm.sh", tmp_path / "vllm"
    script.write_text(vllm_script(served(merged=merged, name="it's", base_model="base")))
    vllm.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    for file in (script, vllm):
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(
        [script, "--port", "8000"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    adapter = ["serve", "base", "--enable-lora", "--max-lora-rank", "16", "--lora-modules", "it's=."]
    weights = ["serve", ".", "--served-model-name", "it's"]
    assert done.stdout.splitlines() == [str(folder), *(weights if merged else adapter), "--port", "8000"]


def test_a_file_that_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunError, match="not readable as an adapter"):
        modules_of(tmp_path)
