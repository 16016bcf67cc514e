"""Settings that would have no effect: refused where they are typed, told of where a file has them.

A file may be written for more runs than one, of which some do without a part of it.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from tinkertools import console
from tinkertools.config import TrainConfig
from tinkertools.errors import UsageError
from tinkertools.resuming import option
from tinkertools.settings.given import Given

# What says how a result is uploaded.
_OF_UPLOAD = ("hf_private", "hf_repo_id", "merge", "download_dir")


def refuse_idle(given: Given, kind: Literal["run", "sweep", "stages"], configs: Sequence[TrainConfig]) -> None:
    """Refuse an option that would have no effect; where a file has such a setting, say so.

    Args:
        given: what was given, on the command line and in a file.
        kind: what is to be trained.
        configs: of the run, of the sweep's first run, or of each stage.

    Raises:
        UsageError: an option would have none.
    """
    for name, why, hint in _idle(given, kind, configs):
        place, value = given.places[name], given.values[name]
        if place.startswith("--"):
            raise UsageError(f"{option(name, value)}: {why}", hint=hint)
        # Of stages, each says so itself: it is trained by a file of its own.
        chosen = value != TrainConfig.model_fields[name].default
        if chosen and kind != "stages":
            console.warn(f"{place}: {why}")


def _idle(given: Given, kind: str, configs: Sequence[TrainConfig]) -> Iterator[tuple[str, str, str]]:
    """The settings that were given and have no effect: each with the reason, and what to do."""
    if kind != "sweep" and (given.values.get("jobs") or 1) > 1:
        if kind == "run":
            yield "jobs", "this is one run", "several values of a setting make a sweep, such as --rank 8,16"
        else:
            yield "jobs", "stages are trained one after the other", "leave it out"
    if given.values.get("eval_every") and not any(config.evaluates for config in configs):
        hint = "leave it out, or add --eval-data FILE or --val-fraction 0.1"
        yield "eval_every", "there is nothing to evaluate on", hint
    if any(config.upload for config in configs):
        return
    for name in _OF_UPLOAD:
        # Where a file switches the upload off, the rest of what it says of it only waits.
        waits = "upload" in given.values and not given.places.get(name, "").startswith("--")
        if given.values.get(name) is not None and not waits:
            yield name, "nothing is uploaded", "leave it out, or add --upload --hf-repo-id USER/NAME"
