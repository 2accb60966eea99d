"""The key of whoever owns the data folder: made once, kept in a private file, good for everything."""

from pathlib import Path

from service import keys
from service.database import Database
from workers.stack.private import write_private

NAME = "local"


def local_key(database: Database, data_dir: Path) -> str:
    """The key in `data_dir/api-key`; made anew where there is none, or the database does not know it."""
    file = data_dir / "api-key"
    with database.transaction() as s:
        if file.exists():
            known = file.read_text().strip()
            if keys.authenticate(s, known) is not None:
                return known
        _, secret = keys.create(s, NAME, ["admin"])
    write_private(file, secret + "\n")
    return secret
