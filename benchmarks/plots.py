"""Trade-off plots as SVG: what an edit achieves against what it leaves alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
# The same figures give the same file.
matplotlib.rcParams["svg.hashsalt"] = "factedit"

from matplotlib.figure import Figure  # noqa: E402

PLOTS = Path(__file__).parent / "plots"
_STYLES = [(marker, f"C{place}") for marker in "osD^v" for place in range(10)]
"""Points lie on each other too often for names beside them; a legend tells them apart."""


def methods(path: Path, title: str, points: Mapping[str, tuple[float, float, float]]) -> Path:
    """One point a method: (unchanged answers, efficacy, paraphrase), each from 0 to 1."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    for place, label in enumerate(("efficacy", "paraphrase"), start=1):
        axes = figure.add_subplot(1, 2, place)
        for (name, point), (marker, colour) in zip(points.items(), _STYLES, strict=False):
            axes.scatter(point[0], point[place], marker=marker, color=colour, alpha=0.8, label=name)
        axes.set(xlabel="unrelated answers unchanged (clause)", ylabel=label)
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return _saved(figure, path)


def curve(
    path: Path, title: str, what: str, values: Sequence[float], measures: Mapping[str, Sequence[float]]
) -> Path:
    """Each measure, from 0 to 1, along a choice's values (logarithmic)."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, shares in measures.items():
        axes.plot(values, shares, marker="o", label=name)
    axes.set(title=title, xlabel=what, xscale="log", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    axes.legend()
    return _saved(figure, path)


def _saved(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return path
