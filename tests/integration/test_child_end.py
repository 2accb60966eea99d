"""A worker's child does not outlive it."""

import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.working import wait_until


def ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, signal; from workers.warm_child import WarmChild\n"
        "child = WarmChild(dict(os.environ), works='tests.support.fake_work'); child.start()\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    wait_until(lambda: ended(pid), 10)
