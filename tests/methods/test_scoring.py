"""The token that decides a score: where it is under real chat templates, and scores of a model against its logprobs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinkertools.chat.examples import RenderError
from tinkertools.chat.rendering import load_renderer
from tinkertools.local import ServiceClient
from tinkertools.scoring import BAD, GOOD, QUESTION, score, scored_prompt, scored_prompts, scores

Tt = Callable[..., Any]
MESSAGES = [{"role": "user", "content": "What is 3 plus 2?"}, {"role": "assistant", "content": "It is 5."}]


@pytest.mark.parametrize("what", ["ALL_ASSISTANT_MESSAGES", "LAST_ASSISTANT_MESSAGE", "CUSTOMIZED", "ALL_TOKENS"])
def test_what_is_scored_is_the_conversation_the_question_and_the_deciding_token(starter: str, what: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter)
    found = scored_prompt(load_renderer(starter, train_on_what=what), MESSAGES)
    asked = [*MESSAGES, {"role": "user", "content": QUESTION}]
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    # The starter's tokenizer has no Yes: they differ in the first letter.
    yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in (GOOD, BAD))
    assert yes[0] != no[0]
    assert found.tokens.tolist() == [*before, yes[0]]
    assert found.weights.tolist() == [0.0] * len(before) + [1.0]


def test_marks_of_training_have_no_part_in_it(starter: str) -> None:
    marked: list[dict[str, Any]] = [MESSAGES[0], {**MESSAGES[1], "trainable": False}]
    renderer = load_renderer(starter)
    assert np.array_equal(scored_prompt(renderer, marked).tokens, scored_prompt(renderer, MESSAGES).tokens)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_disable_thinking", "deepseekv3", "kimi_k26", "gpt_oss_low_reasoning"])
def test_renderers_of_the_vendor(name: str) -> None:
    from tinkertools.chat.vendor import renderer_names

    if name not in renderer_names():
        pytest.skip(f"the vendor has no {name}")
    renderer = load_renderer("none", name)
    found = scored_prompt(renderer, MESSAGES)
    assert renderer.text(found.tokens.tolist()).endswith(GOOD)
    assert np.flatnonzero(found.weights).tolist() == [len(found.tokens) - 1]
    assert QUESTION in renderer.text(found.tokens.tolist())


class Deaf:
    """A renderer that loses the last answer."""

    name = "deaf"
    train_on_what = "ALL_ASSISTANT_MESSAGES"

    def __init__(self, real: Any, change: Callable[[str], str]) -> None:
        self._real, self._change = real, change

    def text(self, tokens: Any) -> str:
        return str(self._real.text(tokens))

    def render(self, conversations: Any) -> Any:
        return self._real.render(
            {
                "messages": [
                    *one["messages"][:-1],
                    {"role": "assistant", "content": self._change(one["messages"][-1]["content"])},
                ]
            }
            for one in conversations
        )


@pytest.mark.parametrize("change", [lambda _: "Maybe", lambda word: word.lower(), lambda word: f"{word} {word}"])
def test_answers_that_do_not_differ_in_their_words_alone_are_refused(
    starter: str, change: Callable[[str], str]
) -> None:
    renderer: Any = Deaf(load_renderer(starter), change)
    with pytest.raises(RenderError, match="deaf does not write Yes and No as answers"):
        scored_prompt(renderer, MESSAGES)


def test_one_that_cannot_be_rendered_does_not_stop_the_others(starter: str) -> None:
    bad: Any = {"messages": [{"role": "user", "content": "\ud800"}, MESSAGES[1]]}
    good: Any = {"messages": MESSAGES}
    found = list(scored_prompts(load_renderer(starter), [good, bad, good]))
    assert [isinstance(one, RenderError) for one in found] == [False, True, False]


def test_scores_are_of_plain_logprobs_and_of_nothing_else(service: ServiceClient, untied: str) -> None:
    renderer = load_renderer(untied)
    others = [[MESSAGES[0], {"role": "assistant", "content": f"It is {n}."}] for n in (4, 555)]
    sampler = service.create_sampling_client(base_model=untied)
    together = list(scores(sampler, renderer, [MESSAGES, *others]))
    # Side by side, sums may be taken in another order.
    assert list(scores(sampler, renderer, [MESSAGES])) == pytest.approx(together[:1], abs=1e-4)
    model = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32)
    for messages, found in zip([MESSAGES, *others], together, strict=True):
        tokens = torch.from_numpy(scored_prompt(renderer, messages).tokens.astype(np.int64))
        with torch.no_grad():
            probabilities = model(tokens[None, :-1]).logits[0, -1].double().softmax(-1)
        assert found == pytest.approx(float(torch.logit(probabilities[tokens[-1]])), abs=1e-3)
        assert found == pytest.approx(score(float(probabilities[tokens[-1]].log())), abs=1e-3)
    assert len(set(together)) == 3
