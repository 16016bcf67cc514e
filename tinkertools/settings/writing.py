"""YAML files that give exactly the settings of a run, or of stages."""

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tinkertools.config import TrainConfig, setting
from tinkertools.settings.keys import STAGES, SWEEP, fields_by_section, sweep_key


def write_yaml(config: TrainConfig, grid: Mapping[str, Sequence[Any]], *, explained: bool = True) -> str:
    """A file that gives exactly this; each key with what it is, where it is `explained`."""
    document = _written(config, TrainConfig.model_fields, explained=explained)
    if grid:
        document[SWEEP] = {sweep_key(name): [*map(_quoted, found)] for name, found in grid.items()}
    return _dumped(document)


def write_some(config: TrainConfig, names: Collection[str]) -> str:
    """A file that gives these settings of a configuration, and no others."""
    return _dumped(_written(config, names, explained=False))


def write_stages(shared: TrainConfig, names: Collection[str], stages: Sequence[tuple[str, TrainConfig]]) -> str:
    """A file that gives exactly these stages, by name; `names` are the settings that are written outside of them."""
    document = _written(shared, names, explained=False)
    own = [name for name in TrainConfig.model_fields if name not in names]
    document[STAGES] = [{"name": name, **_written(config, own, explained=False)} for name, config in stages]
    return _dumped(document)


def _written(config: TrainConfig, names: Collection[str], *, explained: bool) -> Any:
    """Settings in their sections, as they are dumped."""
    from ruamel.yaml.comments import CommentedMap

    values = config.to_json()
    document = CommentedMap()
    for section, keys in fields_by_section().items():
        if section == SWEEP:
            continue
        written = document if not section else CommentedMap()
        for key, name in keys.items():
            if name not in names:
                continue
            written[key] = _quoted(values[name])
            if explained:
                indent = 2 if section else 0
                written.yaml_set_comment_before_after_key(key, before=setting(name).help, indent=indent)
        if section and written:
            document[section] = written
    return document


def _dumped(document: Any) -> str:
    from ruamel.yaml import YAML

    out = io.StringIO()
    yaml = YAML()
    yaml.width = 10_000
    yaml.representer.add_representer(type(None), lambda it, _: it.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.dump(document, out)
    return out.getvalue()


def _quoted(value: Any) -> Any:
    """A value to write, with escapes where a text has characters that do not show: YAML takes some for line breaks."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    return DoubleQuotedScalarString(value) if isinstance(value, str) and not value.isprintable() else value
