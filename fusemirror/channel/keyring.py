"""The keyring: the directory with the keys of one filesystem on one host, and how it changes.

`certificate.pem`, `key.pem`
    What this host shows, and what proves that it is its.
`peer.pem`
    What the other host shows.
`next.pem`, `peer-next.pem`
    While keys are renewed (`renewal.py`): the key and the certificate that this host is to show, and the
    certificates that the other host is to show, the newest last; it may show them already.
`replaced.pem`
    What hosts showed in whose place another one was invited, the newest last. Whoever shows one of these is
    let in as far as to be told so (`tls.py`).

Each change is a few files that are replaced one after the other. The order is such that a crash between two
leaves fewer who are let in, and never one more; and a host that shows what the other one knows.
"""

import ssl
from pathlib import Path
from typing import NamedTuple

from fusemirror.errors import BadKeys
from fusemirror.keys import CERTIFICATE, KEY, NEXT, PEER_CERTIFICATE, PEER_NEXT, REPLACED, make_key_pair
from fusemirror.limits import CERTIFICATE_BYTES_MAX, KEYS_COMING_MAX, REPLACED_HOSTS_MAX
from fusemirror.volume.beneath import read_plain
from fusemirror.volume.durable import replace_file, sync_directory

_BEGINNING, _END = "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n"


class Ring(NamedTuple):
    """What the keyring holds, each certificate as `normal` writes it."""

    shown: str
    """What this host shows."""
    next: str
    """What it is to show once the other host knows it; empty where that is the same."""
    peers: tuple[str, ...]
    """What the other host may show: what it showed last, and what it is to show, the newest last."""

    @property
    def is_renewing(self) -> bool:
        return bool(self.next) or len(self.peers) > 1


def certificates_in(path: Path) -> list[str]:
    """The certificates of a file, as PEM, in order; none where there is no file. OSError, ValueError."""
    try:
        text = read_plain(path, REPLACED_HOSTS_MAX * CERTIFICATE_BYTES_MAX).decode("ascii")
    except FileNotFoundError:
        return []
    return [f"{each}{_END}" for each in text.split(_END) if each.strip()]


def normal(certificate: str) -> str:
    """The same one, as it is always written here: for comparing. ValueError where it is none that OpenSSL
    would take."""
    encoded = ssl.PEM_cert_to_DER_cert(certificate)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=encoded)
    except ssl.SSLError as error:
        raise ValueError(f"no certificate: {error.reason or error}") from None
    return ssl.DER_cert_to_PEM_cert(encoded)


def read_ring(directory: Path) -> Ring:
    """What is there. BadKeys where that cannot be used."""
    try:
        peers = [*certificates_in(directory / PEER_CERTIFICATE), *certificates_in(directory / PEER_NEXT)]
        coming = _certificate_of(directory / NEXT)
        return Ring(
            normal((directory / CERTIFICATE).read_text(encoding="ascii")),
            normal(coming) if coming else "",
            tuple(dict.fromkeys(map(normal, peers))),
        )
    except OSError as error:
        raise BadKeys(directory, f"{Path(error.filename).name}: {error.strerror}") from error
    except ValueError as error:
        raise BadKeys(directory, str(error)) from error


def _certificate_of(path: Path) -> str:
    """The one that stands behind a key; empty where there is none."""
    try:
        text = read_plain(path, 2 * CERTIFICATE_BYTES_MAX).decode("ascii")
    except FileNotFoundError:
        return ""
    _, beginning, rest = text.partition(_BEGINNING)
    return beginning + rest


def replace_peer(directory: Path, certificate: str) -> None:
    """Durable on return: the other host is the one with this certificate, and who was it before is none any
    more, with what it was to show either. OSError, ValueError."""
    before = [*certificates_in(directory / PEER_CERTIFICATE), *certificates_in(directory / PEER_NEXT)]
    replaced = [*certificates_in(directory / REPLACED), *before]
    replace_file(directory / REPLACED, "".join(replaced[-REPLACED_HOSTS_MAX:]).encode())
    _remove(directory / PEER_NEXT)
    _remove(directory / NEXT)
    replace_file(directory / PEER_CERTIFICATE, certificate.encode())


def prepare_next(directory: Path, host_name: str) -> None:
    """Durable on return: there are a key and a certificate that this host is to show. Those that there are
    already stay: the other host may know them. OSError."""
    if not (directory / NEXT).exists():
        made = make_key_pair(host_name)
        replace_file(directory / NEXT, (made.key + made.certificate).encode())


def show_next(directory: Path) -> None:
    """Durable on return: this host shows what it was to show. OSError, ValueError.

    The key's file holds the certificate too, so that a crash between the two files leaves no doubt about
    which belong together: `finish` goes on from there.
    """
    replace_file(directory / KEY, read_plain(directory / NEXT, 2 * CERTIFICATE_BYTES_MAX))
    _finish_showing(directory)


def finish(directory: Path) -> None:
    """Durable on return: what `show_next` and `confirm_peer` do is whole, where a crash cut one short.
    OSError, ValueError."""
    _finish_showing(directory)
    for certificate in certificates_in(directory / PEER_CERTIFICATE):
        _forget_up_to(directory, certificate)


def _finish_showing(directory: Path) -> None:
    certificate = _certificate_of(directory / KEY)
    if certificate and certificate != (directory / CERTIFICATE).read_text(encoding="ascii"):
        replace_file(directory / CERTIFICATE, certificate.encode())
    if certificate and certificate == _certificate_of(directory / NEXT):
        _remove(directory / NEXT)


def let_in(directory: Path, certificate: str) -> None:
    """Durable on return: the other host may show this one too. OSError, ValueError."""
    coming = [*certificates_in(directory / PEER_NEXT), certificate]
    replace_file(directory / PEER_NEXT, "".join(coming[-KEYS_COMING_MAX:]).encode())


def confirm_peer(directory: Path, certificate: str) -> None:
    """Durable on return: the other host shows this one, which it was to show; what came before it is let in
    no more. OSError, ValueError."""
    replace_file(directory / PEER_CERTIFICATE, certificate.encode())
    _forget_up_to(directory, certificate)


def _forget_up_to(directory: Path, certificate: str) -> None:
    """It is to come no more, nor is what would have come before it."""
    coming = [normal(each) for each in certificates_in(directory / PEER_NEXT)]
    certificate = normal(certificate)
    if certificate not in coming:
        return
    if later := coming[coming.index(certificate) + 1 :]:
        replace_file(directory / PEER_NEXT, "".join(later).encode())
    else:
        _remove(directory / PEER_NEXT)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_directory(path.parent)
