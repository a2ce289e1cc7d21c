"""Keys are renewed: old and new ones count until both hosts have confirmed, whatever happens meanwhile."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from fusemirror.channel import keyring
from fusemirror.channel.keyring import finish, let_in, prepare_next, read_ring, replace_peer
from fusemirror.channel.renewal import Renewal, _news
from fusemirror.channel.tls import Credentials
from fusemirror.daemon import Host
from fusemirror.errors import (
    BadKeys,
    HandshakeRefused,
    PeerRefused,
    PeerUnreachable,
    RefusedForSafety,
    RemoteProtocolError,
    TimedOut,
)
from fusemirror.keys import KEY, NEXT, PEER_NEXT, make_key_pair
from fusemirror.limits import KEYS_COMING_MAX
from fusemirror.protocol.messages import KeyNews
from fusemirror.volume.durable import replace_file
from tests.admin.conftest import network
from tests.channel.conftest import BACKUP, PRIMARY, connect_pair, shake_hands, write_keys
from tests.channel.test_tls import Pair, outcomes, tls_over
from tests.control.test_invitation import PATIENCE_S, Site, assert_has, normal, put
from tests.control.test_roles import until
from tests.memory_network import MemoryNetwork

__all__ = ["network"]

Directories = tuple[Path, Path]


async def inline(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    """The keyrings of alpha and beta, as `create` and `join` leave them."""
    pairs = [make_key_pair(name) for name in ("alpha", "beta")]
    made: list[Path] = []
    for own, other in (pairs, reversed(pairs)):
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(write_keys(directory, own, other.certificate))
    return made[0], made[1]


def started(directories: Directories) -> tuple[Renewal, Renewal]:
    """As two mount processes begin."""
    for directory in directories:
        finish(directory)
        Credentials(directory)
    alpha, beta = (
        Renewal(directory, name, inline)
        for directory, name in zip(directories, ("alpha", "beta"), strict=True)
    )
    return alpha, beta


async def exchange(ends: tuple[Renewal, Renewal]) -> None:
    """Each hears of the other until there is nothing more to do."""
    for _ in range(6):
        for speaker, listener in (ends, reversed(ends)):
            assert speaker._ring is not None
            await listener._act(_news(speaker._ring))


def assert_let_in(directories: Directories) -> None:
    """Each host lets in what the other one shows."""
    rings = [read_ring(directory) for directory in directories]
    for one, other in (rings, reversed(rings)):
        assert one.shown in other.peers


def shown(directories: Directories) -> list[str]:
    return [read_ring(directory).shown for directory in directories]


def assert_renewed(directories: Directories, before: list[str]) -> None:
    assert not {*shown(directories)} & {*before}
    rings = [read_ring(directory) for directory in directories]
    assert [ring.peers for ring in rings] == [(rings[1].shown,), (rings[0].shown,)]
    for directory in directories:
        assert not (directory / NEXT).exists()
        assert not (directory / PEER_NEXT).exists()
        assert (directory / KEY).stat().st_mode & 0o777 == 0o600


async def test_both_have_new_keys_in_the_end_and_the_old_ones_count_until_then(
    directories: Directories,
) -> None:
    before = shown(directories)
    ends = started(directories)
    prepare_next(directories[0], "alpha")
    ends[0]._reread()
    for _ in range(6):
        for speaker, listener in (ends, reversed(ends)):
            assert speaker._ring is not None
            await listener._act(_news(speaker._ring))
            assert_let_in(directories)
    assert_renewed(directories, before)
    assert not any(end.is_under_way for end in ends)


async def test_both_may_be_asked_at_once_and_the_disk_of_one_be_slow(directories: Directories) -> None:
    """What a person began at alpha finds no next key, and writes one when alpha has told beta of another."""
    before = shown(directories)
    alpha, beta = ends = started(directories)
    writes, ends_at_last = trio.Event(), trio.Event()  # the first that alpha does on its disk

    async def slow(work: Callable[..., Any], *arguments: Any) -> None:
        alpha._run_blocking = inline
        written: list[tuple[Path, bytes]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keyring, "replace_file", lambda *each: written.append(each))
            work(*arguments)
        await writes.wait()
        for each in written:
            replace_file(*each)
        await ends_at_last.wait()

    async def tell(speaker: Renewal, listener: Renewal) -> None:
        """As over a link."""
        assert speaker._ring is not None
        listener.take(_news(speaker._ring), None)  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()

    alpha._run_blocking = slow
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for end in ends:
                await nursery.start(end.run)
            async with trio.open_nursery() as renewing:
                for end in ends:
                    renewing.start_soon(end.renew)
                await trio.testing.wait_all_tasks_blocked()
                await tell(beta, alpha)
                await tell(alpha, beta)
                writes.set()
                await trio.testing.wait_all_tasks_blocked()
                await tell(beta, alpha)
                ends_at_last.set()
                for _ in range(6):
                    await tell(alpha, beta)
                    await tell(beta, alpha)
                assert_let_in(directories)
            nursery.cancel_scope.cancel()
    assert_renewed(directories, before)


class Crash(BaseException):
    pass


@pytest.mark.parametrize("torn", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
async def test_a_crash_at_any_step_shuts_nobody_out_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool, torn: bool
) -> None:
    """Before each change of a file, and after it; where one host began it, and where both did."""
    done = {name: getattr(keyring, name) for name in ("replace_file", "_remove")}
    step = crashed = 0
    while step == 0 or crashed == step:
        step += 1
        home = tmp_path / str(step)
        home.mkdir()
        pairs = [make_key_pair(name) for name in ("alpha", "beta")]
        directories = home / "0", home / "1"
        for index, directory in enumerate(directories):
            directory.mkdir()
            write_keys(directory, pairs[index], pairs[1 - index].certificate)
        before = shown(directories)
        ends = started(directories)
        count = 0

        def crash_there(name: str, step: int = step) -> Callable[..., None]:
            def change(*arguments: Any) -> None:
                nonlocal count, crashed
                count += 1
                if count == step and not torn:
                    crashed = step
                    raise Crash
                done[name](*arguments)
                if count == step:
                    crashed = step
                    raise Crash

            return change

        for name in done:
            monkeypatch.setattr(keyring, name, crash_there(name))
        begun = False
        try:
            for index in range(1 + both):
                prepare_next(directories[index], "host")
                begun = True
                ends[index]._reread()
            await exchange(ends)
        except Crash:
            pass
        for name, function in done.items():
            monkeypatch.setattr(keyring, name, function)
        ends = started(directories)
        assert_let_in(directories)
        await exchange(ends)
        assert_let_in(directories)
        if begun or torn:
            assert_renewed(directories, before)
    assert step > 8


async def test_the_newest_that_are_to_come_are_let_in(directories: Directories) -> None:
    coming = [make_key_pair("beta").certificate for _ in range(KEYS_COMING_MAX + 1)]
    for certificate in coming:
        let_in(directories[0], certificate)
    assert read_ring(directories[0]).peers[1:] == (*coming[1:],)
    keyring.confirm_peer(directories[0], coming[1])
    assert read_ring(directories[0]).peers == (*coming[1:],)


async def test_who_is_invited_ends_what_the_other_was_to_show(
    directories: Directories, memory_pair: Pair, tmp_path: Path
) -> None:
    coming, other = make_key_pair("beta"), make_key_pair("gamma")
    let_in(directories[0], coming.certificate)
    prepare_next(directories[0], "alpha")
    replace_peer(directories[0], other.certificate)
    assert read_ring(directories[0]).peers == (other.certificate,)
    assert not read_ring(directories[0]).is_renewing
    (tmp_path / "late").mkdir()
    late = Credentials(write_keys(tmp_path / "late", coming, read_ring(directories[0]).shown))
    dialed, accepted = tls_over(memory_pair, (late, Credentials(directories[0])))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialed.open)
        nursery.start_soon(accepted.open)
    assert accepted.replaced


async def test_what_is_acted_on_when_another_is_invited_lets_nobody_else_in(directories: Directories) -> None:
    """The disk was slow, and the host that told it was lost meanwhile."""
    alpha, _ = started(directories)
    other = make_key_pair("gamma")
    goes_on = trio.Event()

    async def slow(work: Callable[..., Any], *arguments: Any) -> None:
        alpha._run_blocking = inline
        await goes_on.wait()
        work(*arguments)

    alpha._run_blocking = slow
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(alpha.run)
            news = KeyNews(b"s" * 32, b"k" * 32, make_key_pair("beta").certificate)
            alpha.take(news, None)  # type: ignore[arg-type]
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as inviting:
                inviting.start_soon(alpha.replace_peer, other.certificate)
                await trio.testing.wait_all_tasks_blocked()
                goes_on.set()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert read_ring(directories[0]).peers == (other.certificate,)
    assert not alpha.is_under_way


@pytest.mark.parametrize(
    "certificate", ["nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
async def test_what_is_no_certificate_is_refused(directories: Directories, certificate: str) -> None:
    memory = MemoryNetwork(Random(1))
    transports = await connect_pair(memory.host("alpha"), memory.host("beta"), "beta")
    session, _ = await shake_hands(transports, PRIMARY, BACKUP)
    news = KeyNews(b"s" * 32, b"k" * 32, certificate)
    alpha, _ = started(directories)
    with pytest.raises(RemoteProtocolError, match="next: "):
        alpha.take(news, session)
    with pytest.raises(RemoteProtocolError, match="no keys here"):
        Renewal().take(news, session)
    session.close("the test is over")


def test_a_keyring_that_somebody_spoiled_is_said_so(directories: Directories) -> None:
    (directories[0] / NEXT).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
    with pytest.raises(BadKeys):
        read_ring(directories[0])


# --- with whole hosts -------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, network: MemoryNetwork) -> Site:
    return Site(tmp_path, network, tls=True)


def rings_of(site: Site) -> Directories:
    return site.directory / "keys-alpha", site.directory / "keys-beta"


@pytest.mark.parametrize("beginner", ["alpha", "beta", "both"])
async def test_hosts_renew_their_keys_and_programs_go_on(
    site: Site, beginner: str, memory_pair: Pair
) -> None:
    directories = rings_of(site)
    before, old = shown(directories), [Credentials(directory) for directory in directories]
    async with site.mounted("alpha", "beta") as alpha:
        async with site.mounted("beta", "alpha") as beta:
            await normal(alpha, beta)
            link = alpha.unit.link
            hosts = {"alpha": [alpha], "beta": [beta], "both": [alpha, beta]}[beginner]
            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    for host in hosts:
                        nursery.start_soon(host.renew_keys)
            await until(lambda: not any(host.renewal.is_under_way for host in (alpha, beta)))
            assert alpha.unit.link is link
            assert link is not None
            assert not link.closed
            await put(beta, b"goes on")
        assert_renewed(directories, before)
        async with site.mounted("beta", "alpha") as beta:  # who was mounted all the time knows them too
            await normal(alpha, beta)
            await assert_has(beta, b"goes on")
    refusal, refused = await outcomes(tls_over(memory_pair, (old[1], Credentials(directories[0]))))
    assert isinstance(refusal, PeerRefused)
    assert isinstance(refused, HandshakeRefused)


@pytest.mark.expects_warnings
async def test_a_host_that_is_lost_meanwhile_gets_its_new_keys_when_it_is_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It heard of the first one's new key, and its answer was lost."""
    before = shown(rings_of(site))

    async def deaf(*_: object) -> None: ...

    async with site.mounted("alpha", "beta") as alpha:
        async with site.mounted("beta", "alpha") as beta:
            await normal(alpha, beta)
            monkeypatch.setattr(beta.renewal, "_act", deaf)
            alpha.change_settings({"io_timeout": 0.5})
            with pytest.raises(TimedOut, match="old and new ones count"):
                await alpha.renew_keys()
            assert alpha.keys_status() == {"renewing": True}
        with pytest.raises(PeerUnreachable, match="both must be there"):
            await until_unlinked(alpha)
        async with site.mounted("beta", "alpha") as beta:
            await normal(alpha, beta)
            with trio.fail_after(PATIENCE_S):
                await alpha.renew_keys()
            await until(lambda: not beta.renewal.is_under_way)
            assert alpha.keys_status() == {"renewing": False}
    assert_renewed(rings_of(site), before)


async def until_unlinked(host: Host) -> None:
    await host.unit.host.links.ended.wait()
    await host.renew_keys()


async def test_a_peer_of_an_earlier_version_is_named(site: Site) -> None:
    async with site.mounted("alpha", "beta") as alpha, site.mounted("beta", "alpha") as beta:
        await normal(alpha, beta)
        link = alpha.unit.link
        assert link is not None
        link.peer = msgspec.structs.replace(link.peer, takes_keys=False)
        with pytest.raises(RefusedForSafety, match="takes no new keys; upgrade it first"):
            await alpha.renew_keys()
        assert not (rings_of(site)[0] / NEXT).exists()


async def test_without_tls_there_are_no_keys_to_renew(tmp_path: Path, network: MemoryNetwork) -> None:
    site = Site(tmp_path, network, tls=False)
    async with site.mounted("alpha", "beta") as alpha, site.mounted("beta", "alpha") as beta:
        await normal(alpha, beta)
        assert alpha.keys_status() is None
        with pytest.raises(RefusedForSafety, match="tls = false"):
            await alpha.renew_keys()
