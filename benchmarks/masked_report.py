"""The masked benchmark's table and plots, from its finished cells."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.cells import Json, code_digest, number, percent, table
from benchmarks.trex import mean

HEADING = "memorised, not pretrained"

COLUMNS: tuple[tuple[str, Callable[[Json], str]], ...] = (
    ("unmodified, before", lambda found: percent(found["before"])),
    ("modified", lambda found: percent(found["modified"])),
    ("unmodified", lambda found: percent(found["unmodified"])),
    ("mean", lambda found: _mean(found, "")),
    ("modified, evidence", lambda found: percent(found["modified_evidence"])),
    ("unmodified, evidence", lambda found: percent(found["unmodified_evidence"])),
    ("mean, evidence", lambda found: _mean(found, "_evidence")),
    ("largest change", lambda found: number(found["max_abs_change"])),
    ("steps", lambda found: str(found["steps"])),
    ("s an edit", lambda found: number(found["seconds_per_edit"])),
)

LEGEND = """\
*modified*, *unmodified*: facts whose object is the most probable of all tokens in its mask's place, in the
LAMA template, which nothing is trained in; *mean*: of both, as in the paper; *before*: by the start itself.
*evidence*: the same in the evidence sentences, all of a fact's at once; it is in these that edits are
trained. All facts of a row were right in both before any edit, by the memorised start. Chosen blocks are
trained whole, one at a time (*auto*: what a trial chose, and in a ball its radius); `fta` mixes in all other
known facts, with the answers that the start gives. The *early* start is the same training run, cut off when
fewer facts were memorised: a model that was not fine-tuned on all facts first, as in half of the paper's
rows. † measured with an earlier state of the library's code."""


def as_markdown(cells: Sequence[Json], state: Mapping[str, Any], folder: Path = plots.PLOTS) -> str:
    """The paper's table; draws the plots into `folder`."""
    ordered = sorted(cells, key=_order)
    header = ["facts modified", "start", "method", "block", "l_inf radius", *(name for name, _ in COLUMNS)]
    parts = [
        f"## Masked LM, {HEADING}: `make bench-masked`",
        introduction(state),
        LEGEND,
        table(header, [_row(cell) for cell in ordered]),
        *(f"![{path.stem}](plots/{path.name})" for path in sweeps(ordered, folder)),
    ]
    return "\n\n".join(part.strip() for part in parts)


def introduction(state: Mapping[str, Any]) -> str:
    """How the model came to be, and how much it has memorised."""
    early = "none was kept" if state["early"] is None else f"kept at {state['early']:.1%} memorised"
    return (
        "No pretrained BERT can be had offline. This one "
        f"({state['parameters'] / 1e6:.1f} million parameters) was trained on evidence sentences of "
        f"{state['facts']} T-REx facts, and on some paraphrase patterns of them, for {state['steps']} steps "
        f"({state['seconds']:.0f} s): {state['memorised']:.1%} of the facts are right in all their evidence "
        f"sentences, {state['test']:.1%} in the LAMA template. Early start: {early}."
    )


def sweeps(cells: Sequence[Json], folder: Path) -> list[Path]:
    """For each number of modified facts, both accuracies along the radius, a pair of curves a block."""
    drawn: list[Path] = []
    constrained = [
        cell for cell in cells if cell["found"]["radius"] is not None and _usual(cell) and not _tried(cell)
    ]
    for count in sorted({cell["cell"]["count"] for cell in constrained}):
        mine = [cell for cell in constrained if cell["cell"]["count"] == count]
        radii = sorted({cell["found"]["radius"] for cell in mine})
        measures: dict[str, list[float]] = {}
        for block in sorted({tuple(cell["found"]["blocks"]) for cell in mine}):
            found = {c["found"]["radius"]: c["found"] for c in mine if tuple(c["found"]["blocks"]) == block}
            if len(radii) > 1 and found.keys() == set(radii):
                for what in ("modified", "unmodified"):
                    name = f"{what}, block {', '.join(map(str, block))}"
                    measures[name] = [found[r][what][0] / max(1, found[r][what][1]) for r in radii]
        if measures:
            title = f"{count} facts modified ({HEADING})"
            drawn.append(plots.curve(folder / f"masked-{count}.svg", title, "l_inf radius", radii, measures))
    return drawn


def _usual(cell: Json) -> bool:
    what = cell["cell"]["method"], cell["cell"]["start"]
    return what == ("constrained_ftm", "memorised")


def _tried(cell: Json) -> bool:
    """Whether a trial chose the blocks."""
    return bool(cell["cell"]["asked"]["blocks"] == "auto")


def _order(cell: Json) -> tuple[Any, ...]:
    what, found = cell["cell"], cell["found"]
    return what["count"], what["start"] != "memorised", what["method"], found["blocks"], found["radius"] or 0


def _row(cell: Json) -> list[str]:
    what, found = cell["cell"], cell["found"]
    stale = "" if cell["code"] == code_digest() else " †"
    return [
        f"{found['modified'][1]} of {found['known']}",
        what["start"],
        what["method"] + stale,
        ("auto: " if _tried(cell) else "") + ", ".join(str(block) for block in found["blocks"]),
        number(found["radius"]),
        *(show(found) for _, show in COLUMNS),
    ]


def _mean(found: Json, where: str) -> str:
    value = mean(found[f"modified{where}"], found[f"unmodified{where}"])
    return "-" if value is None else f"{value:.1%}"
