"""Certificates for localhost, made on the spot, and servers' endpoints that use them."""

import datetime
from pathlib import Path

import pytest


def tls_endpoint(folder: Path) -> tuple[str, Path]:
    """Give where to listen, and a folder with the certificate to trust."""
    pytest.importorskip("OpenSSL", reason="pip install 'xformd[tls]'")
    trusted = folder / "trusted"
    trusted.mkdir()
    key, certificate = folder / "key.pem", trusted / "certificate.pem"
    write_certificate(key, certificate)
    return f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1", trusted


def write_certificate(key_path: Path, certificate_path: Path, password: bytes | None = None) -> None:
    """Write a key, encrypted if there is a password, and a certificate for localhost that it signs itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key_path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    certificate_path.write_bytes(certificate.public_bytes(pem))
