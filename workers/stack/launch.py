"""Run as a program, becomes the command it is given, having arranged to die with its parent.

`python -IS launch.py SIGNAL PARENT [USER] -- COMMAND…`: when the process PARENT ends, however it
ends, the kernel sends SIGNAL (Linux only; elsewhere the next start sweeps up). It is a program of
its own because between fork and exec of a process with threads no Python code is safe.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def become(user: str) -> None:
    import pwd

    account = pwd.getpwnam(user)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.update(HOME=account.pw_dir, USER=user, LOGNAME=user)


def die_with_parent(death_signal: int, parent: int) -> None:
    # After setuid, which clears the request.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it died before we had asked
        sys.exit(1)


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    death_signal, parent, *user = arguments[:split]
    command = arguments[split + 1 :]
    if user:
        become(user[0])
    die_with_parent(int(death_signal), int(parent))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} can't be started: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
