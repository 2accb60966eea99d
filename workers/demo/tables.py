"""The demo's tables: pure functions from what the API answered to what rich prints."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from workers.demo.client import Json
from workers.demo.promise import Check


def mark(right: bool) -> str:
    return "[green]✓[/]" if right else "[red]✗[/]"


def said(text: str) -> str:
    """A model's answer on one line; nothing in it is markup."""
    return escape(" ".join(text.split())) or "[dim](nothing)[/]"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", expand=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def edits(report: Json) -> Table:
    table = _table("The edits", "prompt", "before", "after", "to be", "")
    for edit in report["edits"]:
        table.add_row(
            escape(edit["prompt"]),
            said(edit["before"]),
            said(edit["after"]),
            escape(edit["target"]),
            mark(edit["right_after"]),
        )
    return table


def paraphrases(report: Json) -> Table:
    table = _table("The same facts in words never trained on", "prompt", "before", "after", "")
    for edit in report["edits"]:
        for asked in edit["paraphrases"]:
            table.add_row(
                escape(asked["prompt"]),
                said(asked["before"]),
                said(asked["after"]),
                mark(asked["right_after"]),
            )
        table.add_section()
    return table


def gate(report: Json) -> Table:
    verdict = report["verdict"]
    title = f"The regression gate: {verdict['decision']} (at most {verdict['margin']:.0%} may be lost)"
    table = _table(
        title, "facts nobody asked to change", "known", "lost", "gained", "share lost", "bound", "p", ""
    )
    for group in verdict["groups"]:
        table.add_row(
            group["group"],
            str(group["known"]),
            str(group["lost"]),
            str(group["gained"]),
            f"{group['share_lost']:.1%}",
            f"≤ {group['upper_bound']:.1%}",
            f"{group['mcnemar_p']:.3f}",
            group["decision"],
        )
    for reason in verdict["reasons"]:
        table.caption = f"{table.caption}; {escape(reason)}" if table.caption else escape(reason)
    return table


def flipped(report: Json, at_most: int = 12) -> Table:
    found = report["probes"]["flipped"]
    lost = [probe for probe in found if probe["change"] == "lost"]
    title = f"Facts whose answer changed: {len(lost)} lost, {len(found) - len(lost)} gained"
    table = _table(title, "prompt", "true", "before", "after", "")
    for probe in (lost + [probe for probe in found if probe["change"] != "lost"])[:at_most]:
        table.add_row(
            escape(probe["prompt"]),
            escape(probe["object"]),
            said(probe["before"]),
            said(probe["after"]),
            probe["change"],
        )
    return table


def side_by_side(
    prompts: Sequence[str], left_name: str, left: Sequence[str], right_name: str, right: Sequence[str]
) -> Table:
    """Two versions' answers to the same prompts; what differs is bold."""
    table = _table("The same questions to both", "prompt", left_name, right_name)
    for prompt, a, b in zip(prompts, left, right, strict=True):
        table.add_row(escape(prompt), said(a), said(b) if a == b else f"[bold]{said(b)}[/]")
    return table


def timings(report: Json) -> Table:
    table = _table("Where the time went", "phase", "seconds")
    for phase, seconds in report["timings"].items():
        table.add_row(phase.replace("_", " "), f"{seconds:.1f}")
    return table


def promises(checks: Sequence[Check]) -> Table:
    table = _table("What the demo had to show", "promise", "found", "")
    for check in checks:
        table.add_row(escape(check.promise), escape(check.found), mark(check.kept))
    return table
