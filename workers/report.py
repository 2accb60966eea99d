"""The regression report: each edit and each probe before and after, and what the gate makes of them. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from factedit.answers import clause
from factedit.facts import Edit
from factedit.gate import Pair, Verdict, judge
from factedit.outcomes import EditOutcome, ProbeOutcome
from factedit.specs import GateSpec
from workers.orders import Answers
from workers.selection import Asked
from workers.work import Json


@dataclass
class Evidence:
    """What both versions have answered so far.

    Attributes:
        edits: those that are to hold; of a revert, all that remain in force.
        reverted: those that a revert takes out, asked as well; `restored`: ids of the edits that
            come into force again by it.
        root: the root's own answers, by probe, as far as they are known.
    """

    edits: Sequence[Edit]
    root: Mapping[str, str]
    reverted: Sequence[Edit] = ()
    restored: Collection[str] = ()
    asked: list[Asked] = field(default_factory=list)
    before: dict[str, ProbeOutcome] = field(default_factory=dict)
    after: dict[str, ProbeOutcome] = field(default_factory=dict)
    edits_before: list[EditOutcome] = field(default_factory=list)
    edits_after: list[EditOutcome] = field(default_factory=list)
    neighbors_before: list[list[str]] = field(default_factory=list)
    neighbors_after: list[list[str]] = field(default_factory=list)
    reverted_before: list[EditOutcome] = field(default_factory=list)
    reverted_after: list[EditOutcome] = field(default_factory=list)

    def add(self, asked: Sequence[Asked], before: Answers, after: Answers) -> None:
        """Take in the answers to one order; the edits, then those reverted, are in the first one only."""
        self.asked += asked
        self.before |= {answer.probe_id: answer for answer in before.probes}
        self.after |= {answer.probe_id: answer for answer in after.probes}
        if before.edits:
            count = len(self.edits)
            self.edits_before, self.edits_after = before.edits[:count], after.edits[:count]
            self.neighbors_before, self.neighbors_after = before.neighbors[:count], after.neighbors[:count]
            self.reverted_before, self.reverted_after = before.edits[count:], after.edits[count:]

    def verdict(self, gate: GateSpec) -> Verdict:
        pairs = [
            Pair(one.probe.id, one.group, self.before[one.probe.id].known, self.after[one.probe.id].known)
            for one in self.asked
        ]
        # When the last batch is reverted, no edit is left that could fail to hold.
        efficacy = _share([answer.right for answer in self.edits_after])
        return judge(pairs, 1.0 if efficacy is None else efficacy, gate)


def report(
    evidence: Evidence,
    verdict: Verdict,
    *,
    versions: Mapping[str, str | None],
    integrity: Mapping[str, Any],
    timings: Mapping[str, float],
    supersedes: Sequence[Json] = (),
) -> Json:
    """The body of GET /jobs/{id}/report; `versions` names the job and the versions it speaks of."""
    items = [_probe(one, evidence) for one in evidence.asked]
    return {
        **versions,
        "verdict": verdict.as_json(),
        "summary": {
            "edits": _edits_summary(evidence),
            "reverted": {
                "count": len(evidence.reverted),
                "gone": sum(not answer.right for answer in evidence.reverted_after),
            },
            "probes": _probes_summary(evidence, items),
        },
        "edits": [
            {**_edit(*one), "restored": one[0].id in evidence.restored}
            for one in zip(evidence.edits, evidence.edits_before, evidence.edits_after, strict=True)
        ],
        "supersedes": list(supersedes),
        "reverted": [
            {**_edit(*one), "gone": not one[2].right}
            for one in zip(evidence.reverted, evidence.reverted_before, evidence.reverted_after, strict=True)
        ],
        "neighbors": _neighbors(evidence),
        "probes": {"flipped": [item for item in items if item["change"] != "same"], "items": items},
        "integrity": dict(integrity),
        "timings": dict(timings),
    }


def _edit(edit: Edit, before: EditOutcome, after: EditOutcome) -> Json:
    return {
        "edit_id": edit.id,
        "kind": edit.kind,
        "subject": edit.subject,
        "relation": edit.relation,
        "prompt": after.prompt,
        "target": edit.new_object,
        "old_object": edit.old_object,
        "before": before.answer,
        "after": after.answer,
        "right_before": before.right,
        "right_after": after.right,
        "teacher_forced": after.teacher_forced,
        "old_ranked_first": after.old_ranked_first,
        "paraphrases": [
            {
                "prompt": then.prompt,
                "before": first.answer,
                "after": then.answer,
                "right_before": first.right,
                "right_after": then.right,
            }
            for first, then in zip(before.paraphrases, after.paraphrases, strict=True)
        ],
    }


def _probe(asked: Asked, evidence: Evidence) -> Json:
    before, after = evidence.before[asked.probe.id], evidence.after[asked.probe.id]
    change = "same" if before.known == after.known else ("lost" if before.known else "gained")
    return {
        "probe_id": asked.probe.id,
        "group": asked.group,
        "prompt": asked.probe.prompt,
        "object": asked.probe.object,
        "before": before.answer,
        "after": after.answer,
        "change": change,
    }


def _neighbors(evidence: Evidence) -> list[Json]:
    """The users' own neighbours of their edits: to be looked at; the gate weighs the probes."""
    return [
        {
            "edit_id": edit.id,
            "prompt": prompt,
            "before": before,
            "after": after,
            "unchanged": clause(before) == clause(after),
        }
        for edit, first, then in zip(
            evidence.edits, evidence.neighbors_before, evidence.neighbors_after, strict=True
        )
        for prompt, before, after in zip(edit.neighbors, first, then, strict=True)
    ]


def _edits_summary(evidence: Evidence) -> Json:
    before, after = evidence.edits_before, evidence.edits_after
    return {
        "count": len(evidence.edits),
        "efficacy_before": _share([answer.right for answer in before]),
        "efficacy_after": _share([answer.right for answer in after]),
        "paraphrase_before": _share([p.right for answer in before for p in answer.paraphrases]),
        "paraphrase_after": _share([p.right for answer in after for p in answer.paraphrases]),
        "teacher_forced_after": _share([answer.teacher_forced for answer in after]),
    }


def _probes_summary(evidence: Evidence, items: Sequence[Json]) -> Json:
    """`unchanged_share` compares with what production answers, `unchanged_from_root_share` with the root."""
    known = [one.probe.id for one in evidence.asked if evidence.before[one.probe.id].known]
    still = [evidence.after[probe_id].known for probe_id in known]
    since_root = [
        clause(evidence.root[item["probe_id"]]) == clause(item["after"])
        for item in items
        if item["probe_id"] in evidence.root
    ]
    return {
        "count": len(items),
        "known_before": len(known),
        "still_right": sum(still),
        "share_still_right": _share(still),
        "unchanged_share": _share([clause(item["before"]) == clause(item["after"]) for item in items]),
        "unchanged_from_root_share": _share(since_root),
    }


def _share(hits: Sequence[bool]) -> float | None:
    """None of nothing: no figure is better than a made-up one."""
    return sum(hits) / len(hits) if hits else None
