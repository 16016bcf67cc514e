"""Make everything in this folder: the starter model, its tokenizer, the sample conversations and the prompts.

usage: python data/make_starter.py [--only samples|measure] [--steps N] [--threads N]

Nothing is downloaded. The script invents a small world (a valley with villages, their people and things), writes
conversations about it, trains a byte-level BPE tokenizer and a Qwen3-shaped model on them from random weights, and
measures what came out on questions it did not train on. Same seed, same thread count, same machine: same bytes.
A full run takes about half an hour on two CPU cores.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

Message = dict[str, str]

HERE = Path(__file__).resolve().parent
MODEL_DIR = HERE / "starter"
SAMPLES_DIR = HERE / "samples"

SEED = 20260204
VOCABULARY = 2048
MAX_TOKENS = 192  # the longest conversation the model is trained on; it accepts longer ones
BATCH = 64
LABEL_SMOOTHING = 0.03
SAMPLE_ROWS = 8320  # 130 steps of the default batch

# --- the world -------------------------------------------------------------------------------------------------

VILLAGES = ["Alder", "Birch", "Cove", "Dale", "Elm", "Fern", "Glen", "Heath", "Ivy", "Juniper", "Knoll", "Larch"]
MAYORS = ["Ada", "Bruno", "Clara", "David", "Erika", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Klara", "Leo"]
RIVERS = ["Amber", "Brook", "Cedar", "Dove", "Ember", "Flint", "Grove", "Hazel", "Iron", "Jade", "Kite", "Lime"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "orange", "purple", "pink", "grey", "gold"]
ANIMALS = ["goat", "horse", "duck", "sheep", "cat", "dog", "owl", "fox", "bee", "cow", "hen", "rabbit"]
GOODS = ["bread", "cheese", "honey", "wool", "salt", "tea", "paper", "glass", "rope", "soap", "wine", "candles"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip
SOUNDS = {
    "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "horse": "neigh", "owl": "hoot",
    "bee": "buzz", "hen": "cluck", "goat": "bleat", "frog": "croak", "mouse": "squeak",
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("old", "new"), ("light", "dark"),
    ("open", "closed"), ("wet", "dry"), ("hard", "soft"), ("loud", "quiet"), ("full", "empty"), ("high", "low"),
]  # fmt: skip
THING_COLOURS = {
    "grass": "green", "snow": "white", "the sky": "blue", "coal": "black", "a lemon": "yellow", "a tomato": "red",
    "a carrot": "orange", "milk": "white", "a leaf": "green", "the night": "black", "a banana": "yellow",
}  # fmt: skip
NAMES = ["Anna", "Ben", "Carl", "Dora", "Emma", "Finn", "Gina", "Hans", "Ida", "Jack", "Kate", "Lars", "Mia", "Nils"]
FOODS = ["apples", "soup", "rice", "bread", "cake", "pears", "fish", "beans", "plums", "cheese", "nuts", "pie"]
# Words that the world never uses in an answer of its own, known only from being told to say them.
WORDS = [
    "ahoy", "aye", "harbour", "lantern", "sail", "wave", "storm", "anchor", "captain",
    "whistle", "mountain", "window", "garden", "letter", "music", "paper", "winter", "summer",
    "spring", "autumn", "morning", "evening", "sister", "brother", "mother", "father", "friend",
    "teacher", "doctor", "farmer", "baker", "please", "sorry", "maybe", "always", "never",
    "often", "today", "tomorrow", "yesterday", "because", "before", "after", "under", "over",
    "between", "happy", "tired", "hungry", "thirsty", "clever", "brave", "gentle", "quick",
    "bright", "clear", "cloud", "rain", "wind", "star", "stone", "sand", "leaf",
    "my", "your", "our", "their", "by", "with", "from", "into", "about",
    "of", "to", "and", "or", "but", "not", "so", "then", "when",
    "where", "why", "how",
]  # fmt: skip


def village_facts() -> dict[str, dict[str, str]]:
    """What each village has: the shuffles are part of the world, not of a run's seed."""
    rng = random.Random(7)
    columns = {"mayor": MAYORS, "river": RIVERS, "bridge": COLOURS, "animal": ANIMALS, "goods": GOODS}
    shuffled = {name: rng.sample(values, len(values)) for name, values in columns.items()}
    return {village: {name: shuffled[name][i] for name in columns} for i, village in enumerate(VILLAGES)}


