"""An image with a secret or an identity in it is refused, and a clean one is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from officegrid.image.seal import problems

_BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj" * 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sealed root, cut down to what is looked at."""
    for name in ("etc/ssh", "tmp", "var/tmp", "root", "run", "home", "boot", "dev", "var/log/apt",
                 "var/lib/officegrid", "var/lib/apt/lists", "usr/share/doc", "opt"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/shadow").write_text("root:*:19000::::::\ngrid:!*:19000::::::\nmysql:!:1::\n")
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ngrid:x:99:99::/:/bin/false\n")
    (tmp_path / "etc/machine-id").write_text("")
    return tmp_path


def test_a_sealed_root(root: Path) -> None:
    certificates = root / "etc/ssl/certs"
    certificates.mkdir(parents=True)
    (certificates / "ca.pem").write_text(f"-----BEGIN CERTIFICATE-----\n{_BODY}\n")
    (root / "usr/share/doc/pem.txt").write_text("it begins with -----BEGIN PRIVATE KEY-----\n")
    (root / "etc/sources.list").write_text("deb http://deb.debian.org/debian bookworm main\n")
    assert problems(root) == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("etc/shadow", "root::19000::::::\n", "empty password"),
        ("etc/shadow", "root:$y$j9T$abc$def:19000::::::\n", "root has a password"),
        ("etc/shadow", "root:*:1::\njoe:!$y$j9T$abc$def:19000::::::\n", "joe still has"),
        ("etc/passwd", "root::0:0::/root:/bin/sh\n", "does not use etc/shadow"),
        ("etc/passwd", "root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\n", "second root"),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n", "machine-id"),
        ("etc/machine-id", "uninitialized\n", "machine-id"),
        ("var/lib/dbus/machine-id", "0123\n", "identity"),
        ("var/lib/systemd/random-seed", "x", "random"),
        ("etc/ssh/ssh_host_ed25519_key", "x", "host key"),
        ("etc/ssh/sshd_config", "", "log-in server"),
        ("etc/apt/auth.conf.d/mirror.conf", "machine m login a password b\n", "passwords"),
        ("etc/apt/sources.list", "deb https://joe:pw@mirror/debian x main\n", "with a password"),
        ("tmp/build.sh", "", "must be empty"),
        ("root/.bash_history", "", "must be empty"),
        ("home/joe/x", "", "must be empty"),
        ("var/lib/officegrid/profile.json", "{}", "must be empty"),
        ("var/log/apt/term.log", "", "left over"),
        ("var/lib/apt/lists/deb_x", "", "left over"),
        ("opt/tool/server.pem", f"-----BEGIN RSA PRIVATE KEY-----\n{_BODY}\n", "private key"),
        ("etc/app/conf", f"key:\n-----BEGIN PRIVATE KEY-----\n{_BODY}\n", "private key"),
        ("usr/share/x/id", f"-----BEGIN OPENSSH PRIVATE KEY-----\n{_BODY}\n", "private key"),
        ("opt/app/store.p12", "x", "store of keys"),
        ("srv/app/.my.cnf", "[client]\npassword=x\n", "log in"),
    ],
)
def test_what_breaks_the_seal(root: Path, name: str, text: str, words: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    found = problems(root)
    assert len(found) == 1, found
    assert words in found[0]
    assert "PRIVATE KEY" not in found[0], "a message never quotes the secret"


def test_accounts_without_a_shadow_file_are_not_sealed(root: Path) -> None:
    (root / "etc/shadow").unlink()
    assert len(problems(root)) == 1
