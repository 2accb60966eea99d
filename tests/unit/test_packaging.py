"""What a newcomer's `make` leans on: pins, the order of set-up, and a clear word when Python is missing."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==[0-9][0-9A-Za-z.]*$")


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(PIN.match(line) for line in lines), "every line pins one version, and nothing else"
    return {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line for line in lines}


def test_whatever_the_code_imports_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in project["dependencies"]}
    assert wanted <= pins("requirements.txt").keys()


def test_no_file_of_requirements_names_an_index() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        assert "://" not in (ROOT / name).read_text()
        assert "--" not in (ROOT / name).read_text()


def test_the_tools_never_pin_what_the_runtime_pins() -> None:
    assert not pins("requirements.txt").keys() & pins("requirements-dev.txt").keys()


def test_torch_is_installed_before_all_else_and_by_its_pin() -> None:
    assert pins("requirements.txt")["torch"] == "torch==2.13.0"
    recipe = (ROOT / "Makefile").read_text()
    assert recipe.index("grep '^torch=='") < recipe.index("-r requirements.txt")


def test_without_a_python_the_makefile_says_what_to_install() -> None:
    done = subprocess.run(
        ["make", "PYTHON=", "VENV=no-such-folder", "demo"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_command_of_the_readme() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {command} " in listed for command in ("demo", "serve", "test", "lint", "help"))
