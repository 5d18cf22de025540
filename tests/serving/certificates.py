"""Certificates for tests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from plurum.client import Tls
from plurum.settings.serving import ServerTls

__all__ = ["Authority", "new_authority", "openssl", "self_signed", "tls_options"]

_EC = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1, which no authority has signed, and its private key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ("-addext", "subjectAltName=IP:127.0.0.1")
    openssl("req -x509 -days 1 -subj /CN=127.0.0.1 -newkey", *_EC, *names, "-keyout", key, "-out", cert)
    return cert, key


@dataclass(frozen=True)
class Authority:
    """Signs certificates for this machine; its own is `ca`."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return a certificate and its private key."""
        cert, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        names = self.folder / "names"
        names.write_text("subjectAltName=IP:127.0.0.1,IP:10.231.87.1")
        openssl("req -newkey", *_EC, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signing = ("-CA", self.ca, "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-extfile", names)
        openssl("x509 -req -days 1", "-in", request, *signing, "-out", cert)
        # openssl leaves the mode of a file that is there already.
        key.chmod(0o600)
        return cert, key

    def server(self, *, mutual: bool) -> ServerTls:
        """Return what a server is started with."""
        cert, key = self.issue("server")
        return ServerTls(cert=cert, key=key, client_ca=self.ca if mutual else None)

    def client(self, name: str = "clinic") -> Tls:
        """Return what a client shows that believes us and is known to us."""
        cert, key = self.issue(name)
        return Tls(ca_file=self.ca, cert_file=cert, key_file=key)


def openssl(words: str, *more: object) -> None:
    subprocess.run(["openssl", *words.split(), *map(str, more)], check=True, capture_output=True)


def new_authority(folder: Path) -> Authority:
    folder.mkdir()
    openssl(
        "req -x509 -days 1 -subj /CN=authority -newkey", *_EC, "-keyout", folder / "ca.key", "-out", folder / "ca.pem"
    )
    return Authority(folder)


def tls_options(tls: ServerTls) -> list[str]:
    """Return the options of `plurum serve` for `tls`."""
    files = {"cert": tls.cert, "key": tls.key, "client-ca": tls.client_ca}
    return [word for name, file in files.items() if file for word in (f"--grpc-tls-{name}", str(file))]
