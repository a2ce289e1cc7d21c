"""The manual's tasks (fusemirror-tasks.7), carried out command by command on real hosts."""

import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.hosts import CHECKOUT, FILESYSTEM, PORT, Host, TwoHosts, wait_until
from tests.mount.conftest import IO_TIMEOUT_S, checked

PAGE = CHECKOUT / "man" / "fusemirror-tasks.7"
OTHER_PORT = PORT + 1


def commands(title: str) -> list[tuple[str, str]]:
    """The hosts and the commands of a section, in their order."""
    text = PAGE.read_text(encoding="utf-8").replace("\\-", "-").replace("\\e\n    ", "")
    section = re.search(rf"^\.SH {re.escape(title)}\n(.*?)(?=^\.SH )", text, re.M | re.S)
    assert section is not None, title
    found = re.findall(r"^(\w+)# (.+)$", section[1], re.M)
    assert found, title
    return found


class Site:
    """Hosts by the names that the manual gives them, and where each is reached."""

    def __init__(self, pair: TwoHosts) -> None:
        self.pair = pair
        first, second = (host.namespace for host in pair)
        self.addresses = {
            "alpha": f"{first.address}:{PORT}",
            "beta": f"{second.address}:{PORT}",
            "beta2": f"{second.address}:{OTHER_PORT}",
        }
        self.hosts = {"alpha": pair.primary, "beta": pair.backup}

    def add(self, name: str, beside: Host, port: int) -> Host:
        """A new machine, on the network of another one."""
        host = Host(name, beside.namespace, self.pair.directory / name)
        self.hosts[name] = host
        self.addresses[name] = f"{beside.namespace.address}:{port}"
        self.pair._hosts.append(host)
        return host

    def carry_out(self, title: str, **renamed: str) -> None:
        """Each command of a section on its host; `renamed` are hosts that have the part of another one."""
        for name, command in commands(title):
            for word, stands_in in renamed.items():
                command = re.sub(rf"\b{word}\b", stands_in, command)
            self.do(self.hosts[renamed.get(name, name)], command)

    def do(self, host: Host, command: str) -> None:
        """One command, as a person gives it there."""
        print(f"{host.name}# {command}")
        if command == "fusemirror mount data /mnt":
            host.mount()
            return
        if command == "fusemirror umount data":
            host.umount()
            return
        if command == "apt-get install ./fusemirror.deb":
            host.checkout = CHECKOUT
            return
        if copied := re.fullmatch(r"scp (\S+) (\w+):(\S*)", command):
            to = self.hosts[copied[2]]
            shutil.copy(self._path(host, copied[1]), self._path(to, copied[3]))
            return
        command = command.replace("/etc/fusemirror/data", str(host.config_directory / FILESYSTEM))
        volumes = host.directory
        command = command.replace("/srv/data", str(host.volume)).replace("/srv/", f"{volumes}/")
        for name, address in self.addresses.items():
            command = command.replace(f"{name}:7000", address)
        command = self._of(command.replace("/mnt", str(host.mountpoint)))
        command = re.sub(r"^fusemirror\b", f"{sys.executable} -m fusemirror", command)
        host.run("sh", "-c", command, cwd=host.directory)

    def _path(self, host: Host, path: str) -> Path:
        keys = "/etc/fusemirror/data/"
        if path.startswith(keys):
            return host.config_directory / FILESYSTEM / path.removeprefix(keys)
        return host.directory / self._of(path)

    @staticmethod
    def _of(command: str) -> str:
        return re.sub(r"(?<![\w/=-])data\b", FILESYSTEM, command)


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """One pair for all tasks, in their order; it is whole again after each."""
    with checked(request) as pair:
        yield Site(pair)


def both_write(site: Site, *names: str) -> None:
    for name in names:
        for reader in names:
            path = Path(name) / reader
            (site.hosts[name].mountpoint / name).mkdir(exist_ok=True)
            (site.hosts[name].mountpoint / path).write_text(reader)
            assert (site.hosts[reader].mountpoint / path).read_text() == reader


def test_a_host_is_renamed(site: Site) -> None:
    site.carry_out("RENAME A HOST")
    wait_until(lambda: site.hosts["alpha"].status()["peer"]["name"] == "bernice", IO_TIMEOUT_S, "its name")
    assert site.hosts["beta"].status()["host"] == "bernice"
    both_write(site, "alpha", "beta")


