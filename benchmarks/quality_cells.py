"""A cell of the quality benchmark: a batch, or batches one after another, edited and measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import Json, code_digest
from benchmarks.data import DATA, DataName, Row, read_rows, take
from benchmarks.engine import Choices, Engine, Made
from benchmarks.measures import Amounts, cost, efficacy_of, measure_all
from factedit.blocks import NoSuchBlock
from factedit.facts import Edit
from factedit.task import EditingError

ROOT = "root"
"""In a method's place: nothing is edited. What the measures say of an unedited model."""

BATCH, SEQUENCE, STEP = "batch", "sequence", "step"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """What a cell is asked to be. `asked`: choices that are not the method's defaults."""

    data: DataName
    method: str
    size: int
    start: int = 0
    asked: Mapping[str, Any] | None = None
    seed: int = 0
    batches: int = 1

    def __str__(self) -> str:
        changed = "".join(f", {key} {value}" for key, value in (self.asked or {}).items())
        size = f"{self.batches} x {self.size}" if self.batches > 1 else f"{self.size}"
        return f"{self.data} {self.method} {size}{changed}"

    @property
    def choices(self) -> Choices | None:
        return None if self.method == ROOT else Choices.of(self.method, self.asked or {}, self.seed)


class Runner:
    """Runs cells on one engine, each once."""

    def __init__(
        self,
        engine: Engine,
        amounts: Amounts,
        *,
        data: Path = DATA,
        again: bool = False,
        say: Say = lambda _: None,
    ) -> None:
        self.engine, self.amounts, self.data, self.again, self.say = engine, amounts, data, again, say

    def run(self, cell: Cell) -> Json:
        """What the cell finds; `error` where its method can't do it."""
        kind = SEQUENCE if cell.batches > 1 else BATCH
        try:
            identity = self._identity(cell)
            work = self._sequence if cell.batches > 1 else self._batch
            found = self.engine.cells.once(kind, identity, lambda: work(cell), again=self.again)
            for place in range(cell.batches):
                self.engine.cells.drop(STEP, self._step_identity(cell, place))
            return found
        except (EditingError, NoSuchBlock) as error:
            self.say(f"{cell}: {error}")
            return {"error": str(error)}

    def _identity(self, cell: Cell) -> Json:
        choices = cell.choices
        return {
            **asdict(cell),
            "asked": dict(cell.asked or {}),
            "resolved": None if choices is None else choices.resolved(self.engine.lm),
            "amounts": asdict(self.amounts),
        }

    def _batch(self, cell: Cell) -> Json:
        rows, others = take(read_rows(cell.data, self.data), cell.start, cell.size, self.amounts.others)
        if cell.choices is None:
            return {**self._measured({}, rows, others), **self._machine()}
        step = self._step(cell, cell.choices, 0, rows, {}, [])
        found = self._measured(self.engine.store.load_overlay(step["overlay"]), rows, others)
        return {**found, **_effort(step["seconds"], len(rows), step["metrics"]), **self._machine()}

    def _sequence(self, cell: Cell) -> Json:
        """Batches one after another on the ledger; what became of the first one is told apart."""
        total = cell.size * cell.batches
        rows, others = take(read_rows(cell.data, self.data), cell.start, total, self.amounts.others)
        choices = cell.choices
        if choices is None:
            raise EditingError("A sequence needs a method.")
        first, overlay, ledger, seconds = rows[: cell.size], dict[str, Tensor](), list[Edit](), 0.0
        right: list[bool] = []
        metrics: Json = {}
        for place in range(cell.batches):
            batch = rows[place * cell.size : (place + 1) * cell.size]
            prompts = {row.prompt for row in batch}
            ledger = [edit for edit in ledger if edit.prompt not in prompts]
            step = self._step(cell, choices, place, batch, overlay, ledger)
            overlay, metrics = self.engine.store.load_overlay(step["overlay"]), step["metrics"]
            ledger += [row.edit for row in batch]
            seconds += step["seconds"]
            if place == 0:
                right = efficacy_of(self.engine, overlay, first)
        after = efficacy_of(self.engine, overlay, first)
        found = self._measured(overlay, rows, others)
        return {
            **found,
            "first_then": [sum(right), len(right)],
            "first_at_end": [sum(after), len(after)],
            "first_kept": [sum(a and b for a, b in zip(right, after, strict=True)), sum(right)],
            **_effort(seconds, total, metrics),
            **self._machine(),
        }

    def _step(
        self,
        cell: Cell,
        choices: Choices,
        place: int,
        batch: Sequence[Row],
        overlay: Mapping[str, Tensor],
        ledger: Sequence[Edit],
    ) -> Json:
        """One batch, kept until its cell is finished, so that a cell goes on where it was cut off."""

        def work() -> Json:
            where = f", batch {place + 1}" if cell.batches > 1 else ""
            made = self._made(cell, choices, batch, overlay, ledger, where)
            published = self.engine.store.publish_overlay(made.edited.tensors)
            return {
                "overlay": published.digest,
                "seconds": made.seconds,
                "metrics": made.edited.metrics,
            }

        return self.engine.cells.once(STEP, self._step_identity(cell, place), work)

    def _step_identity(self, cell: Cell, place: int) -> Json:
        # A step knows nothing of how many come after it, nor of what is measured at the end.
        return {**self._identity(cell), "batches": place + 1, "amounts": None, "code": code_digest()}

    def _made(
        self,
        cell: Cell,
        choices: Choices,
        rows: Sequence[Row],
        parent: Mapping[str, Tensor],
        ledger: Sequence[Edit],
        where: str,
    ) -> Made:
        def progress(state: dict[str, Any]) -> None:
            done = f"{state.get('edits_holding', '?')} of {state.get('edits_total', '?')} hold"
            self.say(f"{cell}{where}: step {state.get('step', '?')}, {done}")

        self.say(f"{cell}{where}: editing")
        made = self.engine.make(
            choices, [row.edit for row in rows], parent=parent, ledger=ledger, progress=progress
        )
        self.say(f"{cell}{where}: edited in {made.seconds:.1f} s; measuring")
        return made

    def _measured(self, overlay: Mapping[str, Tensor], rows: Sequence[Row], others: Sequence[str]) -> Json:
        found = measure_all(self.engine, overlay, rows, others, self.amounts, self.data)
        return {**found, "bytes": cost(overlay)}

    def _machine(self) -> Json:
        return {"device": self.engine.lm.device.type, "threads": torch.get_num_threads()}


def _effort(seconds: float, edits: int, metrics: Mapping[str, Any]) -> Json:
    """`background_seconds` is no part of it: what is measured once for a model serves every edit."""
    return {
        "seconds_per_edit": seconds / edits,
        "steps": metrics["steps"],
        "holding": [metrics["edits_holding"], metrics["edits_total"]],
        "max_abs_change": metrics["max_abs_change"],
    }
