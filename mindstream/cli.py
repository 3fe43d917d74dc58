"""The `mindstream` command. Only here are settings read, logging set up and signals handled."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from encoder.errors import Misconfigured, Unavailable
from encoder.release_store import fetch_release
from encoder.release_topic import read_releases
from encoder.settings import SettingsError
from mindstream import item_commands, monitor_command, release_commands, start
from mindstream.exit_codes import EXIT_DIFFERENT, EXIT_MISCONFIGURED, EXIT_UNAVAILABLE

_SHOWN: Final = 60

app = typer.Typer(
    help="Keeps every user's interests fresh: clicks in from Kafka, interests out to Milvus.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
topics = typer.Typer(help="The topics in Kafka.", no_args_is_help=True)
app.add_typer(topics, name="topics")
app.add_typer(release_commands.app, name="release")
app.command()(monitor_command.monitor)
app.add_typer(item_commands.app, name="items")


def main() -> None:
    """Run the command; expected failures end with one clear message, not with a traceback."""
    try:
        app()
    except Unavailable as exc:
        _fail(exc, EXIT_UNAVAILABLE)
    except (SettingsError, Misconfigured) as exc:
        _fail(exc, EXIT_MISCONFIGURED)


def _fail(exc: Exception, code: int) -> NoReturn:
    Console(stderr=True).print(
        f"error: {exc}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    sys.exit(code)


@app.command()
def worker() -> None:
    """Run one worker of the update service until SIGTERM."""
    from consumers.worker import run_worker
    from mindstream.signals import stop_on_signals

    settings = start.settings()
    stop = threading.Event()
    stop_on_signals(stop, settings.worker.stop_budget_s)
    run_worker(settings, stop)


@topics.command("create")
def topics_create(
    partitions: Annotated[int, typer.Option(min=1, help="Of clicks and of windows.")] = 16,
    replication: Annotated[int, typer.Option(min=1, help="Copies of every partition.")] = 1,
) -> None:
    """Create the topics that do not exist yet."""
    from encoder.topics import create_topics

    settings = start.settings()
    created = create_topics(settings, partitions=partitions, replication=replication)
    typer.echo("\n".join(f"created {name}" for name in created) or "all topics exist")


@app.command()
def train(
    parquet: Annotated[
        Path | None,
        typer.Option(help="Train on this file of clicks, or folder of files, not on the topic."),
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="Again and again, this long from start to start: 30m, 6h.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only clicks at or after this time (UTC).")
    ] = None,
    previous: Annotated[
        str | None,
        typer.Option(help="Folder or URL of the release to start from, instead of the one in use."),
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Start from none, in a space of its own.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Put it into use also if the gate refuses it.")
    ] = False,
) -> None:
    """Train a release, evaluate it on the newest clicks held out, and publish it.

    Clicks are read from the topic once, and kept in a cache. It starts from the release in use and
    stays in its space, so that items hardly move. A release that falls behind the one in use,
    popularity or item-kNN is refused: exits with 1. With --every it goes on to the next run, also
    when something did not answer. Killed and started again, it goes on where it was. `torchrun -m
    mindstream train` trains in several processes.
    """
    from mindstream.schedule import run_every
    from mindstream.training_run import ReleaseRefused, parse_interval, run_training
    from training import ranks

    settings = start.settings()
    if cold and previous is not None:
        raise Misconfigured("--cold starts from no release, --previous from one: name one of them")
    interval_s = parse_interval(every) if every else None
    since_ms = int(since.replace(tzinfo=UTC).timestamp() * 1000) if since else None
    console = Console(stderr=True)

    def run() -> None:
        release = run_training(
            settings, parquet, since_ms, console, previous=previous, cold=cold, force=force
        )
        if release is not None:
            typer.echo(json.dumps({"release": release.name, **release.manifest.metrics}))

    def tell(what: str) -> None:
        console.print(what, markup=False, highlight=False, soft_wrap=True)

    with ranks.joined():
        if interval_s is not None:
            run_every(run, interval_s, tell=tell, alone=ranks.size() == 1)
        try:
            run()
        except ReleaseRefused as exc:
            tell(f"refused: {exc}")
            raise typer.Exit(EXIT_DIFFERENT) from exc


@app.command()
def lookup(
    user: Annotated[str, typer.Argument(help="User id.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Items to show.")] = 50,
    mixed: Annotated[
        bool, typer.Option(help="Items by the release's mix, if it has one, not by nearness alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
) -> None:
    """A user's interests, and the items nearest to them."""
    from lookup import Lookup

    with Lookup(start.settings().milvus) as client:
        interests = client.interests(user)
        candidates = client.candidates(user, limit=limit, mixed=mixed)
    if as_json:
        found = {
            "user": user,
            "release": interests.release,
            "interests": [
                {
                    "slot": interest.slot,
                    "weight": round(interest.weight, 4),
                    "exemplar": interest.exemplar,
                    "updated_at": _instant(interest.updated_at).isoformat(),
                    "vector": interest.vector.tolist(),
                }
                for interest in interests.interests
            ],
            "mixed": candidates.mixed,
            "items": [{"item": hit.id, "score": round(hit.score, 4)} for hit in candidates.items],
        }
        typer.echo(json.dumps(found))
        raise typer.Exit(0 if interests.interests else EXIT_DIFFERENT)
    console = Console()
    if not interests.interests:
        console.print(f"user {user} has no interests in release {interests.release}", markup=False)
        raise typer.Exit(EXIT_DIFFERENT)
    table = Table(
        "slot", "weight", "exemplar", "newest click", title=f"release {interests.release}"
    )
    for interest in interests.interests:
        at = _instant(interest.updated_at)
        age = _age(datetime.now(UTC) - at)
        weight = f"{interest.weight:.0%}"
        table.add_row(str(interest.slot), weight, interest.exemplar, f"{at:%Y-%m-%d %H:%M} ({age})")
    console.print(table)
    title = "items by the mix" if candidates.mixed else "nearest items"
    items = Table("", "item", "score", title=title)
    for place, hit in enumerate(candidates.items, start=1):
        items.add_row(str(place), hit.id, f"{hit.score:.3f}")
    console.print(items)


