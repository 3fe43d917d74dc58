"""A replay that ends at once: `python -m tests.faults.crashing_replay STEP NTH`."""

import os
import sys

from encoder.settings import load_settings
from mindstream.dead_letters import ReplayStep, replay_letters


def main() -> None:
    crash_step, nth = sys.argv[1], int(sys.argv[2])
    seen = 0

    def after_step(step: ReplayStep) -> None:
        nonlocal seen
        seen += step == crash_step
        if seen == nth:
            os._exit(9)

    replay_letters(load_settings(), after_step=after_step)


if __name__ == "__main__":
    main()
