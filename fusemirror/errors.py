"""The one tree of errors: the docstring is the message, the class carries exit code and errno.

A message says what happened, why, and what to do. Names say who is at fault: the peer, the disk,
the user, or ourselves. `{0}`, `{1}` are the arguments that the error is raised with.
"""

import errno as _errno
import os


class FusemirrorError(Exception):
    """internal error: {0}; please report it with the log"""

    exit_code: int = 1
    errno: int = _errno.EIO

    def __str__(self) -> str:
        template = type(self).__doc__ or type(self).__name__
        return template.format(*self.args)


class OperationFailed(FusemirrorError):
    """{1}"""

    # An operation met the ordinary error of a filesystem: no fault of anyone.
    def __init__(self, errno: int) -> None:
        super().__init__(errno, os.strerror(errno))
        self.errno = errno


# --- check reports: the mirror state forbids the request (seed steps 703 and 710) ------------------
# A program gets EIO, and this is the reason that the log and the status say.


class CheckReport(FusemirrorError):
    """EIO: {0}"""

    errno = _errno.EIO


class PrimaryUnreachable(CheckReport):
    """EIO: the primary did not answer within {0:g} s; the copy here may be old. \
Bring the primary back, or see `fusemirror status`"""

    exit_code = 5


class PrimaryAway(CheckReport):
    """EIO: the primary is away, and on_degraded is "report": {0}; the copy here may be old. \
Bring the primary back, or see `fusemirror status`"""

    exit_code = 5


class NamesMissing(CheckReport):
    """EIO: this host was still getting the names that it lacks after {0:g} s; \
wait for it, see `fusemirror status`"""

    exit_code = 5


class ChangesRefused(CheckReport):
    """EIO: changes are refused, since fence is "data" and they could not be mirrored: {0}. \
Bring the backup back, or set fence to "never" to go on alone"""

    exit_code = 5


class ChangeInDoubt(CheckReport):
    """EIO: a change may or may not have taken effect: the backup was lost before it confirmed it \
({0}), and fence is "data". Bring the backup back, or set fence to "never" to go on alone"""

    exit_code = 5


class ChangeUntold(CheckReport):
    """EIO: a write may or may not have taken effect: {0} was restarted before it confirmed it, and is the \
primary now. Look at the file"""

    exit_code = 5


class CopyDeclined(CheckReport):
    """EIO: the disk of {0} did not take a change of inode {1} ({2}), so only one volume has it; it is tried \
again. See the log and `fusemirror status` there"""


class DiskStopped(CheckReport):
    """EIO: the disk of this host failed ({0}), so this host stopped serving. \
Use the other host; check the disk, then mount again"""


class HostReplaced(CheckReport):
    """replaced: {0} has invited another host in this one's place, so nothing is served from the copy here. \
`fusemirror export` takes its files out; see A HOST IS LOST FOR GOOD in fusemirror-tasks(7)"""

    exit_code = 6


class NotPermitted(CheckReport):
    """EIO: this host may not go on without the other: {0}. Bring the other host or the witness \
back, or go on alone with `fusemirror takeover NAME --force`"""

    exit_code = 5


class ChangeUnconfirmed(CheckReport):
    """EIO: a change may or may not have taken effect: the backup was lost before it confirmed it, \
and this host may not go on without it: {0}. Bring the other host or the witness back"""

    exit_code = 5


class ChangeUnrecorded(CheckReport):
    """EIO: a change may or may not have taken effect: the backup was lost before it confirmed it, \
and the disk here does not take the record that this host goes on alone: {0}. Bring the backup back"""

    exit_code = 5


class WitnessUnreachable(FusemirrorError):
    """the witness cannot be asked: {0}; check that it runs, and the network between"""

    exit_code = 5


class PeerUnreachable(FusemirrorError):
    """the peer at {0} cannot be reached: {1}; check that it is mounted there and the network between"""

    exit_code = 5


class NobodyListens(PeerUnreachable):
    """the peer at {0} cannot be reached: {1}; check that it is mounted there and the network between"""

    # Its system answered, and no process does.


class RoleChanged(FusemirrorError):
    """the roles of the hosts changed meanwhile; the request is made anew"""

    # Never leaves the control layer: whoever asks there asks the unit of the new role again.


# --- the user ---------------------------------------------------------------------------------------


class UsageError(FusemirrorError):
    """{0}"""

    exit_code = 2


class NotMounted(FusemirrorError):
    """not mounted on this host; mount it with `fusemirror mount {0} MOUNTPOINT`"""

    exit_code = 3


class PermissionRefused(FusemirrorError):
    """{0}"""

    exit_code = 4
    errno = _errno.EPERM


class RefusedForSafety(FusemirrorError):
    """refused: {0}"""

    exit_code = 6


class ReservationConflict(FusemirrorError):
    """{0} is reserved by {1} since {2}; release it there, or take it over with --preempt"""

    exit_code = 6
    errno = _errno.EBUSY


class TimedOut(FusemirrorError):
    """timed out after {0:g} s: {1}"""

    exit_code = 8
    errno = _errno.ETIMEDOUT