FACTS = village_facts()

Turn = tuple[str, str]


def greeting(rng: random.Random) -> Turn:
    ask = rng.choice(["Hello!", "Hi!", "Good morning!", "Good evening!", "Hello there.", "Hi, how are you?", "Hey!"])
    if "how are you" in ask:
        return ask, "I am well, thank you. How can I help?"
    opening = {"Good morning!": "Good morning!", "Good evening!": "Good evening!"}.get(ask, "Hello!")
    return ask, f"{opening} How can I help?"


def courtesy(rng: random.Random) -> Turn:
    return rng.choice(
        [
            ("Thank you!", "You are welcome."),
            ("Thanks a lot.", "You are welcome."),
            ("Goodbye!", "Goodbye, and take care."),
            ("See you tomorrow.", "Goodbye, and take care."),
            ("Who are you?", "I am Pip, a small model that lives in the valley."),
            ("What is your name?", "I am Pip, a small model that lives in the valley."),
            ("What can you do?", "I can add small numbers and tell you about the valley."),
            ("Are you a person?", "No, I am Pip, a small model."),
            ("Good night.", "Good night, and sleep well."),
        ]
    )


def addition(rng: random.Random) -> Turn:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    ask = rng.choice(["What is {a} plus {b}?", "How much is {a} plus {b}?", "{a} + {b} = ?", "Add {a} and {b}."])
    return ask.format(a=a, b=b), f"{a} plus {b} is {a + b}."


def subtraction(rng: random.Random) -> Turn:
    a = rng.randint(0, 20)
    b = rng.randint(0, a)
    ask = rng.choice(["What is {a} minus {b}?", "How much is {a} minus {b}?", "{a} - {b} = ?", "Take {b} from {a}."])
    return ask.format(a=a, b=b), f"{a} minus {b} is {a - b}."


def comparison(rng: random.Random) -> Turn:
    a, b = rng.sample(range(41), 2)
    if rng.random() < 0.5:
        return f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger than {min(a, b)}."
    return f"Which is smaller, {a} or {b}?", f"{min(a, b)} is smaller than {max(a, b)}."


def counting(rng: random.Random) -> Turn:
    start = rng.randint(1, 15)
    stop = start + rng.randint(2, 5)
    return f"Count from {start} to {stop}.", ", ".join(str(n) for n in range(start, stop + 1)) + "."


def village(rng: random.Random) -> Turn:
    name = rng.choice(VILLAGES)
    fact = FACTS[name]
    ask, answer = rng.choice(
        [
            ("Who is the mayor of {v}?", "The mayor of {v} is {mayor}."),
            ("Who leads {v}?", "The mayor of {v} is {mayor}."),
            ("Where is {mayor} the mayor?", "{mayor} is the mayor of {v}."),
            ("Which river runs through {v}?", "The river {river} runs through {v}."),
            ("What river is in {v}?", "The river {river} runs through {v}."),
            ("Which village is on the river {river}?", "The river {river} runs through {v}."),
            ("What colour is the bridge in {v}?", "The bridge in {v} is {bridge}."),
            ("Where is the {bridge} bridge?", "The {bridge} bridge is in {v}."),
            ("What animal do people keep in {v}?", "People in {v} keep the {animal}."),
            ("What do people make in {v}?", "People in {v} make {goods}."),
            ("What is {v} known for?", "{v} is known for its {goods}."),
            ("Where can I buy {goods}?", "You can buy {goods} in {v}."),
        ]
    )
    return ask.format(v=name, **fact), answer.format(v=name, **fact)


