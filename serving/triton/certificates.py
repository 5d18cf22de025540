"""The certificates of Triton's gRPC port, checked before Triton reads them: it would say little of what is wrong."""

from __future__ import annotations

import base64
import logging
import re
import ssl
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from plurum.errors import ServerError
from plurum.regular_files import MAX_SECRET_BYTES, read_regular

__all__ = ["ServerTls", "check_certificates"]

_log = logging.getLogger(__name__)
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----([^-]+)")
# Ed25519 and Ed448, as a key in PKCS #8 names them near its beginning (RFC 8410): no gRPC shakes hands with those.
_EDWARDS = (bytes.fromhex("06032b6570"), bytes.fromhex("06032b6571"))
_LOCKED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
# The last one where the key is of another kind, such as RSA for a certificate on an elliptic curve.
_OTHERS_KEY = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


class ServerTls(BaseModel):
    """TLS on Triton's gRPC port; all files are PEM.

    Attributes:
        cert: The server's certificate, followed by those between it and an authority.
        key: Its private key, without a password.
        client_ca: Certificates of the authorities whose clients may ask (mutual TLS); None lets everyone ask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert: Path
    key: Path
    client_ca: Path | None = None


def check_certificates(tls: ServerTls) -> None:
    """Make sure that Triton can use these files, and warn of a private key that others can read.

    Raises:
        ServerError: a file can't be read or is no PEM, the key has a password, or is another certificate's.
    """
    _check_certificate(tls.cert, "--grpc-tls-cert")
    _check_key(tls.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password a key that is locked in a way of its own would have OpenSSL ask at the terminal.
        context.load_cert_chain(tls.cert, tls.key, password="")
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason in _OTHERS_KEY:
            raise ServerError(
                f"{tls.key} is not the private key of the first certificate in {tls.cert}; "
                "change --grpc-tls-key or --grpc-tls-cert"
            ) from error
        raise ServerError(
            f"{tls.cert} and {tls.key} can't be used for TLS ({_reason(error)}); "
            "change --grpc-tls-cert or --grpc-tls-key"
        ) from error
    if tls.client_ca is not None:
        _check_certificate(tls.client_ca, "--grpc-tls-client-ca")
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as error:
            raise ServerError(
                f"{tls.client_ca} can't be used as clients' authority ({_reason(error)}); change --grpc-tls-client-ca"
            ) from error
    if tls.key.stat().st_mode & 0o077:
        _log.warning("others on this machine can read the private key in %s; run: chmod 600 %s", tls.key, tls.key)


def _check_certificate(path: Path, option: str) -> None:
    if _CERTIFICATE not in _read(path, option):
        raise ServerError(f"{path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----); change {option}")


def _check_key(path: Path) -> None:
    text = _read(path, "--grpc-tls-key")
    if any(mark in text for mark in _LOCKED):
        raise ServerError(
            f"the private key in {path} has a password, and Triton can't ask for it; give --grpc-tls-key one without: "
            f"openssl pkey -in {path} -out open.pem"
        )
    key = _KEY.search(text)
    if key is None:
        raise ServerError(f"{path} holds no private key in PEM (-----BEGIN PRIVATE KEY-----); change --grpc-tls-key")
    if _is_edwards(key[1]):
        raise ServerError(f"{path} is an Edwards key (Ed25519), which gRPC can't use; make one of P-256 or RSA")


def _is_edwards(base: bytes) -> bool:
    try:
        return any(kind in base64.b64decode(base)[:20] for kind in _EDWARDS)
    except ValueError:
        # Cut short: OpenSSL says so.
        return False


def _read(path: Path, option: str) -> bytes:
    try:
        return read_regular(path, MAX_SECRET_BYTES)
    except OSError as error:
        raise ServerError(f"{path} can't be read: {error.strerror}; change {option}") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
