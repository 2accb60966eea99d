"""Where a running stack answers, for the commands and people that want to reach it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from workers.stack.private import write_private


@dataclass(frozen=True, slots=True)
class Addresses:
    """Of the API, and of the servers behind it (whose passwords are why the file is private)."""

    api_url: str
    database_url: str
    redis_url: str

    def write(self, data_dir: Path) -> None:
        write_private(_file(data_dir), json.dumps(asdict(self)))

    @staticmethod
    def read(data_dir: Path) -> "Addresses | None":
        """Of the stack that runs in this folder, or None while it has not come up."""
        try:
            return Addresses(**json.loads(_file(data_dir).read_text()))
        except FileNotFoundError:
            return None

    @staticmethod
    def remove(data_dir: Path) -> None:
        _file(data_dir).unlink(missing_ok=True)


def _file(data_dir: Path) -> Path:
    return data_dir / "stack.json"
