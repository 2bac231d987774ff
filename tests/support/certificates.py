"""Certificates, made on the spot, and servers' endpoints that use them."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


class Authority:
    """Signs certificates, for servers and for clients."""

    def __init__(self, parent: "Authority | None" = None) -> None:
        pytest.importorskip("OpenSSL", reason="pip install 'xformd[tls]'")
        trustme: Any = pytest.importorskip("trustme", reason="pip install --group dev")
        self._ca: Any = trustme.CA() if parent is None else parent._ca.create_child_ca()

    def write(self, path: Path) -> Path:
        """Write its own certificate."""
        self._ca.cert_pem.write_to_path(path)
        return path

    def issue(self, path: Path, *names: str, **validity: datetime.datetime) -> Path:
        """Write a certificate for DNS names, IP addresses and URIs, with its key; ``not_before`` and ``not_after``."""
        issued = self._ca.issue_cert(*(name for name in names if ":/" not in name), **validity)
        certificate = issued.cert_chain_pems[0].bytes()
        if uris := [name for name in names if ":/" in name]:
            certificate = self._add_uris(certificate, uris)
        chain = [each.bytes() for each in issued.cert_chain_pems[1:]]
        path.write_bytes(b"".join([issued.private_key_pem.bytes(), certificate, *chain]))
        return path

    def _add_uris(self, pem: bytes, uris: Sequence[str]) -> bytes:
        """Sign a certificate anew, with URIs: trustme has none."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization

        made = x509.load_pem_x509_certificate(pem)
        builder = x509.CertificateBuilder(
            made.issuer,
            made.subject,
            made.public_key(),
            made.serial_number,
            made.not_valid_before_utc,
            made.not_valid_after_utc,
        )
        for extension in made.extensions:
            value: Any = extension.value
            if isinstance(value, x509.SubjectAlternativeName):
                value = x509.SubjectAlternativeName([*value, *map(x509.UniformResourceIdentifier, uris)])
            builder = builder.add_extension(value, extension.critical)
        key: Any = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
