"""Check the certificates of Triton's gRPC port before Triton reads them, because its own error messages say little."""

from __future__ import annotations

import base64
import logging
import re
import ssl
from pathlib import Path

from plurum.errors import ServerError
from plurum.regular_files import MAX_SECRET_BYTES, read_regular
from plurum.settings.serving import ServerTls

__all__ = ["check_certificates"]

_log = logging.getLogger(__name__)
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----([^-]+)")
# Object identifiers of Ed25519 and Ed448 in PKCS #8 (RFC 8410): gRPC supports neither.
_EDWARDS = (bytes.fromhex("06032b6570"), bytes.fromhex("06032b6571"))
_LOCKED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
# OpenSSL reports the last one if the key type differs, such as RSA for an elliptic-curve certificate.
_MISMATCHES = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


def check_certificates(tls: ServerTls) -> None:
    """Check that Triton can use these files, and warn if other users can read the private key.

    Raises:
        ServerError: a file can't be read or is not PEM, or the key has a password or belongs to another certificate.
    """
    _check_certificate(tls.cert, "--grpc-tls-cert")
    _check_key(tls.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The empty password keeps OpenSSL from prompting at the terminal.
        context.load_cert_chain(tls.cert, tls.key, password="")
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason in _MISMATCHES:
            raise ServerError(
                f"--grpc-tls-key: expected the private key of the first certificate in {tls.cert}, got {tls.key}. "
                "Change --grpc-tls-key or --grpc-tls-cert."
            ) from error
        raise ServerError(
            f"--grpc-tls-cert, --grpc-tls-key: expected a usable certificate and key, got {tls.cert} and {tls.key} "
            f"({_reason(error)}). Change one of them."
        ) from error
    if tls.client_ca is not None:
        _check_certificate(tls.client_ca, "--grpc-tls-client-ca")
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as error:
            raise ServerError(
                f"--grpc-tls-client-ca: expected certificates of authorities, got {tls.client_ca} ({_reason(error)}). "
                "Give a PEM file of CA certificates."
            ) from error
    if tls.key.stat().st_mode & 0o077:
        _log.warning("other users of this machine can read the private key %s; run: chmod 600 %s", tls.key, tls.key)


def _check_certificate(path: Path, option: str) -> None:
    if _CERTIFICATE not in _read(path, option):
        raise ServerError(
            f"{option}: expected a certificate in PEM (-----BEGIN CERTIFICATE-----), got {path}. Give a PEM file."
        )


def _check_key(path: Path) -> None:
    text = _read(path, "--grpc-tls-key")
    if any(mark in text for mark in _LOCKED):
        raise ServerError(
            f"--grpc-tls-key: expected a private key without a password, got {path}, which has one. "
            f"Run: openssl pkey -in {path} -out open.pem"
        )
    key = _KEY.search(text)
    if key is None:
        raise ServerError(
            f"--grpc-tls-key: expected a private key in PEM (-----BEGIN PRIVATE KEY-----), got {path}. Give a PEM file."
        )
    if _is_edwards(key[1]):
        raise ServerError(
            f"--grpc-tls-key: expected a P-256 or RSA key, got {path}, an Edwards key (Ed25519), which gRPC does not "
            "support. Generate a P-256 or RSA key."
        )


def _is_edwards(base: bytes) -> bool:
    try:
        return any(kind in base64.b64decode(base)[:20] for kind in _EDWARDS)
    except ValueError:
        # The file is truncated; OpenSSL reports that.
        return False


def _read(path: Path, option: str) -> bytes:
    try:
        return read_regular(path, MAX_SECRET_BYTES)
    except OSError as error:
        raise ServerError(
            f"{option}: expected a readable file, got {path}: {error.strerror}. Give another file."
        ) from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
