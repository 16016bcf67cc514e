"""The JSON Schema of the file, for editors."""

from collections.abc import Mapping
from typing import Any

from tinkertools.config import TrainConfig, setting
from tinkertools.settings.keys import STAGE_NAME, STAGES, SWEEP, fields_by_section


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file."""
    properties = TrainConfig.model_json_schema()["properties"]
    sections: dict[str, Any] = {}
    for section, keys in fields_by_section().items():
        described = {}
        for key, name in keys.items():
            values = {k: v for k, v in properties[name].items() if k not in ("default", "title")}
            if section == SWEEP:
                described[key] = {"type": ["array", "null"], "items": values, "minItems": 1, "uniqueItems": True}
            else:
                values = (
                    values if {"type": "null"} in values.get("anyOf", ()) else {"anyOf": [values, {"type": "null"}]}
                )
                described[key] = values | {"description": setting(name).help, "default": properties[name]["default"]}
        if section:
            sections[section] = {"type": ["object", "null"], "properties": described, "additionalProperties": False}
        else:
            sections |= described
    sections[STAGES] = _schema_of_stages(sections)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A run of tt train",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
    }


def _schema_of_stages(sections: Mapping[str, Any]) -> dict[str, Any]:
    """What the list of stages may hold: in each a name, and what a run's file may."""
    own = {section: described for section, described in sections.items() if section != SWEEP}
    name = {"type": "string", "pattern": f"^{STAGE_NAME.pattern}$", "description": "Its folder, and stage:NAME."}
    stage = {"type": "object", "properties": {"name": name, **own}, "required": ["name"], "additionalProperties": False}
    about = "Runs one after the other; what stands outside of them holds for all, where they say nothing else."
    return {"type": ["array", "null"], "items": stage, "minItems": 1, "description": about}
