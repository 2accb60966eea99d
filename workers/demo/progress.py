"""A job's events, as they arrive, as lines and a bar on the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from workers.demo.client import Json


def follow(events: Iterable[Json], console: Console) -> None:
    """Show a job's events until they end."""
    columns = SpinnerColumn(), TextColumn("{task.description:<48}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("queued", total=None)
        for event in events:
            kind, data = event["type"], event["data"]
            if kind == "phase":
                bar.reset(task, description=data["phase"], total=None)
                console.print(f"  [dim]{kind:<10}[/] {data['phase']}")
            elif kind == "progress":
                bar.update(task, **_step(data))
            else:
                console.print(f"  [dim]{kind}[/]")


def _step(data: Json) -> Json:
    """What rich's bar is told about one progress event."""
    if data["phase"] == "scoring":
        text = f"scoring: {data['done']} of {data['total']} questions"
        return {"description": text, "completed": data["done"], "total": data["total"]}
    if data["phase"] == "loading":
        text = f"loading: {data['done']} of {data['total']} unmodified facts read"
        return {"description": text, "completed": data["done"], "total": data["total"]}
    text = f"editing: step {data['step']}, {data['edits_holding']} of {data['edits_total']} edits hold"
    return {"description": text, "completed": data["step"], "total": data["max_steps"]}
