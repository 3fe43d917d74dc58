"""`mindstream release`: which releases there are, and which of them readers read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mindstream import start

if TYPE_CHECKING:
    from encoder.interest_index import InterestIndex
    from encoder.release_topic import Use
    from encoder.settings import Settings

app = typer.Typer(help="Releases, and which of them readers read.", no_args_is_help=True)


@contextmanager
def _store() -> Iterator[tuple[Settings, InterestIndex]]:
    from encoder.interest_index import InterestIndex
    from encoder.milvus_client import close_embedded

    settings = start.settings()
    index = InterestIndex(settings.milvus)
    try:
        yield settings, index
    finally:
        index.close()
        close_embedded(settings.milvus.uri)


@app.command("list")
def list_releases() -> None:
    """List announced releases, newest last: what is filled, and since when readers read which."""
    from encoder.release_topic import read_releases
    from encoder.topics import check_topics

    with _store() as (settings, index):
        partitions = check_topics(settings.kafka)
        known, in_use = read_releases(settings.kafka), index.release_in_use()
    table = Table("release", "partitions filled", "readers came", "in use", "where")
    came = {use.release: use for use in known.used}
    for one in known.announced:
        filled = sum((one.release, partition) in known.filled for partition in range(partitions))
        table.add_row(
            one.release,
            f"{filled} of {partitions}",
            _told(came.get(one.release)),
            "yes" if in_use is not None and in_use.name == one.release else "",
            one.url,
        )
    Console().print(table)


def _told(use: Use | None) -> str:
    if use is None:
        return ""
    back = "" if use.back_from is None else f", back from {use.back_from}"
    return f"{datetime.fromtimestamp(use.at_ms / 1000, UTC):%F %T}{back}"


@app.command()
def use(
    release: Annotated[str, typer.Argument(help="Its name, as `mindstream release list` has it.")],
    sample: Annotated[int, typer.Option(help="Users to compare bit for bit.", min=1)] = 1000,
) -> None:
    """Wait until workers have filled a release, prove it, and point readers at it."""
    from mindstream.progress import Waiting
    from mindstream.release_switch import switch

    with _store() as (settings, index), Waiting(Console(stderr=True)) as waiting:
        waiting.start(f"going over to release {release}")
        certificate = switch(
            settings, index, release, sample=sample, progress=waiting.show, tell=waiting.tell
        )
    typer.echo(certificate.model_dump_json())


@app.command()
def verify(
    release: Annotated[
        str | None, typer.Argument(help="Its name; the one in use if there is none.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Users to compare bit for bit.", min=1)] = 1000,
) -> None:
    """Prove again that the store holds a release's interests: a sample bit for bit, and counts."""
    from encoder.errors import Misconfigured
    from encoder.release_topic import read_releases
    from encoder.topics import check_topics
    from mindstream.certificate import certify
    from mindstream.progress import Waiting
    from mindstream.release_switch import AGREE_WITHIN_S, announced_release

    with _store() as (settings, index), Waiting(Console(stderr=True)) as waiting:
        in_use = index.release_in_use()
        name = release or (in_use.name if in_use is not None else None)
        if name is None:
            raise Misconfigured(f"no release is in use in {settings.milvus.uri}")
        waiting.start(f"verifying release {name}")
        certificate = certify(
            settings,
            index,
            announced_release(settings, read_releases(settings.kafka), name),
            partitions=check_topics(settings.kafka),
            sample=sample,
            within_s=AGREE_WITHIN_S,
            progress=waiting.describe,
        )
    typer.echo(certificate.model_dump_json())


@app.command()
def drift(
    release: Annotated[
        str | None, typer.Argument(help="Its name; the one in use if there is none.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="Compare with this one, not with the one readers left.")
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Measure with the windows of now, and keep nothing.")
    ] = False,
    sample: Annotated[int, typer.Option(help="Users to draw.", min=1)] = 1000,
) -> None:
    """Tell what a release changed for users: what was measured at the switch, or is now."""
    from encoder.release_topic import read_releases
    from mindstream.progress import Waiting
    from mindstream.release_drift import drift_of
    from mindstream.release_switch import announced_release

    with _store() as (settings, index), Waiting(Console(stderr=True)) as waiting:
        in_use, known = index.release_in_use(), read_releases(settings.kafka)
        waiting.start("comparing releases")
        found = drift_of(
            settings,
            index.items,
            known,
            release,
            in_use.name if in_use is not None else None,
            partial(announced_release, settings, known),
            before=before,
            anew=anew,
            sample=sample,
        )
        waiting.tell(str(found))
    typer.echo(found.model_dump_json())


@app.command()
def rollback() -> None:
    """Point readers back at the release they read before, which is still kept up to date.

    Once: the release that they leave is not gone back to, but by `mindstream release use`.
    """
    from mindstream.release_switch import rollback as roll_back

    with _store() as (settings, index):
        back = roll_back(settings, index)
    typer.echo(f"readers read release {back.release} again")


@app.command()
def prune(
    grace_s: Annotated[
        float | None,
        typer.Option(help="Keep those that readers left since; MINDSTREAM_RELEASES__GRACE_S."),
    ] = None,
) -> None:
    """Withdraw releases that readers left before the grace time, and free their space."""
    from mindstream.release_switch import prune as drop_old

    with _store() as (settings, index):
        kept_s = settings.releases.grace_s if grace_s is None else grace_s
        names = drop_old(settings, index, grace_s=kept_s)
    typer.echo("\n".join(f"dropped {name}" for name in names) or "nothing to drop")