@app.command()
def audience(
    item: Annotated[str, typer.Argument(help="Item id.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Users to show.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
) -> None:
    """The users with an interest nearest to an item."""
    from lookup import Lookup, UnknownItem

    with Lookup(start.settings().milvus) as client:
        try:
            found = client.audience(item, limit=limit)
        except UnknownItem as exc:
            _fail(exc, EXIT_DIFFERENT)
    if as_json:
        users = [{"user": hit.id, "score": round(hit.score, 4)} for hit in found.users]
        typer.echo(json.dumps({"item": item, "release": found.release, "users": users}))
        return
    table = Table("", "user", "score", title=f"nearest to {item} in release {found.release}")
    for place, hit in enumerate(found.users, start=1):
        table.add_row(str(place), hit.id, f"{hit.score:.3f}")
    Console().print(table)


@app.command()
def serve() -> None:
    """Answer look-ups over HTTP until SIGTERM."""
    from lookup import Lookup
    from lookup.http import serve
    from mindstream.signals import stop_on_signals

    settings = start.settings()
    stop = threading.Event()
    with Lookup(
        settings.milvus,
        consistency=settings.lookup.consistency,
        items_in_memory=settings.lookup.items_in_memory,
    ) as client:
        stop_on_signals(stop, settings.worker.stop_budget_s)
        serve(client, stop, host=settings.lookup.http_host, port=settings.lookup.http_port)


@app.command()
def erase(
    user: Annotated[str, typer.Argument(help="User id.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Change nothing; read every place and tell.")
    ] = False,
    partition: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of the user's clicks; needed if producers do not use Kafka's own."
        ),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Longest wait for a worker, in s.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line, with --verify.")] = False,
) -> None:
    """Forget a user: window, rows in every release, clicks that the trainer cached; or prove it.

    The trainer's cache is reached if it is on this machine; else its next run forgets the user.
    With --verify, exits with 1 if anything from before the erasure is still in effect, or cached.
    """
    from encoder.interest_index import InterestIndex
    from mindstream.cached_clicks import cache_folder, forget_cached
    from mindstream.erasure import find_traces, write_tombstone
    from mindstream.one_at_a_time import RunsAlready

    settings = start.settings()
    if not verify:
        written = write_tombstone(settings, user, partition=partition, stalled_after_s=wait)
        typer.echo(f"erased by {written.where}")
        try:
            cached = forget_cached(settings, user, written.up_to_ms)
            told = (
                f"{cached} clicks forgotten"
                if cached is not None
                else "not on this machine; the"
                " next training run forgets the user where it is, before it trains"
            )
        except RunsAlready:
            told = "a training reads it; the next run forgets the user, or erase again after this"
        typer.echo(f"trainer's cache {cache_folder(settings)}: {told}")
        return
    index = InterestIndex(settings.milvus)
    traces = find_traces(settings, index, user)
    index.close()
    typer.echo(json.dumps(traces.as_json()) if as_json else traces.report())
    if not traces.absent:
        raise typer.Exit(EXIT_DIFFERENT)


@app.command()
def audit() -> None:
    """Compare every stored row with a plain fold over the clicks topic, bit for bit.

    Exits with 1 on any difference. The group must be idle and at the end of the topic.
    """
    from encoder.interest_index import InterestIndex
    from encoder.mind_encoder import MindEncoder
    from mindstream.audit import audit_store
    from mindstream.progress import Waiting

    settings = start.settings()
    index = InterestIndex(settings.milvus)
    in_use = index.release_in_use()
    announced = {a.release: a for a in read_releases(settings.kafka).announced}
    if in_use is None or in_use.name not in announced:
        raise Misconfigured(f"no announced release is in use in {settings.milvus.uri}")
    release = fetch_release(announced[in_use.name].url, Path(settings.releases.cache))
    with Waiting(Console(stderr=True)) as waiting:
        found = audit_store(settings, index, MindEncoder(release), notify=waiting.start)
    typer.echo(found.report())
    if found.differences:
        raise typer.Exit(EXIT_DIFFERENT)


@app.command()
def rebuild(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; tell what would be done.")
    ] = False,
) -> None:
    """Rebuild a damaged windows topic from the clicks, and from the windows it still holds.

    All workers must be stopped. May be repeated, also after it was killed.
    """
    from encoder.interest_index import InterestIndex
    from encoder.milvus_client import close_embedded
    from mindstream.progress import Waiting
    from mindstream.rebuild import rebuild_windows

    settings = start.settings()
    index = InterestIndex(settings.milvus)
    try:
        with Waiting(Console(stderr=True)) as waiting:
            rebuilt = rebuild_windows(settings, index, dry_run=dry_run, notify=waiting.start)
    finally:
        index.close()
        close_embedded(settings.milvus.uri)
    typer.echo(rebuilt.report())


