"""Curves of a run as SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinkertools.files import whole_directory

_CURVES = {"loss": "loss (mean NLL per trained token)", "learning_rate": "learning rate"}


def write_plots(directory: Path, steps: Sequence[dict[str, Any]]) -> None:
    """Write `loss.svg` and `learning_rate.svg` over steps into `directory`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The same log gives the same bytes: no random ids, no date.
    with whole_directory(directory) as part, mpl.rc_context({"svg.hashsalt": "tinkertools"}):
        for key, title in _CURVES.items():
            figure = Figure(figsize=(7, 4), layout="constrained")
            axes = figure.subplots()
            axes.plot([entry["step"] for entry in steps], [entry[key] for entry in steps])
            axes.set(xlabel="step", ylabel=title)
            axes.grid(alpha=0.3)
            figure.savefig(part / f"{key}.svg", metadata={"Date": None})
