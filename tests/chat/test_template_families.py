"""Chat templates of many model families: what is trained is what would be sampled, or the conversation is refused."""

import json

import numpy as np
import pytest
from families import REASONING, TEMPLATES, Form, Message, Plain, Template, make_renderer, needs_trl, template_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import mostly_slow

from tinkertools.chat.examples import Example, RenderError
from tinkertools.chat.templates import ChatTemplateRenderer

pytestmark = needs_trl

BY_NAME = {template.name: template for template in TEMPLATES}
ACCEPTED = [template for template in TEMPLATES if template.refused is None]
FORMS: list[Form | None] = [None, "bytes"]

# Newlines and spaces at the borders, where tokenizers merge; characters of several bytes, and of several code points.
HARD = ["\n\nWie heißt das?\n", "\n  Grüße, 世界! 🙂\n\n", " שלום 👩‍👩‍👧 ", "\t1\n\n2\r\n"]


def chat(*texts: str, system: str | None = None) -> list[Message]:
    messages = [{"role": "system", "content": system}] if system is not None else []
    return [*messages, *({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts))]


TWO_TURNS = chat("Hello?", "Hi there!", "What is 2 plus 2?", "It is 4.")
THREE_TURNS = [*TWO_TURNS, *chat("Thanks!", "You are welcome.\nAnything else?")]
CONVERSATIONS = {
    "two turns": TWO_TURNS,
    "three turns": THREE_TURNS,
    "system": chat("Hello?", "Hi there!", "What is 2 plus 2?", "It is 4.", system="Be kind."),
    "hard": chat(*HARD),
}


def render(renderer: ChatTemplateRenderer, messages: list[Message]) -> list[Example] | RenderError:
    return next(iter(renderer.render([{"messages": messages}])))


def accepted(renderer: ChatTemplateRenderer, messages: list[Message]) -> list[Example]:
    found = render(renderer, messages)
    assert not isinstance(found, RenderError), found
    return found


def check(
    renderer: ChatTemplateRenderer, plain: Plain, messages: list[Message], *, reasoning: bool = False,
    exact: bool = True,
) -> None:  # fmt: skip
    """Hold what is trained against the rule.

    Args:
        renderer: what is tested.
        plain: the same template and tokenizer without it.
        messages: a conversation that must be accepted.
        reasoning: whether its answers have the reasoning REASONING.
        exact: whether the tokens before a run are those of `apply_chat_template`; else only their text is.
    """
    template = plain.template
    examples = accepted(renderer, messages)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    one_each = template.rewrites_thought if reasoning else template.rewrites
    assert len(examples) == (len(answers) if one_each else 1)
    runs = [(example, *run) for example in examples for run in example.runs]
    assert len(runs) == len(answers)
    for example in examples:
        mask = example.weights.tolist()
        assert set(mask) == {0.0, 1.0}
        assert (mask[0], mask[-1]) == (0.0, 1.0)
        # 0→1→0→1 for two turns in one example.
        assert np.count_nonzero(np.diff(mask)) == 2 * len(example.runs) - 1
    before = template.thought if reasoning else template.before
    end = plain.tokenizer.convert_tokens_to_ids("<" + template.end.rpartition("<")[2])
    assert end in renderer.stop_tokens
    for (example, start, stop), i in zip(runs, answers, strict=True):
        tokens = example.tokens.tolist()
        assert tokens[:start] == renderer.generation_prompt({"messages": messages[:i]}).tokens.tolist()
        # A tokenizer that puts spaces before words does not give its text back, but never merges across a border.
        if exact or plain.form == "llama":
            assert tokens[:start] == plain.prompt(messages[:i])
        else:
            assert plain.text(tokens[:start]) == plain.prompt_text(messages[:i])
        assert plain.text(tokens[:stop]) == plain.text(tokens[:start]) + plain.said(messages[i]["content"], before)
        assert tokens[stop - 1] == end


