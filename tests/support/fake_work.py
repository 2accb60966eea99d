"""Works for a worker's child that compute nothing: what each does is written in the batch's first edit.

Its subject says how the edit stage goes, its new object how the score stage goes.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.ids import new_id
from workers.work import Json, Tell, Work, WorkFailed

FINE = "fine"
SLOW = "slow"
"""Until the file `go` is in the store's folder, or for a minute."""
KILLED = "killed"
KILLED_ONCE = "killed once"
BROKEN = "broken"
IMPOSSIBLE = "impossible"
CORRUPT = "corrupt"
REFUSED = "refused"


def works() -> Mapping[str, Work]:
    return {"edit": _edit, "score": _score}


def _edit(order: Json, tell: Tell) -> Json:
    tell.phase("loading")
    tell.phase("editing")
    # The last batch, reverted, leaves nothing to train.
    _behave(order["edits"][0]["subject"] if order["edits"] else FINE, order, tell)
    tell.phase("publishing")
    return {
        "overlay_digest": new_id("key").removeprefix("key_") * 2,
        "overlay_bytes": 10,
        "manifest": order["manifest"],
        "metrics": {"loss": float("nan"), "integrity": {"root_unchanged": True}},
    }


def _score(order: Json, tell: Tell) -> Json:
    tell.phase("scoring")
    behaviour = order["edits"][0]["new_object"] if order["edits"] else FINE
    _behave(behaviour, order, tell)
    return {
        "before": _answers(order, order["probes_before"], right=False, known=True),
        "after": _answers(order, order["probes_after"], right=behaviour != REFUSED, known=True),
    }


def _answers(order: Json, probes: list[Json], *, right: bool, known: bool) -> Json:
    return {
        "edits": [
            {
                "edit_id": edit["id"],
                "prompt": "p",
                "answer": "a\0",
                "right": right,
                "stopped": True,
                "teacher_forced": right,
                "paraphrases": [],
            }
            for edit in order["edits"]
        ],
        "neighbors": [["n" for _ in edit["neighbors"]] for edit in order["edits"]],
        "probes": [
            {"probe_id": probe["id"], "answer": "x", "answer_right": known, "ranked_first": None}
            for probe in probes
        ],
    }


def _behave(behaviour: str, order: Mapping[str, Any], tell: Tell) -> None:
    folder = Path(order["store_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tries").open("a") as tries:
        tries.write(f"{behaviour} {os.getpid()}\n")
    if behaviour == SLOW:
        for step in range(1200):
            if (folder / "go").exists():
                break
            tell.progress({"phase": "editing", "step": step, "max_steps": 1200})
            time.sleep(0.05)
    elif behaviour == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == KILLED_ONCE and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == BROKEN:
        raise KeyError("/a/secret/path")
    elif behaviour == IMPOSSIBLE:
        raise WorkFailed("editing_failed", "Block 99 is not there.")
    elif behaviour == CORRUPT:
        raise WorkFailed("corrupt_checkpoint", "Bytes do not match.", "a" * 64)