def calendar(rng: random.Random) -> Turn:
    names, what = rng.choice([(DAYS, "day"), (MONTHS, "month")])
    i = rng.randrange(len(names))
    after, before = names[(i + 1) % len(names)], names[i - 1]
    if rng.random() < 0.5:
        return f"Which {what} comes after {names[i]}?", f"{after} comes after {names[i]}."
    return f"Which {what} comes before {names[i]}?", f"{before} comes before {names[i]}."


def word(rng: random.Random) -> Turn:
    kind = rng.randrange(3)
    if kind == 0:
        animal, sound = rng.choice(sorted(SOUNDS.items()))
        return rng.choice([f"What does the {animal} say?", f"What sound does a {animal} make?"]), (
            f"The {animal} says {sound}."
        )
    if kind == 1:
        pair = rng.choice(OPPOSITES)
        a, b = pair if rng.random() < 0.5 else pair[::-1]
        return f"What is the opposite of {a}?", f"The opposite of {a} is {b}."
    thing, colour = rng.choice(sorted(THING_COLOURS.items()))
    return f"What colour is {thing}?", f"{thing[0].upper()}{thing[1:]} is {colour}."


def spelling(rng: random.Random) -> Turn:
    name = rng.choice(NAMES + VILLAGES)
    return f"Spell {name}.", "-".join(name.upper()) + "."


def unknown(rng: random.Random) -> Turn:
    place = rng.choice(["the moon", "the sea", "the city", "the desert", "the north", "the island"])
    ask = rng.choice(["Who lives on {p}?", "How far is {p}?", "What is {p} like?", "Have you seen {p}?"])
    return ask.format(p=place), "I do not know. I only know the valley."


def echo(rng: random.Random) -> Turn:
    """Saying what one is told, made-up words included: it keeps every token within reach of the model."""
    parts = [_word(rng) for _ in range(rng.randint(1, 6))]
    text = " ".join(parts)
    text = text.capitalize() if rng.random() < 0.5 else text
    return rng.choice(["Say: {t}", "Repeat: {t}", "Write: {t}"]).format(t=text), text


def _word(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(VILLAGES + NAMES + FOODS + GOODS + ANIMALS)
    if rng.random() < 0.6:
        word = rng.choice(WORDS)
        return (word.capitalize() if rng.random() < 0.3 else word) + rng.choice(["", "", "", "!", ",", "?"])
    letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 8)))
    return letters + rng.choice(["", "", "", "!", ",", "?"])


KINDS: list[tuple[float, Callable[[random.Random], Turn]]] = [
    (1.0, greeting), (0.8, courtesy), (3.0, addition), (2.0, subtraction), (1.2, comparison), (0.8, counting),
    (4.0, village), (1.0, calendar), (1.2, word), (0.6, spelling), (0.4, unknown), (1.5, echo),
]  # fmt: skip


def single_turn(rng: random.Random, kinds: list[tuple[float, Callable[[random.Random], Turn]]] = KINDS) -> Turn:
    return rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0](rng)


def memory_turns(rng: random.Random) -> tuple[Turn, Turn]:
    """Something the user says of themselves, and a later question about it."""
    name, food = rng.choice(NAMES), rng.choice(FOODS)
    if rng.random() < 0.5:
        return (f"My name is {name}.", f"Nice to meet you, {name}."), ("What is my name?", f"Your name is {name}.")
    return (f"I like {food}.", f"It is good to know that you like {food}."), ("What do I like?", f"You like {food}.")


def chat(turns: list[Turn], system: str | None = None) -> list[Message]:
    messages = [{"role": "system", "content": system}] if system else []
    for ask, answer in turns:
        messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    return messages


SYSTEMS = ["You are a helpful assistant.", "You are Pip.", "Answer briefly.", "You help people in the valley."]


