"""How the threads of a process share its interpreter, where several have work that is urgent."""

from __future__ import annotations

import gc
import sys
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0005  # nobody waits longer for a thread that computes; else 5 ms
_OBJECTS: Final = 100_000  # a batch has about as many; Python's own default is 700


def take_turns() -> None:
    """Take short turns, and look for cycles of objects rarely: batches make none with cycles."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(_OBJECTS, 20, 50)