def test_an_address_is_changed_while_the_other_host_goes_on(site: Site) -> None:
    alpha = site.hosts["alpha"]
    pid = alpha.pid
    site.carry_out("CHANGE AN ADDRESS")
    assert alpha.pid == pid
    assert alpha.status()["peer"]["address"] == site.addresses["beta2"]
    both_write(site, "alpha", "beta")


def test_a_volume_is_moved(site: Site) -> None:
    beta = site.hosts["beta"]
    site.carry_out("MOVE A VOLUME")
    beta.volume = Path(beta.status()["volume"])
    assert beta.volume.name == "larger"
    assert beta.status()["resync"] is None
    both_write(site, "alpha", "beta")


def keys_of(site: Site) -> list[str]:
    return [(host.config_directory / FILESYSTEM / "key.pem").read_text() for host in site.hosts.values()]


def test_keys_are_renewed_while_both_hosts_go_on(site: Site) -> None:
    before = keys_of(site)
    pids = [host.pid for host in site.pair]
    site.carry_out("RENEW KEYS")
    assert not {*keys_of(site)} & {*before}
    assert [host.pid for host in site.pair] == pids
    both_write(site, "alpha", "beta")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_keys_are_made_by_hand(site: Site) -> None:
    before = keys_of(site)
    site.carry_out("KEYS BY HAND")
    assert not {*keys_of(site)} & {*before}
    both_write(site, "alpha", "beta")


def assert_replaced(host: Host, by: str) -> None:
    host.expect_warnings("replaced|another host in this one's place")
    host.mount()
    wait_until(partial(_is_replaced, host), IO_TIMEOUT_S, "the word of the host that is left")
    told = host.status()
    assert told["reason"].startswith(f"replaced: {by} has invited another host")
    assert "replaced" in host.fusemirror("status", FILESYSTEM).stdout
    with pytest.raises(OSError, match="Input/output error"):
        (host.mountpoint / "late").touch()
    host.fusemirror("invite", FILESYSTEM, "--join-file", host.directory / "other", expect=6)
    host.fusemirror("takeover", FILESYSTEM, "--force", expect=6)
    host.umount()


def _is_replaced(host: Host) -> bool:
    return bool(host.status()["replaced"])


def test_a_lost_backup_is_replaced(site: Site) -> None:
    alpha, beta = site.hosts["alpha"], site.hosts["beta"]
    refused = alpha.fusemirror("invite", FILESYSTEM, "--join-file", alpha.directory / "no", expect=6)
    assert "is connected" in refused.stderr
    refused = beta.fusemirror("invite", FILESYSTEM, "--join-file", beta.directory / "no", expect=6)
    assert "fusemirror takeover" in refused.stderr
    assert not (alpha.directory / "no").exists()
    beta.umount()
    gamma = site.pair.backup = site.add("gamma", beside=beta, port=OTHER_PORT + 1)
    site.carry_out("A HOST IS LOST FOR GOOD")
    both_write(site, "alpha", "gamma")
    alpha.expect_warnings("it was replaced")
    assert_replaced(beta, "alpha")
    both_write(site, "alpha", "gamma")
    gamma.fusemirror("verify", FILESYSTEM)


def test_a_lost_primary_is_replaced(site: Site) -> None:
    alpha, gamma = site.hosts["alpha"], site.hosts["gamma"]
    alpha.kill()
    site.pair.primary, site.pair.backup = gamma, site.add("delta", beside=alpha, port=OTHER_PORT)
    site.carry_out("A HOST IS LOST FOR GOOD", alpha="gamma", gamma="delta")
    both_write(site, "gamma", "delta")
    gamma.expect_warnings("it was replaced")
    name = str(gamma.status()["host"])  # it was given an address only
    assert_replaced(alpha, name)
    both_write(site, "gamma", "delta")
    listed = alpha.fusemirror("list").stdout
    assert listed == f"{FILESYSTEM}: primary, with {name}, volume {alpha.volume}, not mounted\n"
    alpha.fusemirror("export", alpha.volume, alpha.directory / "taken-out")
    alpha.fusemirror("delete", FILESYSTEM, "--volume")
    assert not alpha.volume.exists()
    assert alpha.fusemirror("list").stdout == ""