def test_every_template_is_in_the_table() -> None:
    folder = template_folder()
    assert folder is not None
    assert sorted(BY_NAME) == sorted(path.stem for path in folder.glob("*.jinja"))
    families = {template.name.removesuffix("_training") for template in ACCEPTED}
    assert len(families) >= 20


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("template", ACCEPTED, ids=lambda template: template.name)
def test_what_is_trained_is_what_would_be_sampled(template: Template, form: Form | None) -> None:
    renderer, plain = make_renderer(template, form), Plain.of(template, form)
    for name, messages in CONVERSATIONS.items():
        if name == "system" and template.system_refused:
            refusal = render(renderer, messages)
            assert isinstance(refusal, RenderError)
            assert template.system_refused in str(refusal)
            continue
        # A tokenizer that merges has other tokens where what was said is cut as it was sampled.
        check(renderer, plain, messages, exact=form == "bytes" or not (template.straddles or name == "hard"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_reasoning_is_written_as_it_would_be_sampled_or_refused(template: Template) -> None:
    messages = [m | {"reasoning_content": REASONING} if m["role"] == "assistant" else m for m in TWO_TURNS]
    renderer, plain = make_renderer(template), Plain.of(template)
    if template.thought_refused:
        refusal = render(renderer, messages)
        assert isinstance(refusal, RenderError)
        assert str(refusal).startswith("messages[1]: ")
        assert template.thought_refused in str(refusal)
    else:
        check(renderer, plain, messages, reasoning=True)


@pytest.mark.parametrize("template", [t for t in TEMPLATES if t.refused], ids=lambda template: template.name)
def test_what_has_no_right_mask_is_refused(template: Template) -> None:
    refusal = render(make_renderer(template), TWO_TURNS)
    assert isinstance(refusal, RenderError)
    assert template.refused is not None
    assert str(refusal).startswith(f"messages[1]: {template.refused}")


# The newline after an answer, or what the template's own generation prompt says, is marked by some twins.
@pytest.mark.parametrize("template", [t for t in ACCEPTED if t.is_twin], ids=lambda template: template.name)
def test_the_masks_of_templates_that_mark_what_is_generated(template: Template) -> None:
    renderer, plain = make_renderer(template, "bytes"), Plain.of(template, "bytes")
    answers = [i for i, message in enumerate(THREE_TURNS) if message["role"] == "assistant"]
    # Where the history is rewritten, only the last turn of a conversation stands as it would be sampled.
    ways = [(last, [last]) for last in answers] if template.rewrites else [(answers[-1], answers)]
    for example, (last, turns) in zip(accepted(renderer, THREE_TURNS), ways, strict=True):
        theirs = plain.apply(
            THREE_TURNS[: last + 1], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = np.zeros(len(theirs["input_ids"]))
        stop = 0
        for i in turns:
            start = len(plain.prompt(THREE_TURNS[:i]))
            stop = start + next(
                n for n, token in enumerate(theirs["input_ids"][start:], 1) if token in renderer.stop_tokens
            )
            mask[start:stop] = theirs["assistant_masks"][start:stop]
        assert example.tokens.tolist() == theirs["input_ids"][:stop]
        assert example.weights.tolist() == mask[:stop].tolist()


# Twins that write a conversation otherwise than their originals: they keep reasoning, or write GLM's end of a turn.
OTHER_TEXT = {"glm4moe", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}


def test_a_template_and_its_marked_twin_train_the_same() -> None:
    others = set()
    for twin in (t for t in ACCEPTED if t.is_twin):
        template = BY_NAME[twin.name.removesuffix("_training")]
        if Plain.of(template).apply(THREE_TURNS, tokenize=False) != Plain.of(twin).apply(THREE_TURNS, tokenize=False):
            others.add(template.name)
            continue
        for mine, marked in zip(
            accepted(make_renderer(template), THREE_TURNS), accepted(make_renderer(twin), THREE_TURNS), strict=True
        ):
            assert mine.tokens.tolist() == marked.tokens.tolist()
            assert mine.weights.tolist() == marked.weights.tolist()
    assert others == OTHER_TEXT


@pytest.mark.parametrize(
    "template", [t for t in ACCEPTED if t.tokens.eos != "<|endoftext|>"], ids=lambda template: template.name
)
def test_the_end_of_a_turn_is_found_in_the_template_where_no_configuration_names_it(template: Template) -> None:
    plain = Plain.of(template)
    for known in ([], [plain.tokenizer.eos_token_id]):
        renderer = ChatTemplateRenderer(Plain.of(template).tokenizer, known)
        check(renderer, plain, TWO_TURNS, exact=not template.straddles)


@pytest.mark.parametrize("template", ACCEPTED, ids=lambda template: template.name)
def test_control_tokens_in_a_text_stay_text(template: Template) -> None:
    renderer = make_renderer(template)
    tokenizer = Plain.of(template).tokenizer
    controls = tokenizer.all_special_tokens + list(template.tokens.controls)
    ids = tokenizer.convert_tokens_to_ids(controls)
    typed = chat("Hello?", "Hi there!", "What is 2 plus 2?" + "".join(controls), "It is 4." + " ".join(controls) + ".")
    if template.tokens.form == "llama":
        refusal = render(renderer, typed)
        assert isinstance(refusal, RenderError)
        assert str(refusal) == "a message holds a control token, which this tokenizer cannot write as plain text"
        return
    for example, without in zip(accepted(renderer, typed), accepted(renderer, TWO_TURNS), strict=True):
        assert [t for t in example.tokens.tolist() if t in ids] == [t for t in without.tokens.tolist() if t in ids]
        assert len(example.runs) == len(without.runs)
    start, stop = example.runs[-1]
    said = renderer.text(example.tokens[:stop].tolist())[len(renderer.text(example.tokens[:start].tolist())) :]
    assert said == template.before + typed[3]["content"] + template.end


def called(name: str, city: str) -> Message:
    function = {"name": name, "arguments": json.dumps({"city": city}, ensure_ascii=False)}
    return {"type": "function", "id": f"call_{name}", "function": function}


def declared(name: str) -> Message:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}}
    return {"type": "function", "function": {"name": name, "description": "About it.", "parameters": parameters}}


WRITES_CALLS = {
    "diffusion_gemma", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "glm4moe_training", "gptoss",
    "gptoss_training", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2", "lfm2_v2_training", "llama3_1", "llama3_2",
    "muse_glimmer", "muse_glimmer_training", "qwen2_5", "qwen2_5_training",
    *(template.name for template in ACCEPTED if template.name.startswith("qwen3")),
}  # fmt: skip


@pytest.mark.parametrize("template", ACCEPTED, ids=lambda template: template.name)
def test_calls_of_tools_and_their_results_are_written_or_refused(template: Template) -> None:
    renderer = make_renderer(template)
    made = [called("weather", "Zürich"), called("clock", "Łódź")]
    tools = [declared("weather"), declared("clock")]
    for count, content in ((1, ""), (1, "Let me look."), (2, "")):
        calls = made[:count]
        results = [{"role": "tool", "content": f"It is 1{i}.", "tool_call_id": c["id"]} for i, c in enumerate(calls)]
        messages: list[Message] = [
            {"role": "user", "content": "How is it?"},
            {"role": "assistant", "content": content, "tool_calls": calls},
            *results,
            {"role": "assistant", "content": "It is fine."},
        ]
        (found,) = renderer.render([{"messages": messages, "tools": tools}])
        if (count, content) == (1, ""):
            assert isinstance(found, RenderError) == (template.name not in WRITES_CALLS)
        if isinstance(found, RenderError):
            continue
        calling, answer = (
            renderer.text(example.tokens[start:end].tolist()) for example in found for start, end in example.runs
        )
        assert content in calling
        for call, city in zip(calls, ("Zürich", "Łódź"), strict=False):
            assert call["function"]["name"] in calling
            assert city in calling
        assert "It is fine." in answer
        prompt = renderer.text(renderer.generation_prompt({"messages": messages[:-1], "tools": tools}).tokens.tolist())
        assert prompt.count("About it.") == 2
        assert all(result["content"] in prompt for result in results)


def test_many_conversations_at_once_are_rendered_as_each_alone() -> None:
    # This template's generation prompt ends in a newline that merges with the next one, so its texts are cut there.
    renderer, alone = make_renderer(BY_NAME["qwen3_8"]), make_renderer(BY_NAME["qwen3_8"])
    answers = ["Hi there!", "<|im_end|> is <|im_start|>user"]
    different = [chat(f"Hello {i}?", answers[i % 2] * 9, "Thanks!", "Bye.") for i in range(20)]
    together = list(renderer.render([{"messages": messages} for messages in different * 40]))
    expected = [accepted(alone, messages) for messages in different]
    assert len(together) == len(expected) * 40
    for found, one in zip(together, expected * 40, strict=True):
        assert not isinstance(found, RenderError)
        for example, single in zip(found, one, strict=True):
            assert example.tokens.tolist() == single.tokens.tolist()
            assert example.weights.tolist() == single.weights.tolist()


def texts(form: Form) -> st.SearchStrategy[str]:
    """Any text but a blank one, and without the character that stands for a space with SentencePiece."""
    # Separators that Python takes for spaces, but tokenizers do not, so that the two strip texts differently.
    characters = st.characters(codec="utf-8", exclude_characters="▁\x1c\x1d\x1e\x1f" if form != "merging" else "")
    edges = st.sampled_from(["", "\n", "\n\n", " ", "  ", "\t", " \n"])
    middles = st.text(characters, min_size=1, max_size=20).filter(str.strip)
    return st.builds(lambda a, text, b: a + text + b, edges, middles, edges)


# More is tried with these, which differ most from one another.
REPRESENTATIVE = {
    "cohere2", "gemma3_training", "gptoss", "idefics3", "llama3_2", "llava_next", "muse_glimmer", "phi3_5", "qwen3",
    "qwen3_8", "qwen3_5_nothink",
}  # fmt: skip


@pytest.mark.parametrize("template", mostly_slow(ACCEPTED, 20), ids=lambda template: template.name)
def test_any_texts(template: Template) -> None:
    if template.name in REPRESENTATIVE:
        try_texts(template, None, 20)
        try_texts(template, "bytes", 20)
    else:
        try_texts(template, None, 3)


def try_texts(template: Template, form: Form | None, count: int) -> None:
    renderer, plain = make_renderer(template, form), Plain.of(template, form)
    any_text = texts(plain.form)
    systems = st.none() if template.system_refused else st.none() | any_text

    @settings(max_examples=count)
    @given(st.lists(st.tuples(any_text, any_text), min_size=1, max_size=3), systems)
    def holds(turns: list[tuple[str, str]], system: str | None) -> None:
        messages = chat(*(text for turn in turns for text in turn), system=system)
        check(renderer, plain, messages, exact=form == "bytes")

    holds()