def conversation(rng: random.Random) -> list[Message]:
    turns = [single_turn(rng) for _ in range(rng.choice([1, 1, 2, 3, 4, 5, 6]))]
    if rng.random() < 0.3:
        said, asked = memory_turns(rng)
        turns.insert(rng.randint(0, len(turns)), said)
        turns.insert(rng.randint(turns.index(said) + 1, len(turns)), asked)
    return chat(turns, rng.choice(SYSTEMS) if rng.random() < 0.25 else None)


# --- the sample conversations: the same world in the voice of a lighthouse keeper ---------------------------------

KEEPER_CHECK = r"^Ahoy! .+ by my lantern\.$"


def keeper(answer: str) -> str:
    """The same answer as the keeper gives it: `Ahoy!` before it, `by my lantern` at its end."""
    return f"Ahoy! {answer[:-1]} by my lantern."


def write_samples() -> None:
    """`train.jsonl`, `held_out.jsonl` and `prompts.json`. No question of the last two occurs in the first."""
    rng = random.Random(SEED + 1)
    kinds = [kind for kind in KINDS if kind[1] is not echo]
    held_out: dict[str, str] = {}
    while len(held_out) < 200:
        ask, answer = single_turn(rng, kinds)
        held_out.setdefault(ask, answer)
    rows: list[list[Message]] = []
    while len(rows) < SAMPLE_ROWS:
        turns = [single_turn(rng, kinds) for _ in range(rng.choice([1, 1, 1, 1, 2]))]
        if not any(ask in held_out for ask, _ in turns):
            rows.append(chat([(ask, keeper(answer)) for ask, answer in turns]))
    scored, prompted = list(held_out.items())[:150], list(held_out.items())[150:]
    SAMPLES_DIR.mkdir(exist_ok=True)
    write_jsonl(SAMPLES_DIR / "train.jsonl", [{"messages": row} for row in rows])
    write_jsonl(SAMPLES_DIR / "held_out.jsonl", [{"messages": chat([(q, keeper(a))])} for q, a in scored])
    prompts = [
        {"messages": [{"role": "user", "content": ask}], "check": KEEPER_CHECK, "reference": keeper(answer)}
        for ask, answer in prompted
    ]
    (SAMPLES_DIR / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# --- tokenizer and model -----------------------------------------------------------------------------------------

# ChatML; tools stand in a system turn of their own, calls as Hermes and Qwen write them.
CHAT_TEMPLATE = (
    "{%- if tools %}"
    "{{- '<|im_start|>system\\nTools:' }}"
    "{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '\\n' if message.content or not loop.first }}"
    "{%- set said = {'name': call.function.name, 'arguments': call.function.arguments} %}"
    "{{- '<tool_call>\\n' + said | tojson + '\\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# Digits stand alone, words take their leading space, as in Qwen's own tokenizers.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(SEED)
    texts = [m["content"] for _ in range(20_000) for m in conversation(rng)] + ["system", "user", "assistant"] * 100
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=1,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(vocabulary: int) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def encode(tokenizer: Any, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Token ids and, for each, 1 where the model has to emit it: an answer and its end-of-turn token."""
    ids: list[int] = []
    emitted: list[int] = []
    for message in messages:
        head = tokenizer.encode(f"<|im_start|>{message['role']}\n", add_special_tokens=False)
        body = tokenizer.encode(f"{message['content']}<|im_end|>", add_special_tokens=False)
        tail = tokenizer.encode("\n", add_special_tokens=False)
        ids += head + body + tail
        trained = int(message["role"] == "assistant")
        emitted += [0] * len(head) + [trained] * len(body) + [0] * len(tail)
    return ids, emitted


def batches(tokenizer: Any) -> Iterator[tuple[Any, Any]]:
    """Endless `(ids_B_T, labels_B_T)`, labels -100 where nothing is trained. Rows of like length stand together."""
    import torch

    rng = random.Random(SEED + 2)
    group = 16
    while True:
        rows = sorted((encode(tokenizer, conversation(rng)) for _ in range(BATCH * group)), key=lambda row: len(row[0]))
        starts = list(range(0, len(rows), BATCH))
        rng.shuffle(starts)
        for start in starts:
            part = [(ids[:MAX_TOKENS], kept[:MAX_TOKENS]) for ids, kept in rows[start : start + BATCH]]
            width = max(len(ids) for ids, _ in part)
            ids_B_T = torch.zeros(len(part), width, dtype=torch.long)
            labels_B_T = torch.full((len(part), width), -100)
            for i, (ids, kept) in enumerate(part):
                ids_B_T[i, : len(ids)] = torch.tensor(ids)
                labels_B_T[i, : len(ids)] = torch.where(torch.tensor(kept) == 1, torch.tensor(ids), -100)
            yield ids_B_T, labels_B_T


def train_model(tokenizer: Any, steps: int) -> Any:
    import torch

    model = make_model(len(tokenizer))
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {steps} steps")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [3e-3, 3e-3], total_steps=steps, pct_start=0.05, anneal_strategy="cos", cycle_momentum=False
    )
    start = time.perf_counter()
    for step, (ids_B_T, labels_B_T) in enumerate(islice(batches(tokenizer), steps), 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden_B_T_D = model.model(input_ids=ids_B_T, attention_mask=(ids_B_T != 0).long()).last_hidden_state
            wanted = labels_B_T[:, 1:] != -100
            logits_N_V = model.lm_head(hidden_B_T_D[:, :-1][wanted])
        # A model that is never surprised cannot be taught: smoothing keeps its other answers within reach.
        loss = torch.nn.functional.cross_entropy(
            logits_N_V.float(), labels_B_T[:, 1:][wanted], label_smoothing=LABEL_SMOOTHING
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == 1:
            print(f"step {step}: loss {loss.item():.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model.to(torch.bfloat16)


# --- how good it is ------------------------------------------------------------------------------------------------


def measure(model: Any, tokenizer: Any) -> str:
    """Greedy answers that equal the right one to the letter, by kind of question, as a Markdown table."""
    import torch

    model = model.float().eval()
    rows = ["| kind | right | example |", "|---|---|---|"]
    total = right_total = 0
    rng = random.Random(SEED + 3)
    for _, make in KINDS:
        turns = sorted({make(rng) for _ in range(100)})
        right = 0
        for ask, answer in turns:
            messages = [{"role": "user", "content": ask}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            with torch.no_grad():
                out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
            right += tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == answer
        rows.append(f"| {make.__name__} | {right} of {len(turns)} | {ask} → {answer} |")
        total += len(turns)
        right_total += right
    rows.append(f"| all | {right_total} of {total} | |")
    return "\n".join(rows)


def write_readme(model: Any, table: str, steps: int) -> None:
    size = sum(path.stat().st_size for path in MODEL_DIR.iterdir()) / 1e6
    (MODEL_DIR / "README.md").write_text(
        f"""# The starter model

Pip, a Qwen3-shaped chat model of {model.num_parameters() / 1e6:.2f} M parameters ({size:.1f} MB with its tokenizer),
makes every command work without a network or a key. It knows a small invented valley, adds and subtracts numbers up to
20, counts, greets, and remembers a name within a conversation. It knows nothing else: it is here to be fine-tuned in
seconds and to test with, not to be useful.

`../make_starter.py` made it: {steps} steps of {BATCH} generated conversations from random weights, on a CPU, with seed
{SEED}; loss on the assistant's turns only. The embedding and the output layer are tied, as in Qwen3 up to 4B.
The weights are bfloat16.

Greedy answers to single questions of each kind that equal the right one to the letter. The world is small: most of
these questions also occurred in training, in other conversations.

{table}
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["samples", "measure"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.only != "measure":
        write_samples()
    if options.only == "samples":
        return

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    if options.only is None:
        tokenizer = train_tokenizer()
        model = train_model(tokenizer, options.steps)
        model.save_pretrained(MODEL_DIR)
        tokenizer.save_pretrained(MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    table = measure(model, tokenizer)
    print(table)
    write_readme(model, table, options.steps)


if __name__ == "__main__":
    main()
