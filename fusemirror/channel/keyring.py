"""The keyring: the directory with the keys of one filesystem on one host, and how it changes.

`certificate.pem`, `key.pem`
    What this host shows, and what proves that it is its.
`peer.pem`
    What the other host shows.
`replaced.pem`
    What hosts showed in whose place another one was invited, the newest last. Whoever shows one of these is
    let in as far as to be told so (`tls.py`).

Each change is a few files that are replaced one after the other. The order is such that a crash between two
leaves fewer who are let in, and never one more.
"""

from pathlib import Path

from fusemirror.keys import PEER_CERTIFICATE, REPLACED
from fusemirror.limits import CERTIFICATE_BYTES_MAX, REPLACED_HOSTS_MAX
from fusemirror.volume.beneath import read_plain
from fusemirror.volume.durable import replace_file

_END = "-----END CERTIFICATE-----\n"


def certificates_in(path: Path) -> list[str]:
    """The certificates of a file, as PEM, in order; none where there is no file. OSError, ValueError."""
    try:
        text = read_plain(path, REPLACED_HOSTS_MAX * CERTIFICATE_BYTES_MAX).decode("ascii")
    except FileNotFoundError:
        return []
    return [f"{each}{_END}" for each in text.split(_END) if each.strip()]


def replace_peer(directory: Path, certificate: str) -> None:
    """Durable on return: the other host is the one with this certificate, and who was it before is none any
    more. OSError, ValueError."""
    replaced = [*certificates_in(directory / REPLACED), *certificates_in(directory / PEER_CERTIFICATE)]
    replace_file(directory / REPLACED, "".join(replaced[-REPLACED_HOSTS_MAX:]).encode())
    replace_file(directory / PEER_CERTIFICATE, certificate.encode())