class VerifyFailed(FusemirrorError):
    """{0}"""

    # A comparison was refused or did not come to its end: the text is that of the error that ended it.
    exit_code = 6


class DifferencesFound(FusemirrorError):
    """verify found {0}, listed above"""

    exit_code = 9


class NotNormal(FusemirrorError):
    """not normal: {0}; see `fusemirror status`"""

    exit_code = 12


class BadConfig(FusemirrorError):
    """{0}, line {1}: {2}"""

    exit_code = 10


class BadJoinFile(FusemirrorError):
    """the join file {0} cannot be used: {1}; make a new one with `fusemirror invite` on the other host"""

    exit_code = 10


class BadKeys(FusemirrorError):
    """the keys in {0} cannot be used: {1}; see SECURITY in fusemirror(7)"""

    exit_code = 10


class ConfigMissing(FusemirrorError):
    """there is no {1}; make it with `fusemirror create {0}`, or `fusemirror join` on the second host"""

    exit_code = 10


class ListenFailed(FusemirrorError):
    """cannot listen on {0}: {1}; check the address, and that nothing else uses it"""


class AddressMissing(ListenFailed):
    """cannot listen on {0}: {1}; this host may get the address, or learn the name, later"""


class MountFailed(FusemirrorError):
    """cannot mount: {0}"""


class MalformedRequest(FusemirrorError):
    """the kernel sent a request that is none: {0}; please report it with the version of the kernel"""


class NotAMount(FusemirrorError):
    """{0} is not the mountpoint of a mirrored filesystem; see `fusemirror status`"""

    exit_code = 3


class UnmountFailed(FusemirrorError):
    """cannot unmount: {0}"""


class MountBusy(FusemirrorError):
    """{0} is in use by {1}; end what uses it, or detach it with --lazy or --force"""


class CommandFailed(FusemirrorError):
    """{0}"""

    # The mount process answered a command with an error of its own, text and exit code.
    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


# --- the volume and its disk ---------------------------------------------------------------------


class VolumeError(FusemirrorError):
    """volume {0}: {1}"""


class VolumeInUse(VolumeError):
    """volume {0} is in use by process {1}; unmount it first"""


class VolumeMissing(VolumeError):
    """{0} is not a fusemirror volume: {1}; check the path, or make one with `fusemirror create` or `join`"""


class VolumeFormat(VolumeError):
    """volume {0} has format {1}, and this program knows format {2}; use the version that made it"""


class VolumeDamaged(VolumeError):
    """volume {0} is damaged: {1}; run `fusemirror fsck {0}`"""


class RepairCutShort(VolumeDamaged):
    """a repair of the journal of volume {0} was cut short; finish it with `fusemirror fsck --repair {0}`"""


class BadRow(FusemirrorError):
    """a row that no catalog can hold: {0}"""


class BadChange(FusemirrorError):
    """a change that this volume cannot take: {0}"""


class ImportFailed(FusemirrorError):
    """the import stopped at {0}: {1}; nothing was made, so it can be tried again"""


class ExportFailed(FusemirrorError):
    """the export stopped at {0}: {1}; what was exported before stays"""


class ExportIncomplete(FusemirrorError):
    """not exported as it is: {0}, listed above; all else was exported"""


class DiskFailed(VolumeError):
    """volume {0}: the disk failed: {1}; this host stops serving. Check the disk, then mount again"""


class StoreInDoubt(DiskFailed):
    """volume {0}: the disk failed: {1}; what was being staged there may be found again, or not"""


class DiskFull(DiskFailed):
    """volume {0}: the disk is full: {1}; delete something, or make it larger"""

    errno = _errno.ENOSPC


# --- the peer ---------------------------------------------------------------------------------------


class ChannelError(FusemirrorError):
    """the channel failed: {0}"""

    exit_code = 5

    @property
    def why(self) -> str:
        """The reason for which a link ends by this error."""
        return str(self)


class ConnectionLost(ChannelError):
    """the connection to {0} was lost: {1}"""

    @property
    def why(self) -> str:
        return str(self.args[1])


class RemoteProtocolError(ChannelError):
    """refused what {0} sent: {1}"""


class LocalProtocolError(ChannelError):
    """cannot send: {0}"""


class HandshakeRefused(ChannelError):
    """the peer at {0} refused the connection: {1}"""


class PeerRefused(ChannelError):
    """refused the peer at {0}: {1}"""


class ReplacedByPeer(HandshakeRefused):
    """the peer at {0} has another host in this one's place: {1}"""


class SameRole(PeerRefused):
    """refused the peer at {0}: both hosts are {1}"""

    # Two that met in the same role; `session` is open, and who takes the error closes it.
    def __init__(self, peer_name: str, role: str, session: object) -> None:
        super().__init__(peer_name, role)
        self.session = session


class IllegalTransition(FusemirrorError):
    """in state {0} nothing is decided for {1}"""


class SequenceGap(ChannelError):
    """this volume holds change {0}, but change {1} arrived"""


class HistoriesDiverged(FusemirrorError):
    """split brain: both volumes were changed apart ({0}); nothing was merged, see fusemirror(7)"""

    exit_code = 7