@app.command("dead-letters")
def dead_letters(
    reason: Annotated[str | None, typer.Option(help="Only letters rejected for this.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line a letter, to mend and replay.")
    ] = False,
) -> None:
    """List the dead letters that were not put back."""
    from encoder.dead_letter_topic import pending_letters
    from mindstream.dead_letter_lines import letter_line

    settings = start.settings()
    table = Table("letter", "source", "reason", "detail", "key", "value")
    for offset, letter in pending_letters(settings.kafka):
        if reason not in (None, letter.reason):
            continue
        if as_json:
            typer.echo(letter_line(offset, letter))
            continue
        source = f"{letter.topic}[{letter.partition}] at {letter.offset}"
        key, value = (repr(part)[:_SHOWN] for part in (letter.key, letter.value))
        cells = (str(offset), source, letter.reason, letter.detail, key, value)
        table.add_row(*(escape(cell) for cell in cells))
    if not as_json:
        Console().print(table)


@app.command("replay")
def replay_dead_letters(
    reason: Annotated[str | None, typer.Option(help="Only letters rejected for this.")] = None,
    mended: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Only the letters in this file, as changed there: lines of `dead-letters --json`."
            " `-` reads standard input.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only tell what would be put back.")] = False,
) -> None:
    """Put dead letters back on the clicks topic that would be accepted now; harmless to repeat.

    They are accepted now if the program or MINDSTREAM_WORKER__MAX_FUTURE_S was mended, or if they
    were mended by hand in a file. The others stay where they are.
    """
    from mindstream.dead_letter_lines import read_mended
    from mindstream.dead_letters import replay_letters

    settings = start.settings()
    name = "standard input" if mended == Path("-") else str(mended)
    edits = None
    if mended is not None:
        try:
            text = sys.stdin.buffer.read() if mended == Path("-") else mended.read_bytes()
            edits = read_mended(text.decode().split("\n"), name)
        except (OSError, UnicodeDecodeError) as exc:
            raise Misconfigured(f"cannot read {name} (--from): {exc}") from exc
    done = replay_letters(settings, reason=reason, mended=edits, source=name, dry_run=dry_run)
    typer.echo(done.report(dry_run=dry_run))


@app.command()
def demo(
    once: Annotated[bool, typer.Option(help="End after the replay.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line of what was measured.")
    ] = False,
    speed: Annotated[
        float, typer.Option(min=0, help="Clicks per second to replay; 0: as fast as can be.")
    ] = 2000,
    clicks: Annotated[
        int | None, typer.Option(min=1, help="Replay only the first so many of the newest 20 %.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="For data, release and logs; emptied first.")] = Path(
        ".mindstream/demo"
    ),
) -> None:
    """Start Kafka and Milvus Lite, train on real clicks, replay the newest, watch, and check.

    Exits with 1 if the store differs in any row from a plain fold over the topic.
    """
    from deploy.guarded_process import ServiceError
    from mindstream.demo import run_demo

    start.settings()  # wrong ones are told before anything starts
    try:
        result = run_demo(
            folder=folder.resolve(),
            clicks_per_s=speed,
            replay_clicks=clicks,
            stay=not once and sys.stdout.isatty(),
            console=Console(stderr=True),
        )
    except ServiceError as exc:
        raise Unavailable(str(exc)) from exc
    if as_json:
        typer.echo(json.dumps(result.as_json()))
    if result.differences:
        raise typer.Exit(EXIT_DIFFERENT)


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _age(age: timedelta) -> str:
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if age.total_seconds() >= 2 * seconds:
            return f"{age.total_seconds() / seconds:.0f} {unit} ago"
    return f"{max(0, age.total_seconds()):.0f} s ago"
