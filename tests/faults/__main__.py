"""Injects every fault, compares with a plain fold, and reports: `python -m tests.faults`."""

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from deploy.local_broker import LocalBroker
from deploy.local_milvus import LocalMilvusLite
from tests.faults import (
    bad_clicks,
    brokers,
    crashes,
    erasures,
    items,
    rebalances,
    stores,
    windows,
    zombies,
)
from tests.faults.ground import Fault, Ground, Outcome
from tests.faults.services import SharedServers

FAULTS: list[Fault] = [
    *crashes.FAULTS,
    *rebalances.FAULTS,
    *zombies.FAULTS,
    *brokers.FAULTS,
    *stores.FAULTS,
    *bad_clicks.FAULTS,
    *erasures.FAULTS,
    *items.FAULTS,
    *windows.FAULTS,
    *zombies.EXPERIMENTS,
]
_QUICK = 8
_ROW = "{:<44} {:>8} {:>8} {:>6} {:>10} {:>10} {:>8}  {}"


def main() -> int:
    """Run the faults that are asked for; 1 if any did harm."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="some faults, a few times each: minutes"
    )
    parser.add_argument("--seed", type=int, default=0, help="another draw")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if options.only in fault.name]
    if options.quick and not options.only:
        faults = drawn(options.seed)
    if options.list:
        sys.stdout.write("".join(f"{fault.name}\n" for fault in faults))
        return 0
    say(f"seed {options.seed}{', quick' if options.quick else ''}")
    outcomes: list[Outcome] = []
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="mindstream-faults-") as folder,
        LocalBroker() as broker,
        LocalMilvusLite() as lite,
        SharedServers() as shared,
    ):
        say(_ROW.format("fault", "injected", "clicks", "lost", "duplicated", "wrong rows", "s", ""))
        for fault in faults:
            # A seed of its own, so that a fault alone draws what it draws among the others.
            rng = random.Random(f"{options.seed} {fault.name}")  # noqa: S311  nothing secret
            began = time.monotonic()
            try:
                with ExitStack() as stack:
                    ground = Ground(broker, lite, Path(folder), rng, options.quick, shared, stack)
                    outcomes.append(fault.run(ground))
            except Exception:
                failed.append(fault.name)
                say(f"{fault.name} FAILED after {time.monotonic() - began:.1f} s")
                say(traceback.format_exc())
                if not broker.running:
                    broker.start()
                continue
            say(row(fault.name, outcomes[-1], time.monotonic() - began))
    totals: dict[str, object] = {
        name: sum(getattr(outcome, name) for outcome in outcomes)
        for name in ("injected", "clicks", "lost", "duplicated", "wrong_rows")
    }
    say(json.dumps(totals | {"failed": failed}))
    return int(bool(failed) or any(outcome.audit.differences for outcome in outcomes))


def drawn(seed: int) -> list[Fault]:
    """The first two faults, which are at the heart of it, and some of the others."""
    rng = random.Random(seed)  # noqa: S311  nothing secret
    others = sorted(rng.sample(range(2, len(FAULTS)), _QUICK - 2))
    return FAULTS[:2] + [FAULTS[n] for n in others]


def row(name: str, outcome: Outcome, seconds: float) -> str:
    """One line of the report, and what was wrong if anything was."""
    line = _ROW.format(
        name,
        outcome.injected,
        outcome.clicks,
        outcome.lost,
        outcome.duplicated,
        outcome.wrong_rows,
        f"{seconds:.1f}",
        outcome.note,
    )
    return f"{line}\n  {outcome.audit.report()}" if outcome.audit.differences else line


def say(line: str) -> None:
    """Print at once: it takes long."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
