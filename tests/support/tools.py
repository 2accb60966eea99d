"""What some tests are made with: programs of the machine's, and how long a round is."""

import os
import shutil

import pytest


def tool(name: str, package: str) -> str:
    """The program's path. Skips the test where it is not installed; `package` is Debian's."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} here (Debian: apt install {package})")
    return path


def times(short: int, long: int) -> int:
    """How often a round is repeated: `make chaos` sets FACTEDIT_CHAOS for the long ones."""
    return long if os.environ.get("FACTEDIT_CHAOS") else short
