"""The unprivileged account as which root runs a program that refuses to be root."""

import pwd
import stat
import subprocess
from pathlib import Path

from workers.stack.errors import StackError

SEARCH = stat.S_IXOTH


def account_ids(name: str) -> tuple[int, int]:
    """User and group id of the system account `name`, which is made if there is none."""
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", name]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise StackError(
                f"PostgreSQL does not run as root, and the account {name!r} could not be made: {error}. "
                "Make it yourself, run Factedit as another user, or set FACTEDIT_DATABASE_URL."
            ) from error
        account = pwd.getpwnam(name)
    return account.pw_uid, account.pw_gid


def let_pass(path: Path) -> None:
    """Let others pass through the folders above `path`, without listing them, where they can't yet."""
    for folder in path.resolve().parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & SEARCH:
            folder.chmod(mode | SEARCH)


def let_read(tree: Path) -> None:
    """Let others read and run what lies under `tree` (a strict umask may have hidden it)."""
    if tree.stat().st_mode & stat.S_IROTH:
        return
    for path in [tree, *tree.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | stat.S_IROTH | (SEARCH if mode & stat.S_IXUSR else 0))
