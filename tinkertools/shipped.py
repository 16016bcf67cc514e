"""Where the files that ship with the package are: the starter model, the sample conversations, the prompts."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

# A wheel carries `data/` inside the package; a checkout has it beside the package.
DATA = next((place for place in (_PACKAGE / "data", _PACKAGE.parent / "data") if place.is_dir()), _PACKAGE / "data")

STARTER_MODEL = DATA / "starter"
SAMPLE_TRAINING_DATA = DATA / "samples" / "train.jsonl"
SAMPLE_HELD_OUT_DATA = DATA / "samples" / "held_out.jsonl"
SAMPLE_PROMPTS = DATA / "samples" / "prompts.json"
GENERAL_PROMPTS = DATA / "prompts.json"
PRICES = DATA / "prices.json"


def is_starter(base_model: str) -> bool:
    """Whether `base_model` names the starter model."""
    return Path(base_model).resolve() == STARTER_MODEL.resolve()
