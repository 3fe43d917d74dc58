"""What a cache of clicks holds, said in one small file that is replaced as a whole."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoder.errors import Misconfigured

MANIFEST_FILE: Final = "manifest.json"
LOCK_FILE: Final = ".lock"
"""Held by whoever writes to the cache."""
PART_NAME: Final = re.compile(r"part_\d{8}\.parquet")


class ManifestError(Misconfigured):
    """A manifest cannot be read; the message names the file."""


class Part(BaseModel):
    """One file of clicks.

    Attributes:
        ranges: the offsets that it was read from, first and after the last, by partition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=f"^{PART_NAME.pattern}$")
    rows: int
    oldest_ms: int
    newest_ms: int
    sha256: str
    ranges: dict[int, tuple[int, int]]

    @property
    def number(self) -> int:
        """Of the file; later ones are higher."""
        return int(self.file[5:13])


class CacheManifest(BaseModel):
    """The state of a cache.

    No part holds a click that `erased` forbids, but for the users in `to_erase`.

    Attributes:
        topic: the clicks topic.
        topic_id: Kafka's own id of it.
        next_offsets: where each partition goes on; all before was read.
        parts: files of clicks, in the order in which they were read.
        erased: up to when each erased user's clicks are forgotten, in ms, by pseudonym. Old clicks
            may come again.
        to_erase: the same by id, of those whose clicks earlier parts may still hold; empty once a
            run has read all that was new.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    topic: str
    topic_id: str
    next_offsets: dict[int, int] = {}
    parts: list[Part] = []
    erased: dict[str, int] = {}
    to_erase: dict[str, int] = {}

    @property
    def next_number(self) -> int:
        """Of the next part's file."""
        return max((part.number for part in self.parts), default=0) + 1

    @classmethod
    def read(cls, folder: Path) -> CacheManifest | None:
        """The manifest of a folder; None where there is none.

        Raises:
            ManifestError: what is there is none.
        """
        path = folder / MANIFEST_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise ManifestError(f"{path} is no manifest of this version: {reason}") from error

    def write(self, folder: Path) -> None:
        """Put it in the place of the one before, at once."""
        draft = folder / f".{MANIFEST_FILE}.draft"
        draft.write_bytes(self.model_dump_json(indent=1).encode())
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(folder / MANIFEST_FILE)
