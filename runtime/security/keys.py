"""Private keys: parsed, and checked against their certificates. They are never printed, logged or quoted."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from runtime.errors import CredentialsError


def parse_key(data: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """The private key in PEM bytes.

    Only keys on elliptic curves: with others a server cannot be held to TLS 1.3 (see `runtime.security.tls`).

    Raises:
        CredentialsError: there is none, it has a passphrase, or it is of another kind; ``where`` begins its
            text.
    """
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise CredentialsError(
            f"{where}: the private key has a passphrase, which cannot be asked for here: "
            "store it without one, in a file that only its owner may read"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        found = "a certificate" if b"BEGIN CERTIFICATE" in data else "something else"
        raise CredentialsError(f"{where}: expected a private key (PEM), found {found}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialsError(
            f"{where}: expected a private key on an elliptic curve, as `planc certs issue` makes them: "
            "others cannot be held to TLS 1.3"
        )
    return key


def check_match(
    certificate: x509.Certificate, path: Path, key: ec.EllipticCurvePrivateKey, key_path: Path
) -> None:
    """Refuse a key that is not the certificate's.

    Raises:
        CredentialsError: it is another's.
    """
    if certificate.public_key() != key.public_key():
        raise CredentialsError(
            f"{key_path}: this private key is not that of the certificate {path}: give the pair that was "
            "issued together"
        )


__all__ = ["check_match", "parse_key"]
