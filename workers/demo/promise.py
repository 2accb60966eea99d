"""What the demo must show, checked on what the API answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EDITS_RIGHT = 0.9
PROBES_STILL_RIGHT = 0.95


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, whether it was kept, and the figures."""

    promise: str
    kept: bool
    found: str


def checks_of_report(report: Mapping[str, Any]) -> list[Check]:
    """The edits hold, the known probes are still right, nothing unchosen moved."""
    edits = report["edits"]
    right = sum(edit["right_after"] for edit in edits)
    probes = report["summary"]["probes"]
    integrity = report["integrity"]
    return [
        Check(
            f"at least {EDITS_RIGHT:.0%} of the edits are answered right, word for word",
            bool(edits) and right >= EDITS_RIGHT * len(edits),
            f"{right} of {len(edits)}",
        ),
        Check(
            f"at least {PROBES_STILL_RIGHT:.0%} of the facts known before are still right",
            probes["known_before"] > 0 and probes["share_still_right"] >= PROBES_STILL_RIGHT,
            f"{probes['still_right']} of {probes['known_before']} ({probes['share_still_right']:.1%})",
        ),
        Check(
            "the root's weights are bit-identical",
            integrity["root_unchanged"] and integrity["root_digest"] == integrity["root_digest_after"],
            integrity["root_digest_after"][:19] + "…",
        ),
        Check(
            "no unchosen block changed",
            integrity["unchosen_blocks_unchanged"],
            f"{len(integrity['changed_tensors'])} tensors of chosen blocks did",
        ),
    ]


def check_of_rollback(root: Sequence[str], back: Sequence[str]) -> Check:
    """After rolling back, every answer is the root's."""
    same = sum(a == b for a, b in zip(root, back, strict=True))
    return Check(
        "after rolling back, every answer is the root's",
        bool(root) and same == len(root),
        f"{same} of {len(root)}",
    )
