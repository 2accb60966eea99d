"""What a worker and its child say to each other: plain data, so that neither trusts the other's memory.

An order holds all that the work needs; the child knows no database. No torch here.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from factedit.facts import Edit, Probe
from factedit.outcomes import EditOutcome, ProbeOutcome
from factedit.relations import Relation
from factedit.specs import Blocks, ConstraintSpec, MethodSpec


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Order(_Message):
    """What every order names: the store, and the root that the work is on."""

    store_dir: Path
    device: str
    root_digest: str


class EditOrder(Order):
    """Make a version: train `edits` on top of `parent_overlay`, `ledger` kept in the mix.

    A revert trains all that is left of the ledger as `edits`, on the root; that may be nothing.

    Attributes:
        avoid: prompts that may not serve as anchors: the users' own probes.
        cache_bytes: what a set of the edit's examples may keep in memory (factedit.spilling).
        manifest: the version's manifest, but for what only the finished overlay can tell.
    """

    parent_overlay: str | None
    edits: list[Edit]
    ledger: list[Edit]
    relations: dict[str, Relation]
    avoid: list[str]
    method: MethodSpec
    blocks: Blocks
    constraint: ConstraintSpec
    seed: int
    cache_bytes: int
    manifest: dict[str, Any]


class EditDone(_Message):
    """A version that is durable in the store."""

    overlay_digest: str
    overlay_bytes: int
    manifest: dict[str, Any]
    metrics: dict[str, Any]


class ScoreOrder(Order):
    """Ask two versions the same: `before` is what stands in production, `after` the candidate.

    A version's overlay is None for the root. Probes are named apart, since what a version has
    answered once is not asked again. `said`: what `before`, or else the root, has answered already, by probe:
    what is still said takes no generation.
    """

    before: str | None
    after: str | None
    batch_size: int
    edits: list[Edit]
    relations: dict[str, Relation]
    probes_before: list[Probe]
    probes_after: list[Probe]
    said: dict[str, str] = {}


class Answers(_Message):
    """All that one version answered to a score order. `neighbors`: by edit, in the order's order."""

    edits: list[EditOutcome]
    neighbors: list[list[str]]
    probes: list[ProbeOutcome]


class ScoreDone(_Message):
    before: Answers
    after: Answers
