"""How the worker's process keeps memory.

What was freed goes back to the system, where the C library is glibc. It keeps a heap for each of
many threads, and what is freed in them stays with the process. A takeover reads and frees far more
than it keeps, on threads of clients that end with it.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8
_M_MMAP_THRESHOLD: Final = -3
_ARENAS: Final = 2
_MAPPED_FROM_BYTES: Final = 1024 * 1024  # set, because otherwise it grows with what was freed


def bound_heaps() -> None:
    """Have few heaps, and large blocks outside them. Call it before threads are started."""
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)


def give_back() -> None:
    """Return freed memory of all heaps to the system."""
    if (malloc_trim := _function("malloc_trim")) is not None:
        malloc_trim(0)


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of the C library; None where it has no such one."""
    return getattr(ctypes.CDLL(None), name, None)
