"""No one else gets in (G7), on real mounts: what is on the wire, who is refused, what a person is told."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from fusemirror.keys import CERTIFICATE, KEY, make_key_pair
from tests.hosts import FILESYSTEM, PORT, Host, TwoHosts, wait_until, what_is_missing

MARK = b"a line that nobody between the hosts may read. "
WAIT_S = 20.0

# Looks for words in whatever passes the host's interface, until its standard input ends.
SNIFF = """
import select, socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("veth0", 0))
wire.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
words, seen, found = sys.argv[1].encode(), 0, False
print("listens", flush=True)
while True:
    ready, _, _ = select.select([wire, sys.stdin], [], [])
    if wire in ready:
        packet = wire.recv(1 << 17)
        seen, found = seen + len(packet), found or words in packet
    elif sys.stdin in ready:
        break
print(seen, found)
"""

DIAL = """
import socket, ssl, sys
address, port, *keys = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if keys:
    context.load_cert_chain(*keys)
stream = context.wrap_socket(socket.create_connection((address, int(port))))
try:
    print(stream.recv(1))
except ssl.SSLError as error:
    print(error.reason)
"""

PLAIN = """
import socket, sys
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])))
stream.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
while stream.recv(100):
    pass
"""


@contextmanager
def two_hosts(**settings: bool) -> Iterator[TwoHosts]:
    """Not mounted yet; checked in the end."""
    if missing := what_is_missing():
        pytest.skip(missing)
    with TwoHosts() as hosts:
        hosts.create_and_join(peer_timeout=1.0, io_timeout=20.0, **settings)
        yield hosts
        hosts.check()
        assert not hosts.unexpected_warnings()


def _has_refused(host: Host) -> bool:
    return "refused" in host.log()


def _refusals(host: Host) -> list[str]:
    return [line for line in host.log().splitlines() if "refused the peer" in line]


def _keys(host: Host) -> Path:
    return host.config_directory / FILESYSTEM


@pytest.mark.parametrize("tls", [True, False])
def test_content_is_in_clear_on_the_wire_only_without_tls(tls: bool) -> None:
    with two_hosts(tls=tls) as hosts:
        hosts.mount()
        content = MARK * 2000
        command = hosts.primary.namespace.enter([sys.executable, "-c", SNIFF, MARK.decode()])
        with Popen(command, stdin=PIPE, stdout=PIPE) as sniffer:
            assert sniffer.stdout is not None
            assert sniffer.stdout.readline() == b"listens\n"
            for host in hosts:
                (host.mountpoint / host.name).write_bytes(content)
            for host in hosts:
                assert all((host.mountpoint / name).read_bytes() == content for name in ("alpha", "beta"))
            seen, found = sniffer.communicate(timeout=WAIT_S)[0].split()
        assert int(seen) > 2 * len(content)
        assert found == (b"False" if tls else b"True")
        assert [host.status()["peer"]["encrypted"] for host in hosts] == [tls, tls]
        assert ("encrypted" in hosts.primary.fusemirror("status", FILESYSTEM).stdout) is tls


def test_strangers_are_refused_with_a_line_each_and_disturb_nobody(tmp_path: Path) -> None:
    with two_hosts() as hosts:
        hosts.mount()
        hosts.backup.expect_warnings(f"refused the peer at {hosts.primary.namespace.address}")
        since = hosts.backup.status()["peer"]["since"]
        pair = make_key_pair("alpha")
        (tmp_path / CERTIFICATE).write_text(pair.certificate)
        (tmp_path / KEY).write_text(pair.key)
        address = hosts.backup.namespace.address
        keys = (tmp_path / CERTIFICATE, tmp_path / KEY)
        for shown in ((), keys):
            said = hosts.primary.run(sys.executable, "-c", DIAL, address, str(PORT), *shown).stdout
            assert "ALERT" in said
        hosts.primary.run(sys.executable, "-c", PLAIN, address, str(PORT), expect=None)
        wait_until(lambda: len(_refusals(hosts.backup)) >= 3, WAIT_S, "a word of each refusal")
        refused = _refusals(hosts.backup)
        assert len(refused) == 3, refused
        assert sum("it does not have the certificate of the other host" in line for line in refused) == 2
        assert "no TLS 1.3: http request" in refused[2]
        assert hosts.backup.status()["peer"]["since"] == since


def test_a_host_of_which_tls_was_taken_hears_what_is_wrong() -> None:
    with two_hosts() as hosts:
        hosts.backup.configure(tls=False)
        for host in hosts:
            host.expect_warnings("refused")
            host.mount()
        wait_until(
            lambda: "is `tls` the same on both hosts?" in hosts.primary.log(), WAIT_S, "a word of the primary"
        )
        assert not hosts.primary.status()["peer"]["connected"]
        refused = hosts.backup.fusemirror("set", FILESYSTEM, "tls=true", expect=2)
        assert "tls cannot change while mounted" in refused.stderr
        hosts.backup.umount()
        hosts.backup.fusemirror("set", FILESYSTEM, "tls=true")
        hosts.backup.mount()
        for host in hosts:
            host.wait_for("normal")


def test_hosts_with_keys_of_two_filesystems_say_so_and_meet_once_they_are_right() -> None:
    with two_hosts() as hosts:
        other = make_key_pair("beta")
        right = _keys(hosts.backup).with_name("right")
        shutil.copytree(_keys(hosts.backup), right)
        (_keys(hosts.backup) / CERTIFICATE).write_text(other.certificate)
        (_keys(hosts.backup) / KEY).write_text(other.key)
        for host in hosts:
            host.expect_warnings("refused")
            host.mount()
        for host in hosts:
            wait_until(partial(_has_refused, host), WAIT_S, f"a word of {host.name}")
        assert "it does not have the certificate of the other host" in hosts.primary.log()
        assert not any(host.status()["peer"]["connected"] for host in hosts)
        hosts.backup.umount()
        shutil.copytree(right, _keys(hosts.backup), dirs_exist_ok=True)
        hosts.backup.mount()
        for host in hosts:
            host.wait_for("normal")


def test_without_its_keys_a_host_does_not_mount() -> None:
    with two_hosts() as hosts:
        (_keys(hosts.primary) / KEY).unlink()
        failed = hosts.primary.fusemirror("mount", FILESYSTEM, hosts.primary.mountpoint, expect=10)
        assert "key.pem" in failed.stderr
        assert "SECURITY in fusemirror(7)" in failed.stderr
        assert failed.stderr.count("\n") == 1
        hosts.primary.configure(tls=False)
        hosts.backup.configure(tls=False)
        hosts.mount()
