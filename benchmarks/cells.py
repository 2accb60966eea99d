"""What a benchmark has found, a JSON file a cell, so that no finished cell is run twice; and its report."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "RESULTS.md"
PUBLISHED = Path(__file__).parent / "found"
"""Finished cells that are kept in the repository, a folder a model, so that tables grow from run to run."""
LIBRARY = Path(__file__).parents[1] / "factedit"

Json = dict[str, Any]


class Cells:
    """Finished cells in one folder. A cell is known by its `kind` and by all that it was asked to be.

    Args:
        published: a folder with cells of earlier runs, in the repository. They are reported and never taken
            for finished: whoever runs a benchmark measures it.
    """

    def __init__(self, folder: Path, published: Path | None = None) -> None:
        self.folder, self._published = folder, published

    def get(self, kind: str, identity: Mapping[str, Any]) -> Json | None:
        """What was found, if the cell is finished."""
        path = self._path(kind, identity)
        found: Json | None = json.loads(path.read_text(encoding="utf-8"))["found"] if path.exists() else None
        return found

    def put(self, kind: str, identity: Mapping[str, Any], found: Json) -> None:
        """Keep what was found; whoever reads meanwhile sees all of it or nothing."""
        path = self._path(kind, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        cell = {
            "kind": kind,
            "cell": dict(identity),
            "finished_at": time.time(),
            "code": code_digest(),
            "found": found,
        }
        scratch = path.with_suffix(".partial")
        scratch.write_text(json.dumps(cell, ensure_ascii=False, indent=1), encoding="utf-8")
        scratch.replace(path)

    def once(
        self, kind: str, identity: Mapping[str, Any], run: Callable[[], Json], *, again: bool = False
    ) -> Json:
        """What was found, or what `run` finds now."""
        found = None if again else self.get(kind, identity)
        if found is None:
            found = run()
            self.put(kind, identity, found)
        return found

    def drop(self, kind: str, identity: Mapping[str, Any]) -> None:
        """Forget what was found, if anything."""
        self._path(kind, identity).unlink(missing_ok=True)

    def all(self, kind: str) -> list[Json]:
        """Every finished cell of a kind, whole, the oldest first; of one that was run twice, the last."""
        texts = [path.read_text(encoding="utf-8") for path in sorted((self.folder / kind).glob("*.json"))]
        if (before := self._published_path(kind)) is not None and before.exists():
            texts += before.read_text(encoding="utf-8").splitlines()
        cells: list[Json] = sorted(map(json.loads, texts), key=lambda cell: float(cell["finished_at"]))
        return list({digest_of(cell["cell"]): cell for cell in cells}.values())

    def publish(self, kind: str) -> None:
        """Write all finished cells into the published folder, a line each, without their samples."""
        path = self._published_path(kind)
        if path is None:
            raise ValueError("These cells have no published folder.")
        lines = [
            json.dumps({**cell, "found": {k: v for k, v in cell["found"].items() if k != "samples"}})
            for cell in self.all(kind)
        ]
        if lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _published_path(self, kind: str) -> Path | None:
        return None if self._published is None else self._published / f"{kind}.jsonl"

    def _path(self, kind: str, identity: Mapping[str, Any]) -> Path:
        return self.folder / kind / f"{digest_of(identity)}.json"


def digest_of(value: Any) -> str:
    """A name for whatever JSON can say; the order of keys does not count."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]


@cache
def code_digest(folder: Path = LIBRARY) -> str:
    """Of the library's modules: whether a cell was measured with the code as it is now."""
    modules = sorted(folder.rglob("*.py"))
    lines = [
        f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in modules
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


# Reports


def share(hits: Iterable[bool]) -> list[int]:
    """[how many are true, of how many]."""
    listed = list(hits)
    return [sum(listed), len(listed)]


def percent(found: Sequence[int] | None) -> str:
    return "-" if not found or not found[1] else f"{found[0] / found[1]:.1%}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_section(name: str, text: str, results: Path = RESULTS) -> None:
    """Put `text` between the file's markers of that name, at its end if it has none; keep the rest.

    Raises:
        ValueError: one marker without the other.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = results.read_text(encoding="utf-8") if results.exists() else ""
    if (begin in old) != (end in old):
        raise ValueError(f"{results.name} has only one of the markers {begin} and {end}.")
    section = f"{begin}\n\n{text.strip()}\n\n{end}"
    if begin in old:
        before, _, rest = old.partition(begin)
        new = before + section + rest.partition(end)[2]
    else:
        new = f"{old.rstrip()}\n\n{section}\n".lstrip()
    results.write_text(new, encoding="utf-8")
