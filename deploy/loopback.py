"""Ports on 127.0.0.1 for local services."""

import random
import socket
from contextlib import ExitStack

HOST = "127.0.0.1"

# Below the ranges that Linux and macOS give to outgoing connections: nobody's client socket takes
# the port of a service that is down for a moment between kill and restart.
_FIRST, _LAST = 20_000, 32_000


def free_ports(count: int) -> list[int]:
    """Distinct ports that nothing listens on at the moment.

    Somebody else may take one before it is used; whoever asks must be ready to ask again.
    """
    ports: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(_FIRST, _LAST), k=_LAST - _FIRST):
            if _bind(held, port):
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"no {count} free ports on {HOST} between {_FIRST} and {_LAST}")


def is_free(port: int) -> bool:
    """Whether nothing listens on the port at the moment."""
    with ExitStack() as held:
        return _bind(held, port)


def answers(port: int) -> bool:
    """Whether something accepts connections on the port."""
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _bind(held: ExitStack, port: int) -> bool:
    candidate = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        candidate.bind((HOST, port))
        candidate.listen()
    except OSError:
        return False
    return True
