"""The supervisor and the embedded servers, with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from workers.stack.leftovers import AlreadyRunning, is_running, mark, marked, only_one
from workers.stack.part import Part
from workers.stack.postgres import Postgres
from workers.stack.redis import Redis
from workers.stack.supervisor import PartFailed, Supervisor

SLEEP = ("sleep", "1000")


def eventually(holds: Callable[[], object], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return False


def commands(processes: list[psutil.Process]) -> list[list[str]]:
    """What each of them runs; one that has died since it was found runs nothing."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a zombie too
            found.append(process.cmdline())
    return found


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "logs", {**os.environ, **mark(tmp_path)}) as started:
        yield started
    assert marked(tmp_path) == []


def shell(script: str, name: str = "shell", **options: float) -> Part:
    return Part(name=name, command=("sh", "-c", script), **options)  # type: ignore[arg-type]


def test_a_killed_part_is_started_again(supervisor: Supervisor) -> None:
    supervisor.start(Part(name="sleeper", command=SLEEP))
    first = supervisor.pids()["sleeper"]
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: supervisor.pids()["sleeper"] not in (first, None))


def test_a_part_that_comes_up_at_the_second_try_is_waited_for(supervisor: Supervisor, tmp_path: Path) -> None:
    flag = tmp_path / "tried"
    supervisor.start(shell(f"test -e {flag} || {{ touch {flag}; exit 1; }}; exec sleep 1000"))
    assert supervisor.pids()["shell"] is not None


def test_a_part_that_keeps_dying_is_named_with_the_end_of_its_log(supervisor: Supervisor) -> None:
    with pytest.raises(PartFailed, match=r"(?s)shell ended 3 times while starting.*no such relation"):
        supervisor.start(shell("echo no such relation; exit 3"))


def test_a_program_that_is_not_there_is_named(supervisor: Supervisor) -> None:
    with pytest.raises(PartFailed, match=r"(?s)/no/such/program can't be started: No such file"):
        supervisor.start(Part(name="ghost", command=("/no/such/program",)))


def test_a_part_that_never_gets_ready_is_given_up(supervisor: Supervisor) -> None:
    with pytest.raises(PartFailed, match=r"was not ready within 0\.2 s"):
        supervisor.start(Part(name="sleeper", command=SLEEP, ready=lambda: False, ready_seconds=0.2))


def test_parts_end_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    record = tmp_path / "order"
    script = "trap 'echo {0} >> {1}; exit' TERM; while :; do sleep 0.05; done"
    with Supervisor(tmp_path / "logs", os.environ) as supervisor:
        for name in ("database", "worker", "api"):
            supervisor.start(shell(script.format(name, record), name))
        time.sleep(0.3)  # the shells set their traps
    assert record.read_text().split() == ["api", "worker", "database"]


def test_a_part_that_will_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs", {**os.environ, **mark(tmp_path)}) as supervisor:
        supervisor.start(shell("trap '' TERM; sleep 1000 & while :; do sleep 1; done", stop_seconds=0.2))
        assert eventually(lambda: len(marked(tmp_path)) >= 2)
    assert eventually(lambda: marked(tmp_path) == [])


def test_nothing_outlives_a_killed_stack(tmp_path: Path) -> None:
    """A direct child dies with it; what that had started is ended by the next start."""
    program = f"""
import os, time
from pathlib import Path
from workers.stack.leftovers import mark, only_one
from workers.stack.part import Part
from workers.stack.supervisor import Supervisor
folder = Path({str(tmp_path)!r})
with only_one(folder), Supervisor(folder / "logs", {{**os.environ, **mark(folder)}}) as supervisor:
    supervisor.start(Part(name="direct", command=("sleep", "1001")))
    supervisor.start(Part(name="parent", command=("sh", "-c", "setsid sleep 1002 & exec sleep 1003")))
    time.sleep(1000)
"""
    stack = subprocess.Popen([sys.executable, "-c", program])
    assert eventually(lambda: len(marked(tmp_path)) == 3)
    with pytest.raises(AlreadyRunning), only_one(tmp_path):
        pass
    assert is_running(tmp_path)
    stack.kill()
    stack.wait()
    if sys.platform == "linux":
        assert eventually(lambda: commands(marked(tmp_path)) == [["sleep", "1002"]])
    assert not is_running(tmp_path)
    with only_one(tmp_path):
        assert marked(tmp_path) == []


def test_a_restarted_stack_does_not_end_itself_or_its_parents(tmp_path: Path) -> None:
    program = "import sys, pathlib; from workers.stack.leftovers import end_marked;"
    program += "print(end_marked(pathlib.Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, **mark(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "0"


def test_postgres_keeps_what_was_committed_when_it_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    server = Postgres(tmp_path / "postgres")
    supervisor.start(server.part())
    url = server.url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        connection.commit()
    pid = supervisor.pids()["postgres"]
    assert pid is not None
    assert (psutil.Process(pid).username() == "root") is False
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: supervisor.pids()["postgres"] not in (pid, None))
    assert eventually(server._ready, 30)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)


def test_postgres_starts_again_from_the_same_folder(tmp_path: Path) -> None:
    for _ in range(2):
        server = Postgres(tmp_path / "postgres")
        with Supervisor(tmp_path / "logs", os.environ) as supervisor:
            supervisor.start(server.part())
            with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
                connection.execute("INSERT INTO kept VALUES (1)")
                counted = connection.execute("SELECT count(*) FROM kept").fetchone()
        server.remove_socket_dir()
    assert counted == (2,)


def test_redis_answers_at_its_address_after_it_was_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    server = Redis(tmp_path / "redis")
    supervisor.start(server.part())
    pid = supervisor.pids()["redis"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: supervisor.pids()["redis"] not in (pid, None))
    assert eventually(server._ready)
