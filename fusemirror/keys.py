"""Keys: for each host a private key, and a certificate that the other host knows it by.

Both pairs are made once, by `create`; the join file takes one of them to the other host.
"""

import datetime

import msgspec

CERTIFICATE, KEY, PEER_CERTIFICATE = "certificate.pem", "key.pem", "peer.pem"
"""In the directory of the keys: what this host shows, what proves that it is its, what the other shows."""
REPLACED = "replaced.pem"
"""There too: what hosts showed in whose place another one was invited."""
NEXT, PEER_NEXT = "next.pem", "peer-next.pem"
"""There too, while keys are renewed: the key and the certificate that this host is to show, and what the
other host is to show."""

_COMMON_NAME_BYTES_MAX = 64  # RFC 5280, appendix A
# Its holder is known by all of it, so dates say nothing; and a clock that is wrong must not part two hosts.
_BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # there is none (RFC 5280, 4.1.2.5)


class KeyPair(msgspec.Struct, frozen=True):
    """Of one host, as PEM."""

    certificate: str
    key: str


def make_key_pair(host_name: str) -> KeyPair:
    """A new one. The name is for people who look into the certificate."""
    # Only here: no other command needs it, and it takes long to import.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    common_name = host_name.encode(errors="replace")[:_COMMON_NAME_BYTES_MAX].decode(errors="ignore")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name or "fusemirror")])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), _BEGINNING, _END
    )
    signs_no_others = x509.BasicConstraints(ca=False, path_length=None)
    certificate = builder.add_extension(signs_no_others, critical=True).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(certificate.public_bytes(encoding).decode(), private.decode())
