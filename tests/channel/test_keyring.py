"""The keyring: who is let in, and who is told that another one is in its place."""

from pathlib import Path

import pytest
import trio

from fusemirror.channel import keyring
from fusemirror.channel.keyring import certificates_in, replace_peer
from fusemirror.channel.tls import Credentials, TlsTransport
from fusemirror.errors import BadKeys, HandshakeRefused, PeerRefused
from fusemirror.keys import CERTIFICATE, PEER_CERTIFICATE, REPLACED, make_key_pair
from fusemirror.limits import REPLACED_HOSTS_MAX
from fusemirror.volume.durable import replace_file
from tests.channel.conftest import write_keys
from tests.channel.test_tls import Pair, outcomes, tls_over

ALPHA, BETA, GAMMA = (make_key_pair(name) for name in ("alpha", "beta", "gamma"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Alpha's, who knows beta."""
    (tmp_path / "alpha").mkdir()
    return write_keys(tmp_path / "alpha", ALPHA, BETA.certificate)


@pytest.fixture
def beta(tmp_path: Path) -> Credentials:
    (tmp_path / "beta").mkdir()
    return Credentials(write_keys(tmp_path / "beta", BETA, ALPHA.certificate))


async def test_who_was_replaced_is_let_in_to_be_told_and_is_not_talked_to(
    memory_pair: Pair, keys: Path, beta: Credentials
) -> None:
    replace_peer(keys, GAMMA.certificate)
    alpha = Credentials(keys)
    dialed, accepted = tls_over(memory_pair, (beta, alpha))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialed.open)
        nursery.start_soon(accepted.open)
    assert accepted.replaced
    assert not dialed.replaced


async def test_who_was_replaced_is_no_host_to_dial(memory_pair: Pair, keys: Path, beta: Credentials) -> None:
    replace_peer(keys, GAMMA.certificate)
    refusal, refused = await outcomes(tls_over(memory_pair, (Credentials(keys), beta)))
    assert isinstance(refusal, PeerRefused)
    assert isinstance(refused, HandshakeRefused)


async def test_the_peer_itself_is_no_replaced_host(memory_pair: Pair, keys: Path, beta: Credentials) -> None:
    """As after a crash between the two files, and where a host was invited that had been one of the two."""
    (keys / REPLACED).write_text(GAMMA.certificate + BETA.certificate)
    pair = tls_over(memory_pair, (beta, Credentials(keys)))
    assert isinstance(pair[1], TlsTransport)
    async with trio.open_nursery() as nursery:
        for transport in pair:
            nursery.start_soon(transport.open)
    assert not pair[1].replaced


def test_a_crash_at_any_step_lets_nobody_in_who_was_not_invited(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    done = replace_file
    for step in range(2):
        calls: list[Path] = []

        def replace(path: Path, content: bytes, step: int = step, calls: list[Path] = calls) -> None:
            if len(calls) == step:
                crash()
            calls.append(path)
            done(path, content)

        monkeypatch.setattr(keyring, "replace_file", replace)
        with pytest.raises(KeyboardInterrupt):
            replace_peer(keys, GAMMA.certificate)
        assert (keys / PEER_CERTIFICATE).read_text() == BETA.certificate
        assert not Credentials(keys).replaced  # all as it was, and it can be done again
    monkeypatch.setattr(keyring, "replace_file", done)
    replace_peer(keys, GAMMA.certificate)
    assert certificates_in(keys / PEER_CERTIFICATE) == [GAMMA.certificate]
    assert len(Credentials(keys).replaced) == 1


def test_only_the_newest_replaced_ones_are_kept(keys: Path) -> None:
    (keys / REPLACED).write_text(GAMMA.certificate * REPLACED_HOSTS_MAX)
    replace_peer(keys, GAMMA.certificate)
    kept = certificates_in(keys / REPLACED)
    assert len(kept) == REPLACED_HOSTS_MAX
    assert kept[-1] == BETA.certificate


@pytest.mark.parametrize("content", [b"nonsense", b"\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_damaged_list_of_replaced_hosts_is_said_so(keys: Path, content: bytes) -> None:
    (keys / REPLACED).write_bytes(content)
    with pytest.raises(BadKeys):
        Credentials(keys)
    assert (keys / CERTIFICATE).exists()


def test_a_filesystem_without_any_keys_is_told_what_to_do(tmp_path: Path) -> None:
    """As one has that was made before there was TLS."""
    with pytest.raises(BadKeys, match=r"there are none; set `tls = false` on both hosts, or .* KEYS BY HAND"):
        Credentials(tmp_path / "nowhere")
