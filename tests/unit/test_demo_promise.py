"""The demo fails when what it has to show is not so."""

import json
from importlib import resources
from typing import Any

import pytest

from factedit.relations import builtin_catalogue
from workers.demo.promise import check_of_rollback, checks_of_report


def report(**changes: Any) -> dict[str, Any]:
    """A report in which every promise is kept, but for the changes."""
    good: dict[str, Any] = {
        "edits": [{"right_after": n != 0} for n in range(10)],
        "summary": {"probes": {"known_before": 400, "still_right": 392, "share_still_right": 0.98}},
        "integrity": {
            "root_digest": "sha256:" + "a" * 64,
            "root_digest_after": "sha256:" + "a" * 64,
            "root_unchanged": True,
            "unchosen_blocks_unchanged": True,
            "changed_tensors": ["a", "b"],
        },
    }
    for path, value in changes.items():
        *folders, last = path.split("__")
        target = good
        for folder in folders:
            target = target[folder]
        target[last] = value
    return good


def test_nine_of_ten_edits_are_enough() -> None:
    assert all(check.kept for check in checks_of_report(report()))


@pytest.mark.parametrize(
    "change",
    [
        {"edits": [{"right_after": n > 1} for n in range(10)]},
        {"edits": []},
        {"summary__probes": {"known_before": 400, "still_right": 379, "share_still_right": 0.9475}},
        {"summary__probes": {"known_before": 0, "still_right": 0, "share_still_right": 1.0}},
        {"integrity__root_unchanged": False},
        {"integrity__root_digest_after": "sha256:" + "b" * 64},
        {"integrity__unchosen_blocks_unchanged": False},
    ],
)
def test_one_broken_promise_is_found(change: dict[str, Any]) -> None:
    assert sum(not check.kept for check in checks_of_report(report(**change))) == 1


def test_a_rollback_that_leaves_one_answer_behind_is_found() -> None:
    assert check_of_rollback(["Paris", "kuna"], ["Paris", "kuna"]).kept
    assert not check_of_rollback(["Paris", "kuna"], ["Paris", "euro"]).kept
    assert not check_of_rollback([], []).kept


def test_the_demos_edits_are_over_relations_of_the_catalogue() -> None:
    script = json.loads((resources.files("workers.demo") / "edits.json").read_text())
    catalogue = builtin_catalogue()
    assert len(script["edits"]) == 10
    for edit in script["edits"]:
        assert edit["relation"] in catalogue.relations
        assert edit["old_object"] != edit["new_object"]
    assert len({(edit["subject"], edit["relation"]) for edit in script["edits"]}) == 10
