"""The quality benchmark's tables and plots, from its finished cells."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.cells import Cells, Json, code_digest, number, percent, table
from benchmarks.data import DATA_NAMES
from benchmarks.quality_cells import BATCH, SEQUENCE

Show = Callable[[Any], str]


def megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"


def of_all(found: Sequence[int] | None) -> str:
    """Of few a share says little."""
    return f"{found[0]} of {found[1]}" if found and found[1] else "-"


def whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


ANSWERS: Mapping[str, tuple[str, Show]] = {
    "efficacy": ("efficacy", percent),
    "efficacy_forced": ("efficacy, forced", percent),
    "efficacy_begins": ("efficacy, begins", percent),
    "paraphrase": ("paraphrase", percent),
    "paraphrase_forced": ("paraphrase, forced", percent),
    "paraphrase_begins": ("paraphrase, begins", percent),
    "locality_word": ("locality, word", percent),
    "locality_clause": ("locality, clause", percent),
    "others_word": ("unrelated, word", percent),
    "others_clause": ("unrelated, clause", percent),
    "known_kept": ("probes kept", percent),
}
"""What was answered."""

REST: Mapping[str, tuple[str, Show]] = {
    "ability": ("ability", percent),
    "kl": ("KL, nats a token", number),
    "perplexity": ("perplexity", number),
    "negated": ("negated", percent),
    "reversed": ("reversed", percent),
    "two_hop": ("two hops", of_all),
    "two_hop_root": ("two hops, root", of_all),
    "seconds_per_edit": ("s an edit", number),
    "device": ("on", str),
    "bytes": ("MB", megabytes),
    "max_abs_change": ("largest change", number),
    "steps": ("steps", whole),
}
FIRST: Mapping[str, tuple[str, Show]] = {
    "first_then": ("first batch, right after it", percent),
    "first_at_end": ("at the end", percent),
    "first_kept": ("kept of those", percent),
}
LEGEND = """\
*efficacy*, *paraphrase*: the whole free greedy answer, ended by the model itself, is the new object, in
the edit's own prompt and in words that were never trained on (rows whose paraphrase the library makes by
itself, as "Which" for "What", have none: benchmarks/exam.py); *forced*: each of its tokens is the most
probable after the ones before; *begins*: the answer opens with it, whatever follows. *locality*, *unrelated*:
greedy answers to the rows' locality prompts and to prompts of other rows that are the same as the root's,
by first word and by whole clause. *probes kept*: of catalogue facts that the root answers right, those that
the edited model still does. *ability*: bundled multiple-choice items. *KL*: of the root's from the edited
model's next-token distribution on WikiText-2. *negated*: asked for what is false, the model does not say the
new object (nor does an unedited one). *reversed*: asked from the new object, it says the subject. *two
hops*: asked for what follows from the edit and a fact about its new object, as the capital of the country in
which something is located now, where the root knows the second fact; *root*: what the root says to the same.
† measured with an earlier state of the library's code."""


def latest(cells: Iterable[Json]) -> list[Json]:
    """Of cells that the tables could not tell apart, the one that asked the most, and then the last one."""
    kept: dict[tuple[Any, ...], Json] = {}
    for cell in sorted(cells, key=lambda cell: sum(cell["cell"]["amounts"].values())):
        what = cell["cell"]
        asked = tuple(sorted((key, str(value)) for key, value in what["asked"].items()))
        key = (what["data"], what["start"], what["batches"], what["size"], what["method"], asked)
        kept[key] = cell
    return list(kept.values())


def report(cells: Cells, folder: Path = plots.PLOTS) -> str:
    """Markdown of all finished cells; draws the plots into `folder`."""
    batches = [cell for cell in latest(cells.all(BATCH)) if "error" not in cell["found"]]
    sequences = latest(cells.all(SEQUENCE))
    parts = ["## Quality: `make bench-quality`", _machines([*batches, *sequences]), LEGEND]
    for data in DATA_NAMES:
        mine = [c for c in batches if c["cell"]["data"] == data and not c["cell"]["asked"]]
        if mine:
            parts += [f"### {data}", *_tables(mine, (ANSWERS, REST)), *_plots(data, mine, folder)]
    if swept := [cell for cell in batches if cell["cell"]["asked"]]:
        parts += ["### Other choices than the defaults", *_tables(swept, (ANSWERS, REST))]
        parts += [f"![{path.stem}](plots/{path.name})" for path in sorted(folder.glob("sweep-*.svg"))]
    if sequences:
        parts += ["### Batches one after another", *_tables(sequences, (FIRST, ANSWERS, REST))]
    return "\n\n".join(part.strip() for part in parts)


def _machines(cells: Sequence[Json]) -> str:
    if not cells:
        return "Nothing has been measured yet."
    found = {(cell["found"]["device"], cell["found"]["threads"]) for cell in cells}
    return f"Measured on {', '.join(f'{d} ({t} threads)' for d, t in sorted(found))}."


def _tables(cells: Sequence[Json], columns: Sequence[Mapping[str, tuple[str, Show]]]) -> list[str]:
    ordered = sorted(cells, key=lambda cell: (cell["cell"]["data"], cell["cell"]["size"]))
    swept = any(cell["cell"]["asked"] for cell in cells)
    named = [("data", lambda c: c["data"])] if len({c["cell"]["data"] for c in cells}) > 1 else []
    named += [("edits", _size), ("method", lambda c: c["method"])]
    named += [("choices", _asked)] if swept else []
    return [
        table(
            [*(name for name, _ in named), *(header for header, _ in shown.values())],
            (
                [*_named(named, cell), *(show(cell["found"].get(key)) for key, (_, show) in shown.items())]
                for cell in ordered
            ),
        )
        for shown in columns
    ]


def _named(columns: Sequence[tuple[str, Callable[[Json], str]]], cell: Json) -> list[str]:
    names = [show(cell["cell"]) for _, show in columns]
    stale = "" if cell["code"] == code_digest() else " †"
    return [*names[:-1], names[-1] + stale]


def _size(what: Json) -> str:
    size = str(what["size"]) if what["batches"] == 1 else f"{what['batches']} x {what['size']}"
    return size if what["start"] == 0 else f"{size} from row {what['start']}"


def _asked(what: Json) -> str:
    return ", ".join(f"{key} {value}" for key, value in what["asked"].items()) or "defaults"


def _plots(data: str, cells: Sequence[Json], folder: Path) -> list[str]:
    links = []
    for size in sorted({cell["cell"]["size"] for cell in cells}):
        points = {
            cell["cell"]["method"]: _point(cell["found"]) for cell in cells if cell["cell"]["size"] == size
        }
        path = plots.methods(folder / f"quality-{data}-{size}.svg", f"{data}, {size} edits", points)
        links.append(f"![{data}, {size} edits](plots/{path.name})")
    return links


def _point(found: Json) -> tuple[float, float, float]:
    return ratio(found["others_clause"]), ratio(found["efficacy"]), ratio(found["paraphrase"])


def ratio(found: Sequence[int]) -> float:
    return found[0] / max(1, found[1])
