"""The options of mount(8): passed on, ignored or refused."""

import pytest

from fusemirror.cli.mount_options import parse_mount_options
from fusemirror.errors import UsageError
from fusemirror.settings import KernelSession


def fuse(text: str, *, as_root: bool = False) -> set[str]:
    return set(parse_mount_options(text, as_root=as_root).fuse)


def test_root_mounts_for_everyone() -> None:
    assert fuse("", as_root=True) >= {"allow_other", "default_permissions"}
    assert fuse("") == set()


def test_devices_and_set_user_id_are_for_those_who_ask() -> None:
    """What the other host's root made is no device here, and makes nobody root."""
    assert fuse("", as_root=True) >= {"nodev", "nosuid"}
    assert fuse("suid,dev", as_root=True) == {"allow_other", "default_permissions", "suid", "dev"}


def test_options_of_mount_itself_are_ignored() -> None:
    assert fuse("_netdev,nofail,user,x-systemd.automount,X-mine=1,comment=ours,,noatime,defaults") == set()


@pytest.mark.parametrize("option", ["nodiratime", "lazytime", "acl", "silent", "iversion", "nostrictatime"])
def test_what_changes_nothing_is_accepted(option: str) -> None:
    parsed = parse_mount_options(f"ro,{option}", as_root=False)
    assert (parsed.fuse, parsed.ignored) == (("ro",), ())


@pytest.mark.parametrize("option", ["sync", "dirsync", "strictatime", "atime", "nosymfollow", "noacl"])
def test_what_is_not_honoured_is_passed_over_with_a_word(option: str) -> None:
    parsed = parse_mount_options(f"ro,{option}", as_root=False)
    assert parsed.fuse == ("ro",)
    (line,) = parsed.ignored
    assert line.startswith(f"mount option {option} is ignored: ")


def test_the_last_of_two_that_contradict_counts() -> None:
    assert fuse("nosuid,exec,noexec", as_root=True) == {
        "allow_other",
        "default_permissions",
        "nodev",
        "nosuid",
        "noexec",
    }
    assert fuse("nosuid,suid") == {"suid"}
    assert fuse("rw,ro") == {"ro"}


def test_the_session_with_the_kernel_can_be_chosen() -> None:
    for chosen in KernelSession:
        options = parse_mount_options(f"session=pyfuse3,noexec,session={chosen}", as_root=False)
        assert (options.session, options.fuse) == (chosen, ("noexec",))


@pytest.mark.parametrize("option", ["session=mine", "remount", "bind", "colour", "rw,syncs", "allow_other=1"])
def test_what_cannot_be_honoured_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="option"):
        fuse(option)


@pytest.mark.parametrize("option", ["user_id=0", "group_id=0", "max_read=131072"])
def test_what_the_kernels_table_says_may_be_copied(option: str) -> None:
    assert parse_mount_options(option, as_root=False) == parse_mount_options("", as_root=False)


def test_the_sessions_that_there_are_stand_in_the_message() -> None:
    with pytest.raises(UsageError, match="session: `mine` is not one of fusemirror, pyfuse3"):
        fuse("session=mine")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", False),
        ("relatime", True),
        ("relatime,noatime", False),
        ("noatime,relatime", True),
        ("relatime,norelatime", False),
        ("relatime,ro", False),
        ("ro,relatime,rw", True),
    ],
)
def test_times_of_access_follow_reads_where_that_is_asked_for(text: str, chosen: bool) -> None:
    assert parse_mount_options(text, as_root=False).relatime is chosen
