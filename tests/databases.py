"""Real database servers for tests: a private MariaDB and a private PostgreSQL, and SQLite files.

Each server has a data folder of its own below /tmp (paths of sockets must be short), listens on a
socket in it and on a free loopback port, writes nothing durably (speed), and is gone at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from parts import without

PASSWORD = "Geh/eim:7@"  # every character a URL has to escape
QUOTED_PASSWORD = "Geh%2Feim%3A7%40"
START_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and the ways in."""

    kind: str  # "mariadb" | "postgresql"
    folder: Path
    port: int
    socket: Path
    process: subprocess.Popen[bytes]

    def url(self, database: str, user: str = "grid", password: str = QUOTED_PASSWORD) -> str:
        """Over loopback TCP."""
        scheme = "mysql+pymysql" if self.kind == "mariadb" else "postgresql"
        login = f"{user}:{password}" if password else user
        return f"{scheme}://{login}@127.0.0.1:{self.port}/{database}"

    @property
    def authority(self) -> Path:
        """Who signed its certificate."""
        return self.folder / "cert.pem"

    def socket_url(self, database: str) -> str:
        """Over the unix socket."""
        if self.kind == "mariadb":
            return f"mysql://grid:{QUOTED_PASSWORD}@/{database}?unix_socket={self.socket}"
        place = f"host={self.socket.parent}&port={self.port}"
        return f"postgresql://grid:{QUOTED_PASSWORD}@/{database}?{place}"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _account(name: str) -> dict[str, Any]:
    """Database servers refuse to run as root; anybody else runs them as themselves."""
    return {"user": name, "group": name, "extra_groups": []} if os.getuid() == 0 else {}


def _program(name: str, *folders: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))
    if found is None:
        without(f"{name} is not installed")
    assert found is not None
    return found


def _folder(owner: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ogdb-", dir="/tmp"))
    folder.chmod(0o755)
    if os.getuid() == 0:
        shutil.chown(folder, owner, owner)
    return folder


def _certificate(folder: Path, owner: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test database")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    secret.chmod(0o600)
    if os.getuid() == 0:
        shutil.chown(secret, owner)
    return certificate, secret


def _run(command: list[str], said: Path, text: str = "", account: str = "") -> None:
    """Raises AssertionError with the end of the log unless the command succeeds."""
    given = _account(account) if account else {}
    with said.open("ab") as log:
        done = subprocess.run(
            command, input=text.encode(), stdout=log, stderr=log, cwd="/", **given
        )
    if done.returncode:
        raise AssertionError(f"{command[-1]}: {said.read_text(errors='replace')[-2000:]}")


def _wait(answers: list[str], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while subprocess.run(answers, capture_output=True).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"no answer: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


@contextmanager
def _until_the_end(process: subprocess.Popen[bytes], folder: Path, how: int) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mariadb_server() -> Iterator[Server]:
    """A MariaDB of its own with the user grid, who may do everything in databases test%."""
    install, daemon = _program("mariadb-install-db"), _program("mariadbd", "/usr/sbin")
    client = _program("mariadb")
    folder = _folder("mysql")
    log, data, sock, port = folder / "log", folder / "data", folder / "s", free_port()
    certificate, key = _certificate(folder, "mysql")
    common = ["--no-defaults", f"--datadir={data}", "--innodb-log-file-size=32M"]
    small = ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0",
             "--innodb-flush-method=nosync", "--key-buffer-size=1M", "--skip-log-bin",
             "--aria-pagecache-buffer-size=8M", "--performance-schema=OFF", "--debug-no-sync",
             "--innodb-doublewrite=0"]  # fmt: skip
    _run([install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
         log, account="mysql")  # fmt: skip
    with log.open("ab") as out:
        process = subprocess.Popen(
            [daemon, *common, *small, f"--socket={sock}", f"--port={port}",
             "--bind-address=127.0.0.1", f"--pid-file={folder / 'pid'}", "--skip-networking=0",
             "--skip-name-resolve",
             f"--ssl-cert={certificate}", f"--ssl-key={key}",
             "--max-allowed-packet=64M", "--character-set-server=utf8mb4"],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/", **_account("mysql"),
        )  # fmt: skip
    with _until_the_end(process, folder, signal.SIGKILL):
        admin = [client, "--no-defaults", f"--socket={sock}", "--user=root"]
        _wait([*admin, "-e", "SELECT 1"], process, log)
        users = f"grid@'%' IDENTIFIED BY '{PASSWORD}', grid@localhost IDENTIFIED BY '{PASSWORD}'"
        for statement in (
            f"CREATE USER {users}",
            "GRANT ALL ON `test%`.* TO grid@'%', grid@localhost WITH GRANT OPTION",
            "GRANT CREATE USER, CONNECTION ADMIN ON *.* TO grid@'%' WITH GRANT OPTION",
        ):
            _run(admin, log, statement)
        yield Server("mariadb", folder, port, sock, process)


@contextmanager
def postgresql_server() -> Iterator[Server]:
    """A PostgreSQL of its own with the user grid, who may create databases."""
    bins = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    initdb, daemon = _program("initdb", *bins), _program("postgres", *bins)
    client = _program("psql", *bins)
    folder = _folder("postgres")
    log, data, port = folder / "log", folder / "data", free_port()
    secret = folder / "secret"
    secret.write_text(PASSWORD)
    if os.getuid() == 0:
        shutil.chown(secret, "postgres")
    _run([initdb, "-D", str(data), "-U", "grid", "--no-sync", "-E", "UTF8", "--locale=C",
          "-A", "scram-sha-256", f"--pwfile={secret}", "--no-instructions"],
         log, account="postgres")  # fmt: skip
    certificate, key = _certificate(folder, "postgres")
    options = {"ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key,
               "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder,
               "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off",
               "shared_buffers": "32MB", "max_connections": 30, "autovacuum": "off",
               "max_wal_size": "1GB", "lc_messages": "C"}  # fmt: skip
    settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [daemon, "-D", str(data), *settings], stdout=out, stderr=out, cwd="/",
            stdin=subprocess.DEVNULL, **_account("postgres"),
        )  # fmt: skip
    with _until_the_end(process, folder, signal.SIGQUIT):
        ask = ["env", f"PGPASSWORD={PASSWORD}", client, "-h", str(folder), "-p", str(port),
               "-U", "grid", "-d", "postgres", "-qAtc", "SELECT 1"]  # fmt: skip
        _wait(ask, process, log)
        yield Server("postgresql", folder, port, folder / f".s.PGSQL.{port}", process)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    with mariadb_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    with postgresql_server() as server:
        yield server
