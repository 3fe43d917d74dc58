"""Runs the benchmarks: `python -m benchmarks [--only NAME] [--scale 0.1] [--seed N] [--list]`.

Each checks its answer, measures its floor in the same run, and prints a row of the table and a JSON
line. Exits with 1 when a goal was missed.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks.alternative import alternative
from benchmarks.encode import encode
from benchmarks.freshness import freshness
from benchmarks.ground import Ground
from benchmarks.items import items
from benchmarks.lookups import lookups
from benchmarks.restart import restart
from benchmarks.results import Result, head, machine, say
from benchmarks.search_in_memory import search_in_memory
from benchmarks.state import state
from benchmarks.throughput import scaling, throughput
from benchmarks.ticks import ticks
from benchmarks.turns import turns

BENCHMARKS: dict[str, Callable[[Ground], Iterator[Result]]] = {
    "throughput-lite": partial(throughput, store="lite"),
    "throughput-server": partial(throughput, store="server"),
    "throughput-server-apart": partial(throughput, store="server", apart=True),
    "freshness-lite": partial(freshness, store="lite"),
    "freshness-server": partial(freshness, store="server"),
    "restart-lite": partial(restart, store="lite"),
    "restart-server": partial(restart, store="server"),
    "ticks": ticks,
    "turns": turns,
    "state": state,
    "encode": encode,
    "scaling": scaling,
    "lookup-lite": partial(lookups, store="lite"),
    "lookup-server": partial(lookups, store="server"),
    "search-in-memory": search_in_memory,
    "items-lite": partial(items, store="lite"),
    "items-server": partial(items, store="server"),
    "alternative-lite": partial(alternative, store="lite"),
    "alternative-server": partial(alternative, store="server"),
}


def main() -> int:
    """Run those asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="those whose name has this in it")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes")
    parser.add_argument("--seed", type=int, default=0, help="another draw")
    parser.add_argument("--list", action="store_true", help="print their names")
    options = parser.parse_args()
    chosen = {name: run for name, run in BENCHMARKS.items() if options.only in name}
    if options.list:
        say("\n".join(chosen))
        return 0
    if not chosen:
        say(f"no benchmark has {options.only!r} in its name; --list prints them")
        return 2
    results: list[Result] = []
    for name, run in chosen.items():
        say(f"{name}:")
        with ExitStack() as stack:
            for result in run(Ground(stack, options.scale, options.seed)):
                results.append(result)
                say(result.as_json())
    say(f"\n{machine()}, scale {options.scale:g}, seed {options.seed}")
    head()
    for result in results:
        say(result.line())
    return int(any(result.met is False for result in results))


if __name__ == "__main__":
    sys.exit(main())
