"""Identity: whose volume a directory is, how it was last closed, and the lock of the one process in it."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fusemirror.errors import VolumeDamaged, VolumeFormat, VolumeInUse, VolumeMissing
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import KIB
from fusemirror.volume.beneath import open_plain, read_plain
from fusemirror.volume.durable import replace_file, sync_directory

FORMAT_VERSION = 2
"""That of more peers than one. With one it is 1: what is of the peer stands among what is of the volume."""

_IDENTITY = "identity.json"
REMOVED_IDENTITY = "identity.removed"
_STATE = "state.json"
_LOCK = "lock"
_IDENTITY_BYTES_MAX = 64 * KIB  # some hundred are used
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMES_AMONG_THE_VOLUMES = {
    "host": "peer",
    "name": "peer_name",
    "file_bytes_max": "peer_file_bytes_max",
    "has_replaced_us": "replaced",
}


class KnownPeer(msgspec.Struct, frozen=True, rename=_NAMES_AMONG_THE_VOLUMES):
    """What a volume says of one peer: another host that has a copy."""

    host: str  # its identity in hexadecimal
    name: str
    held_below: InodeNumber | None = None  # see `mirror/holdings.py`
    lock_epoch: str = ""  # in hexadecimal; another before its locks are dropped (`coherence/locks.py`)
    file_bytes_max: int = 0  # the longest file that its disk takes; 0: it did not say
    forgot_requests: bool = False  # a repair could not read which of its requests took effect
    has_replaced_us: bool = False  # it has said that it has another one in this host's place

    @property
    def identity(self) -> bytes:
        return bytes.fromhex(self.host)


class Identity(msgspec.Struct, frozen=True):
    """What a volume says of itself; `filesystem` and `host` are identities in hexadecimal."""

    filesystem: str
    name: str
    host: str
    host_name: str
    peers: Annotated[tuple[KnownPeer, ...], msgspec.Meta(min_length=1)]
    role: Literal["primary", "backup"]
    complete: bool  # False while a first copy, or a catalog copy, has not ended
    compare_all: bool  # every image and row is suspect: after a power cut or a repair
    consistent: bool = True  # False while names or images of it are older than others: a resync has not ended
    resync_paused: bool = False  # a person wants no images to be copied from this host for now
    term: int = 0  # raised by each change of roles
    handed_over: bool = False  # a backup that gave the role of primary to its peer, at `term`
    keep: str = ""  # the host whose copy a person chose in a split brain, in hexadecimal
    keep_at: str = ""  # this volume's newest generation when that was said: it is about no later one
    pairing: int = 0  # how many invitations were made up to the one that made the two hosts a pair
    witness: str = ""  # which one both hosts went by when they met last: see `witness/quorum.py`
    communication_directory: str = ""  # where requests of this host may be staged, on another disk

    def __post_init__(self) -> None:
        if len({peer.host for peer in self.peers}) < len(self.peers):
            raise ValueError("two of the peers are one host")

    @property
    def only_peer(self) -> KnownPeer:
        """The other host of a pair, for what is made for two hosts; else there are `peers`."""
        assert len(self.peers) == 1, "no mount serves more than two hosts"
        return self.peers[0]

    def peers_with(self, *changed: KnownPeer, **changes: Any) -> tuple[KnownPeer, ...]:
        """All peers, with these changes of some of them."""
        assert set(changed) <= set(self.peers), "what is changed is what the volume says now"
        return tuple(
            msgspec.structs.replace(peer, **changes) if peer in changed else peer for peer in self.peers
        )

    @property
    def peers_in_doubt(self) -> tuple[KnownPeer, ...]:
        """The peers, where it is not known any more which of their requests took effect here."""
        return self.peers_with(*self.peers, forgot_requests=True)

    @property
    def whole(self) -> bool:
        """The volume is what the filesystem was at some moment: it can be read, or taken over, by itself."""
        return self.complete and self.consistent

    @property
    def images_tell(self) -> bool:
        """Where a row and its image differ in size or time, the image is right: on a backup that is not whole
        images wait for their content, and the rows are right.
        """
        return self.whole or self.role == "primary"

    @staticmethod
    def load(directory: Path, *, removed: bool = False) -> "Identity":
        """The identity of the volume in `directory`, or the one that it had before it was `removed`;
        VolumeMissing, VolumeFormat or VolumeDamaged."""
        try:
            content = read_plain(
                directory / (REMOVED_IDENTITY if removed else _IDENTITY), _IDENTITY_BYTES_MAX
            )
        except OSError as error:
            raise VolumeMissing(directory, f"{_IDENTITY}: {error.strerror}") from error
        try:
            # The format first: a later one may have other fields.
            version = msgspec.json.decode(content, type=_Format).format
            if not 1 <= version <= FORMAT_VERSION:
                raise VolumeFormat(directory, version, FORMAT_VERSION)
            found = msgspec.json.decode(content)
            return msgspec.convert(found | {"peers": [found]} if version == 1 else found, Identity)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise VolumeDamaged(directory, f"{_IDENTITY}: {error}") from error

    def store(self, directory: Path) -> None:
        """On return the identity is durable; a crash before leaves the old one. OSError."""
        fields = {"format": FORMAT_VERSION, **msgspec.to_builtins(self)}
        if len(self.peers) == 1:
            fields |= fields.pop("peers")[0] | {"format": 1}
            fields = {name: fields[name] for name in _ORDER_OF_FORMAT_1} | fields
        replace_file(directory / _IDENTITY, msgspec.json.format(msgspec.json.encode(fields)) + b"\n")

    @staticmethod
    def is_removed(directory: Path) -> bool:
        """Whether the directory was a volume, and something of that is left."""
        return (directory / REMOVED_IDENTITY).exists() and not (directory / _IDENTITY).exists()

    @staticmethod
    def remove(directory: Path) -> None:
        """On return the directory is no volume any more, and still says which one it was. OSError."""
        (directory / _IDENTITY).rename(directory / REMOVED_IDENTITY)
        sync_directory(directory)


class _Format(msgspec.Struct):
    format: int


# As every version has written them: whichever was there last, the file is the same to the byte.
_ORDER_OF_FORMAT_1 = (
    *("format", "filesystem", "name", "host", "host_name", "peer", "peer_name", "role", "complete"),
    *("compare_all", "consistent", "resync_paused", "term", "handed_over", "keep", "keep_at", "held_below"),
    *("lock_epoch", "peer_file_bytes_max", "pairing", "witness", "forgot_requests"),
    *("communication_directory", "replaced"),
)


class Shutdown(msgspec.Struct, frozen=True):
    """How the volume was left: `clean` only where it was closed in good order."""

    clean: bool
    boot_id: str

    @property
    def lost_power(self) -> bool:
        """What the last process wrote and did not sync may be lost: the host was started anew since."""
        return not self.clean and self.boot_id != boot_id()

    @staticmethod
    def load(directory: Path) -> "Shutdown":
        """The stored state. One that cannot be read counts as the worst: a power cut."""
        try:
            return msgspec.json.decode(read_plain(directory / _STATE, _IDENTITY_BYTES_MAX), type=Shutdown)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return Shutdown(clean=False, boot_id="")

    def store(self, directory: Path) -> None:
        """On return the state is durable. OSError.

        On a disk without a block or an inode left it is written in place, which takes neither: where a crash
        tears it, it cannot be read, and counts as the worst.
        """
        content = msgspec.json.encode(self) + b"\n"
        try:
            replace_file(directory / _STATE, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _overwrite(directory / _STATE, content)


def _overwrite(path: Path, content: bytes) -> None:
    descriptor = open_plain(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        # What is written to the volume from here on must never be found under the word of before.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def boot_id() -> str:
    """Names the time since the host was last started."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


class VolumeLock:
    """Held from construction to `release`, or to the end of the process. VolumeInUse if another holds it."""

    def __init__(self, directory: Path) -> None:
        try:
            self._descriptor = open_plain(directory / _LOCK, os.O_RDWR | os.O_CREAT)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VolumeMissing(directory, "no such directory") from error
        try:
            # The kernel ends it with the process, however that comes to its end: nobody has to find out
            # whether a lock is that of a dead one (G8).
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise VolumeInUse(directory, holder) from error
        # For people: the lock itself is what counts.
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        os.close(self._descriptor)
