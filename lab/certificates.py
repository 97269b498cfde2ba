"""Certificates for a server on the loopback, made by ``openssl`` for one run."""

from __future__ import annotations

import subprocess
from pathlib import Path

#: Days that they are valid.
_DAYS = "2"
_NAMES = "subjectAltName=IP:127.0.0.1,DNS:api.example\n"


def make_authority(directory: Path, name: str) -> Path:
    """Make a CA, and a certificate ``<name>-leaf`` for 127.0.0.1 and api.example, which is also a client's.

    Keys have the ending ``.key``, certificates ``.crt``. Returns the path of the CA's certificate.
    """
    _openssl(directory, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
    subject = ("-subj", f"/CN={name}", "-days", _DAYS)
    _openssl(directory, "req", "-x509", "-key", f"{name}.key", *subject, "-out", f"{name}.crt")
    _openssl(directory, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}-leaf.key")
    _openssl(directory, "req", "-new", "-key", f"{name}-leaf.key", "-subj", "/CN=leaf", "-out", f"{name}.csr")
    (directory / "extensions").write_text(_NAMES)
    _openssl(
        directory,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{name}.crt", "-CAkey", f"{name}.key", "-CAcreateserial"),
        *("-days", _DAYS, "-extfile", "extensions", "-out", f"{name}-leaf.crt"),
    )
    return directory / f"{name}.crt"


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=30)
