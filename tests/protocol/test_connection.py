"""Two connections with nothing but a list of bytes between them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror import limits
from fusemirror.change import WriteChange
from fusemirror.errors import HandshakeRefused, LocalProtocolError, RemoteProtocolError, ReplacedByPeer
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.protocol.codec import encode
from fusemirror.protocol.connection import Connection, check_hello, shown
from fusemirror.protocol.framing import Buffer, encode_frame
from fusemirror.protocol.messages import AnyMessage, Applied, Ping, Refused
from fusemirror.protocol.states import ConnectionState

WRITE = WriteChange(ChangeNumber(1), NO_REQUEST, 0, InodeNumber(2), 0, 4)


def wire(buffers: list[Buffer]) -> bytes:
    return b"".join(buffers)


def frame(message: AnyMessage, data: bytes = b"") -> bytes:
    body = encode(message)
    return encode_frame(body, data) + body + data


@pytest.fixture
def pair(primary_hello: Any, backup_hello: Any) -> tuple[Connection, Connection]:
    """The dialing primary and the accepting backup, open."""
    dialer = Connection(primary_hello(), dialer=True, peer_name="backup")
    acceptor = Connection(backup_hello(), dialer=False, peer_name="primary")
    assert acceptor.shake_hands() == []
    acceptor.receive_data(wire(dialer.shake_hands()))
    dialer.receive_data(wire(acceptor.shake_hands()))
    assert dialer.shake_hands() == []
    return dialer, acceptor


def test_after_the_handshake_each_side_knows_the_other(
    pair: tuple[Connection, Connection], primary_hello: Any, backup_hello: Any
) -> None:
    dialer, acceptor = pair
    assert dialer.state is acceptor.state is ConnectionState.OPEN
    assert (dialer.peer, acceptor.peer) == (backup_hello(), primary_hello())


def test_messages_and_data_arrive_in_order_in_both_directions(pair: tuple[Connection, Connection]) -> None:
    for sender, receiver in (pair, pair[::-1]):
        stream = wire(sender.send(WRITE, b"data") + sender.send_encoded(encode(Applied(ChangeNumber(9)))))
        receiver.receive_data(stream)
        assert receiver.events() == [(WRITE, b"data"), (Applied(ChangeNumber(9)), b"")]
        assert receiver.events() == []


def test_what_follows_a_hello_at_once_is_not_lost(primary_hello: Any, backup_hello: Any) -> None:
    dialer = Connection(primary_hello(), dialer=True)
    dialer.shake_hands()
    dialer.receive_data(frame(backup_hello()) + frame(Applied(ChangeNumber(3))))
    assert dialer.shake_hands() == []
    assert dialer.state is ConnectionState.OPEN
    assert dialer.events() == [(Applied(ChangeNumber(3)), b"")]


def test_an_open_connection_takes_frames_that_a_handshake_would_not(
    pair: tuple[Connection, Connection],
) -> None:
    data = bytes(limits.HANDSHAKE_BYTES_MAX + 1)
    message = msgspec.structs.replace(WRITE, length=len(data))
    pair[1].receive_data(wire(pair[0].send(message, data)))
    assert pair[1].events() == [(message, data)]


def test_nothing_can_be_sent_before_the_handshake_or_after_the_end(
    primary_hello: Any, pair: tuple[Connection, Connection]
) -> None:
    with pytest.raises(LocalProtocolError, match="LISTENING"):
        Connection(primary_hello(), dialer=False).send(Ping(1))
    pair[0].end()
    with pytest.raises(LocalProtocolError, match="CLOSED"):
        pair[0].send(Ping(1))


def test_nothing_is_taken_for_a_message_before_the_handshake(backup_hello: Any) -> None:
    connection = Connection(backup_hello(), dialer=False, peer_name="stranger")
    connection.receive_data(frame(Ping(1)))
    with pytest.raises(RemoteProtocolError, match=r"what stranger sent: Ping came when .* LISTENING"):
        connection.shake_hands()
    assert connection.state is ConnectionState.CLOSED


def test_a_hello_carries_no_data(primary_hello: Any, backup_hello: Any) -> None:
    connection = Connection(backup_hello(), dialer=False)
    connection.receive_data(frame(primary_hello(), b"data"))
    with pytest.raises(RemoteProtocolError, match="Hello: it comes with data"):
        connection.shake_hands()


def test_a_second_hello_is_refused(pair: tuple[Connection, Connection], primary_hello: Any) -> None:
    pair[1].receive_data(frame(primary_hello()))
    with pytest.raises(RemoteProtocolError, match="Hello came when the connection was OPEN"):
        pair[1].events()
    assert pair[1].state is ConnectionState.CLOSED


@pytest.mark.parametrize("bad", [frame(Ping(1))[:-1] + b"\x00", b"x" * 20, encode_frame(b"\xc0") + b"\xc0"])
def test_what_stands_before_a_bad_frame_is_delivered_then_the_error_for_ever(
    pair: tuple[Connection, Connection], bad: bytes
) -> None:
    pair[1].receive_data(frame(Applied(ChangeNumber(1))) + bad + frame(Applied(ChangeNumber(2))))
    assert pair[1].events() == [(Applied(ChangeNumber(1)), b"")]
    assert pair[1].send(Applied(ChangeNumber(1))), "an answer that fails would hide the error"
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="primary"):
            pair[1].events()
    assert pair[1].state is ConnectionState.CLOSED


@given(data=st.binary(max_size=100))
def test_a_stranger_gets_no_further_than_an_error(data: bytes, backup_hello: Any) -> None:
    connection = Connection(backup_hello(), dialer=False)
    connection.receive_data(data)
    try:
        assert connection.shake_hands() == []
    except RemoteProtocolError:
        assert connection.state is ConnectionState.CLOSED
    assert connection.peer is None


# --- who may talk to whom -------------------------------------------------------------------------

REFUSALS = [
    ({"protocol": 0, "protocol_min": 0}, "protocol versions 0 to 0 there, 1 to 1 here"),
    ({"protocol": 9, "protocol_min": 2}, "protocol versions 2 to 9 there, 1 to 1 here"),
    ({"filesystem": b"other"}, "another filesystem"),
    ({"host": b"host of backup"}, "this is myself"),
    ({"host": b"a third"}, "another host of this filesystem than the peer"),
    ({"peer": b"a third"}, "another host of this filesystem than the peer"),
    ({"path": "sideways"}, "path 'sideways' is unknown here"),
    ({"role": "king\n"}, "role 'king\\n' is unknown here"),
    ({"path": "forward"}, "the forward path from the wrong side"),
]


@pytest.mark.parametrize(("other", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_a_wrong_hello_is_answered_with_the_reason(
    primary_hello: Any, backup_hello: Any, other: dict[str, Any], reason: str
) -> None:
    dialer = Connection(primary_hello(**other), dialer=True, peer_name="backup")
    acceptor = Connection(backup_hello(), dialer=False, peer_name="primary")
    acceptor.receive_data(wire(dialer.shake_hands()))
    answer = wire(acceptor.shake_hands())
    assert acceptor.state is ConnectionState.CLOSED
    assert acceptor.peer is None
    assert str(acceptor.refusal).startswith(f"refused the peer at primary: {reason}")

    dialer.receive_data(answer)
    with pytest.raises(HandshakeRefused, match="the peer at backup refused the connection") as caught:
        dialer.shake_hands()
    assert reason in str(caught.value)
    assert dialer.state is ConnectionState.CLOSED


def test_the_right_hello_is_welcome_on_each_path(primary_hello: Any, backup_hello: Any) -> None:
    for path, primary_dials in (("mirror", True), ("forward", False)):
        primary, backup = primary_hello(path=path), backup_hello(path=path)
        assert check_hello(primary, backup, dialer=primary_dials) is None
        assert check_hello(backup, primary, dialer=not primary_dials) is None


def test_a_path_is_dialed_by_its_own_side_only(primary_hello: Any, backup_hello: Any) -> None:
    for path, primary_dials in (("mirror", False), ("forward", True)):
        primary, backup = primary_hello(path=path), backup_hello(path=path)
        assert check_hello(primary, backup, dialer=primary_dials) == f"the {path} path from the wrong side"
        assert (
            check_hello(backup, primary, dialer=not primary_dials) == f"the {path} path from the wrong side"
        )


def test_two_of_the_same_role_hear_each_others_hello(primary_hello: Any, backup_hello: Any) -> None:
    dialer = Connection(primary_hello(), dialer=True)
    acceptor = Connection(backup_hello(role="primary"), dialer=False)
    acceptor.receive_data(wire(dialer.shake_hands()))
    dialer.receive_data(wire(acceptor.shake_hands()))
    dialer.shake_hands()
    assert (dialer.peer, acceptor.peer) == (acceptor.ours, dialer.ours)


def test_a_newer_peer_that_still_speaks_our_version_is_welcome(primary_hello: Any, backup_hello: Any) -> None:
    assert check_hello(backup_hello(), primary_hello(protocol=7), dialer=False) is None


def test_the_dialer_refuses_a_wrong_answer_too(primary_hello: Any, backup_hello: Any) -> None:
    dialer = Connection(primary_hello(), dialer=True, peer_name="backup")
    dialer.shake_hands()
    dialer.receive_data(frame(backup_hello(filesystem=b"other")))
    assert wire(dialer.shake_hands()).endswith(encode(Refused(str(dialer.refusal).split(": ", 1)[1])))
    assert dialer.state is ConnectionState.CLOSED


def test_a_late_refusal_ends_an_open_connection(pair: tuple[Connection, Connection]) -> None:
    pair[1].receive_data(frame(Refused("I know better\x1b[31m")))
    with pytest.raises(HandshakeRefused, match=r"refused the connection: I know better\\x1b\[31m"):
        pair[1].events()


@given(text=st.text(max_size=500))
def test_a_strangers_text_fits_one_line_of_the_log(text: str) -> None:
    assert len(shown(text)) <= 200
    assert shown(text).isprintable()


@pytest.mark.parametrize(
    ("peer", "ours_pairing", "theirs_pairing", "told"),
    [
        (b"another host", 1, 0, True),
        (b"another host", 5, 2, True),
        (b"another host", 0, 1, False),  # our volume was put back from a copy of before
        (b"another host", 1, 1, False),  # each of two was made to give the other up
        (b"host of backup", 1, 0, False),  # it is the peer, whatever it says of invitations
    ],
)
def test_a_host_in_whose_place_there_is_another_is_told_so(
    primary_hello: Any, backup_hello: Any, peer: bytes, ours_pairing: int, theirs_pairing: int, told: bool
) -> None:
    dialer = Connection(backup_hello(path="forward", pairing=theirs_pairing), dialer=True)
    ours = primary_hello(path="forward", peer=peer, pairing=ours_pairing)
    acceptor = Connection(ours, dialer=False)
    acceptor.receive_data(wire(dialer.shake_hands()))
    answer = wire(acceptor.shake_hands())
    assert (acceptor.refusal is not None) == (peer == b"another host")
    dialer.receive_data(answer)
    if told:
        with pytest.raises(ReplacedByPeer, match="it was replaced"):
            dialer.shake_hands()
    elif acceptor.refusal is not None:
        with pytest.raises(HandshakeRefused, match="fusemirror invite") as refused:
            dialer.shake_hands()
        assert not isinstance(refused.value, ReplacedByPeer)


def test_who_showed_a_certificate_of_before_is_told_so_whatever_it_says(
    primary_hello: Any, backup_hello: Any
) -> None:
    dialer = Connection(backup_hello(path="forward"), dialer=True)
    acceptor = Connection(primary_hello(path="forward"), dialer=False, replaced=True)
    acceptor.receive_data(wire(dialer.shake_hands()))
    dialer.receive_data(wire(acceptor.shake_hands()))
    assert acceptor.state is ConnectionState.CLOSED
    with pytest.raises(ReplacedByPeer):
        dialer.shake_hands()


def test_only_the_peer_is_believed_that_this_host_was_replaced(primary_hello: Any, backup_hello: Any) -> None:
    dialer = Connection(backup_hello(path="forward"), dialer=True)
    dialer.shake_hands()
    dialer.receive_data(frame(Refused("you were replaced", b"another host")))
    with pytest.raises(HandshakeRefused) as refused:
        dialer.shake_hands()
    assert not isinstance(refused.value, ReplacedByPeer)


@pytest.mark.parametrize(
    ("ours", "theirs", "met"),
    [("", "", True), ("one", "", True), ("", "one", True), ("one", "one", True), ("one", "other", False)],
)
def test_two_witnesses_are_no_witness(
    primary_hello: Any, backup_hello: Any, ours: str, theirs: str, met: bool
) -> None:
    """Each host may have an address of its own for one; a host may not have asked it yet, or be older."""
    reason = check_hello(
        primary_hello(witness="http://e:2379", witness_identity=ours),
        backup_hello(witness="http://f:2379", witness_identity=theirs),
        dialer=True,
    )
    assert (reason is None) is met
    if reason is not None:
        assert "'http://e:2379' here and 'http://f:2379' there, and these are two" in reason


@pytest.mark.parametrize(
    ("key", "ours", "theirs", "met"),
    [
        ("witness", "", "", True),
        ("witness", "http://e:2379", "http://e:2379", True),
        ("witness", "http://e:2379", "http://f:2379", True),  # each by its own way to it
        ("witness", "http://e:2379", "", False),
        ("witness", "http://e:2379", None, True),  # of an earlier version
        ("name", "data", "data", True),
        ("name", "data", "other", False),
        ("name", "data", "", True),
    ],
)
def test_what_must_be_the_same_on_both_hosts_is_compared_and_named(
    primary_hello: Any, backup_hello: Any, key: str, ours: str, theirs: str | None, met: bool
) -> None:
    reason = check_hello(primary_hello(**{key: ours}), backup_hello(**{key: theirs}), dialer=True)
    assert (reason is None) is met
    if not met:
        assert reason == f"`{key}` is '{ours}' here and '{theirs}' there; set it alike on both hosts"
