"""The options of mount(8) and fstab(5): what libfuse takes, what goes without saying, what is refused."""

from fusemirror.errors import UsageError
from fusemirror.settings import KernelSession, MountOptions

FUSE_OPTIONS = {
    "allow_other": "allow_other",
    "allow_root": "allow_other",
    "default_permissions": "default_permissions",
    "dev": "dev",
    "nodev": "dev",
    "suid": "suid",
    "nosuid": "suid",
    "exec": "exec",
    "noexec": "exec",
    "ro": "ro",
    "rw": "ro",
}
"""Options that libfuse takes, each with what it decides; the last of two that contradict counts."""

ROOT_OPTIONS = {
    "allow_other": "allow_other",
    "default_permissions": "default_permissions",
    "dev": "nodev",
    "suid": "nosuid",
}
"""What root mounts is for everyone, with the kernel checking permissions, as other filesystems are. But what
the other host's root made is no device here, and gives nobody this host's privileges, unless asked for."""

SESSION_OPTIONS = {f"session={kind}": kind for kind in KernelSession}
"""Options that say who serves the kernel's requests; the last counts."""

IGNORED_OPTIONS = {"defaults", "async", "_netdev", "nofail", "comment"}
IGNORED_OPTIONS |= {"auto", "noauto", "user", "nouser", "users", "owner", "group"}
IGNORED_OPTIONS |= {"diratime", "nodiratime", "lazytime", "nolazytime", "acl", "silent", "loud"}
IGNORED_OPTIONS |= {"iversion", "noiversion", "nostrictatime"}
IGNORED_OPTIONS |= {"helper", "user_id", "group_id", "max_read"}  # of libmount's table, and the kernel's
"""Options that hold anyway, that change nothing here, or that concern mount(8) alone."""

ACCESS_TIMES = {"relatime": True, "noatime": False, "norelatime": False}
"""Whether reading changes the time of access; the last counts."""

NOT_HONOURED = {
    "atime": "times of access change only when they are set, or as relatime has it",
    "strictatime": "times of access change only when they are set, or as relatime has it",
    "sync": "a change is acknowledged as `acknowledge` says, and durable after fsync",
    "dirsync": "a change is acknowledged as `acknowledge` says, and durable after fsync",
    "nosymfollow": "symbolic links are followed",
    "noacl": "access control lists are obeyed",
}
"""Options of other filesystems that are passed over with a word, so that a line in /etc/fstab that has one
mounts all the same: they ask for more than there is, and a mount without them is as useful."""

REFUSED_OPTIONS = {
    "remount": "it is for mount(8): `mount -o remount,OPTIONS DIR`, with the line in /etc/fstab",
    "bind": "bind mounts are mount(8)'s own: `mount --bind`",
}


def parse_mount_options(text: str, *, as_root: bool, sloppy: bool = False) -> MountOptions:
    """The options of mount(8) and fstab(5), comma-separated; UsageError for one that cannot be honoured.

    `sloppy` passes over unknown ones, as mount(8) asks with -s.
    """
    fuse = dict(ROOT_OPTIONS) if as_root else {}
    session, relatime = MountOptions().session, MountOptions().relatime
    ignored: list[str] = []
    for option in filter(None, text.split(",")):
        key = option.partition("=")[0]
        if key in REFUSED_OPTIONS:
            raise UsageError(f"mount option {key}: {REFUSED_OPTIONS[key]}")
        if option in FUSE_OPTIONS:
            fuse[FUSE_OPTIONS[option]] = option
        elif option in SESSION_OPTIONS:
            session = SESSION_OPTIONS[option]
        elif option in ACCESS_TIMES:
            relatime = ACCESS_TIMES[option]
        elif key == "session":
            chosen = option.partition("=")[2]
            raise UsageError(f"mount option session: `{chosen}` is not one of {', '.join(KernelSession)}")
        elif option in NOT_HONOURED:
            ignored.append(f"mount option {option} is ignored: {NOT_HONOURED[option]}")
        elif key not in IGNORED_OPTIONS and not key.lower().startswith("x-") and not sloppy:
            raise UsageError(f"unknown mount option {option}; see mount.fusemirror(8)")
    reads_only = fuse.get("ro") == "ro"  # then this host changes nothing
    return MountOptions(
        fuse=tuple(fuse.values()),
        session=session,
        relatime=relatime and not reads_only,
        ignored=tuple(ignored),
    )
