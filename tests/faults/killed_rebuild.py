"""A rebuild that kills itself: `python -m tests.faults.killed_rebuild STEP NTH`."""

import os
import signal
import sys

from encoder.interest_index import InterestIndex
from encoder.settings import load_settings
from mindstream.rebuild import Step, rebuild_windows


def main() -> None:
    settings = load_settings()
    kill_step, nth = sys.argv[1], int(sys.argv[2])
    seen = 0

    def after_step(step: Step) -> None:
        nonlocal seen
        if step == kill_step:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    rebuild_windows(settings, InterestIndex(settings.milvus), after_step=after_step)


if __name__ == "__main__":
    main()
