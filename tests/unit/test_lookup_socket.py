"""Small answers leave at once."""

import socket

from lookup.http import _listening


def test_connections_do_not_hold_small_segments_back() -> None:
    """An answer is sent as headers and a body; the body must not wait for an acknowledgement."""
    with (
        _listening("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
