"""`mindstream items`: puts items on their topic, and withdraws them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mindstream import start

app = typer.Typer(help="Items that appear between releases.", no_args_is_help=True)


@app.command()
def load(
    file: Annotated[
        Path, typer.Argument(help="A JSON object a line: item_id, and the item's fields.")
    ],
) -> None:
    """Put items on the items topic: new ones, and those whose fields changed.

    Nothing is put there if any line is no item.
    """
    from encoder.errors import Misconfigured
    from encoder.item_topic import announce_items
    from mindstream.item_lines import read_item_lines

    settings = start.settings()
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise Misconfigured(f"cannot read {file}: {exc}") from exc
    count = announce_items(settings.kafka, read_item_lines(text.split("\n"), str(file)))
    typer.echo(f"{count} items")


@app.command()
def withdraw(
    items: Annotated[list[str], typer.Argument(help="Item ids.")],
) -> None:
    """Withdraw items: they are retrieved no longer, until they are loaded again."""
    from encoder.errors import Misconfigured
    from encoder.item_record import RejectedItem, parse_item_id
    from encoder.item_topic import announce_items

    settings = start.settings()
    try:
        known = [parse_item_id(item.encode()) for item in items]
    except RejectedItem as exc:
        raise Misconfigured(f"that is no item id: {exc}") from exc
    announce_items(settings.kafka, [(item_id, None) for item_id in known])
    typer.echo(f"{len(known)} items withdrawn")
