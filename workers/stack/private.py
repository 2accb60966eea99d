"""Files that hold a secret: nobody else can read them, and no half of one is ever seen."""

import os
from pathlib import Path


def write_private(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as sink:
        sink.write(text)
    new.replace(file)
