"""Milvus as the collections see it: keyed rows with one vector each, on Lite and on a server.

Knows nothing of users and items. Every call has a time limit, and every failure is one of ours.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final, Literal

import grpc
import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient
from pymilvus.client.prepare import Prepare
from pymilvus.client.utils import check_status
from pymilvus.exceptions import MilvusException

from encoder.errors import LeaseRanOut, Misconfigured, Unavailable
from encoder.milvus_client import milvus_client
from encoder.milvus_request import CELLS, LITE_CELLS, requests_of, write_request
from encoder.settings import MilvusSettings

Consistency = Literal["Strong", "Bounded", "Session", "Eventually"]
IndexType = Literal["AUTOINDEX", "FLAT"]
Row = dict[str, Any]
Lease = Callable[[], float]
"""For how many seconds the caller may still write; none are left at or below 0."""

MOST_ROWS: Final = 16_384
"""That one answer may have, of a search as of a query: Milvus's own bound."""

_LITE: Final = "milvus_lite"  # what its version begins with
_SETUP_TIMEOUT_S: Final = 180.0  # a server takes tens of seconds to create and load a collection
_CREATION_BUDGET_S: Final = 60.0  # for another attempt to begin
_REQUEST_KEYS: Final = 4096
_REFUSED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 1.0
_LONGEST_REASON: Final = 300


def for_ever() -> float:
    """The lease of a writer that nobody else can take the place of."""
    return math.inf


class MilvusStore:
    """One connection to one store. Safe to use from several threads."""

    def __init__(self, settings: MilvusSettings) -> None:
        """Connect.

        Raises:
            Misconfigured: the store cannot be opened as the settings say.
            Unavailable: it does not answer.
        """
        self._settings = settings
        self._timeout_s = settings.timeout_s
        self._client: MilvusClient = milvus_client(settings)
        # Column writes are offered by the handler beneath the client, not by the client itself.
        self._handler = self._client._get_connection()
        self._schemas: dict[str, Any] = {}
        self._loaded: set[str] = set()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    @cached_property
    def is_lite(self) -> bool:
        """Whether the store is Milvus Lite, embedded or behind a port."""
        with self._translated("asking for the version"):
            version = self._client.get_server_version(timeout=self._timeout_s)
        return str(version).startswith(_LITE)

    # Collections ---------------------------------------------------------------------------

    def create(
        self,
        name: str,
        key: tuple[str, int],
        scalars: Mapping[str, tuple[DataType, dict[str, Any]]],
        width: int,
        *,
        index_type: IndexType = "AUTOINDEX",
    ) -> None:
        """Create a collection where there is none, and load it.

        Args:
            name: of the collection.
            key: the primary key's field, and its longest value in bytes.
            scalars: further fields.
            width: D of the field `vector`, which is searched by inner product.
            index_type: FLAT compares with every vector; what AUTOINDEX does is up to the store.

        Raises:
            Misconfigured: it exists with vectors of another width.
        """
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(key[0], DataType.VARCHAR, is_primary=True, max_length=key[1])
        for field, (kind, parameters) in scalars.items():
            schema.add_field(field, kind, **parameters)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type=index_type, metric_type="IP")
        doing = f"creating {name}"

        def attempt(timeout_s: float) -> None:
            # Somebody else may create it at the same moment, or have ended half-way.
            with self._translated(doing):
                if not self._client.has_collection(name, timeout=self._timeout_s):
                    self._client.create_collection(
                        name, schema=schema, index_params=index, timeout=_SETUP_TIMEOUT_S
                    )
                elif not self._client.list_indexes(name, timeout=self._timeout_s):
                    self._client.create_index(name, index, timeout=_SETUP_TIMEOUT_S)
                self._load(name)

        self._until_done(attempt, doing, time.monotonic() + _CREATION_BUDGET_S, for_ever)
        with self._translated(doing):
            (stored,) = (f for f in self._schema(name)["fields"] if f["name"] == "vector")
        if int(stored["params"]["dim"]) != width:
            raise Misconfigured(
                f"collection {name} in {self._settings.uri} holds vectors of width"
                f" {stored['params']['dim']}, not {width}; was the release's name used before?"
            )

    def fields(self, name: str) -> list[str]:
        """The names of a collection's fields."""
        with self._translated(f"describing {name}"):
            return [field["name"] for field in self._schema(name)["fields"]]

    def names(self) -> list[str]:
        """The names of all collections, in order."""
        with self._translated("listing collections"):
            return sorted(self._client.list_collections(timeout=self._timeout_s))

    def exist(self, *names: str) -> bool:
        """Whether all these collections exist."""
        return set(names) <= set(self.names())

    def drop(self, name: str) -> None:
        """Drop a collection; an absent one is no error."""
        self._schemas.pop(name, None)
        self._loaded.discard(name)
        with self._translated(f"dropping {name}"):
            self._client.drop_collection(name, timeout=_SETUP_TIMEOUT_S)

    # Writes --------------------------------------------------------------------------------

    def upsert(
        self, name: str, columns: Mapping[str, Any], *, deadline: float, lease: Lease = for_ever
    ) -> None:
        """Write rows, given as columns; as many requests as their size asks for.

        Args:
            name: of the collection.
            columns: a value per row for every field, numbers as arrays; `vector` is float32 (n, D).
            deadline: of time.monotonic, for all of it, retries included.
            lease: asked before every request is sent.

        Raises:
            LeaseRanOut: some requests may have been written, the others were not sent.
            Unavailable: the store did not take all of it in time.
        """
        vectors: NDArray[np.float32] = columns["vector"]
        if not len(vectors):
            return
        doing = f"writing to {name}"
        with self._translated(doing):
            fields = self._schema(name)["fields"]
        # On Lite either replaces rows of the same key, but its upsert first looks every row up, by
        # itself, for fields that the caller left out. We leave none out.
        call: Literal["Insert", "Upsert"] = "Insert" if self.is_lite else "Upsert"
        for rows in requests_of(columns, LITE_CELLS if self.is_lite else CELLS):
            request = write_request(call, name, fields, columns, rows)
            self._send(call, request, doing, deadline, lease)

    def delete(
        self,
        name: str,
        field: str,
        keys: Sequence[str],
        *,
        deadline: float,
        lease: Lease = for_ever,
    ) -> None:
        """Delete the rows with these keys, as far as they exist; raises what `upsert` does."""
        for start in range(0, len(keys), _REQUEST_KEYS):
            some = keys[start : start + _REQUEST_KEYS]
            request = Prepare.delete_request(
                collection_name=name, filter=_any_of(field, some), consistency_level="Strong"
            )
            self._send("Delete", request, f"deleting from {name}", deadline, lease)

    def delete_where(
        self,
        name: str,
        field: str,
        values: Sequence[str],
        key: str,
        *,
        deadline: float,
        lease: Lease = for_ever,
    ) -> None:
        """Delete the rows whose field has one of these values; an absent collection is no error.

        Reads strongly and deletes by key: what a deletion by condition finds depends on the store.
        Raises what `upsert` does.
        """

        def attempt(timeout_s: float) -> None:
            if self.exist(name):
                found = [row[key] for row in self.get(name, field, values, [key], "Strong")]
                self.delete(name, key, found, deadline=time.monotonic() + timeout_s, lease=lease)

        self._until_done(attempt, f"deleting from {name}", deadline, lease)

    def flush(self, name: str) -> None:
        """Have the store move the rows written so far from its log to where it searches fast."""
        with self._translated(f"flushing {name}"):
            self._client.flush(name, timeout=_SETUP_TIMEOUT_S)

    # Reads ---------------------------------------------------------------------------------

    def get(
        self,
        name: str,
        field: str,
        keys: Sequence[str],
        fields: Sequence[str],
        consistency: Consistency,
    ) -> list[Row]:
        """The rows with these keys, in any order; absent ones are left out."""
        with self._translated(f"reading {name}"):
            self._load(name)
            found: list[Row] = self._client.query(
                name,
                filter=_any_of(field, keys),
                output_fields=list(fields),
                consistency_level=consistency,
                timeout=self._timeout_s,
            )
        return found

    def rows(
        self,
        name: str,
        key: str,
        fields: Sequence[str],
        *,
        where: str = "",
        consistency: Consistency = "Strong",
    ) -> Iterator[Row]:
        """Every row written before the call, in the order of the key.

        Args:
            name: of the collection.
            key: the primary key's field.
            fields: to read beside it.
            where: only rows for which this holds, in Milvus's language.
            consistency: without `Strong`, rows that were written a moment ago may be missing.
        """
        # The flag of pymilvus's iterators makes pages come in the order of the key, on Lite too. It
        # also drops the consistency level, so let one strong read wait for all writes first.
        if consistency == "Strong":
            self.count(name)
        else:
            with self._translated(f"reading {name}"):
                self._load(name)
        further = f" and ({where})" if where else ""
        last = ""
        while True:
            with self._translated(f"reading {name}"):
                page = self._client.query(
                    name,
                    filter=f"{key} > {_quoted(last)}{further}",
                    output_fields=[key, *fields],
                    limit=MOST_ROWS,
                    iterator="True",
                    reduce_stop_for_best="True",
                    timeout=self._timeout_s,
                )
            if not page:
                return
            yield from page
            last = max(row[key] for row in page)

    def count(self, name: str) -> int:
        """Rows in the collection, strongly consistent."""
        with self._translated(f"counting {name}"):
            self._load(name)
            (answer,) = self._client.query(
                name,
                filter="",
                output_fields=["count(*)"],
                consistency_level="Strong",
                timeout=self._timeout_s,
            )
        return int(answer["count(*)"])

    def search(
        self,
        name: str,
        vectors: NDArray[np.float32],
        limit: int,
        field: str,
        consistency: Consistency,
    ) -> list[list[tuple[str, float]]]:
        """For each of n vectors (n, D): the nearest rows' `field` and inner product, best first."""
        with self._translated(f"searching {name}"):
            self._load(name)
            found = self._client.search(
                name,
                data=list(vectors),
                limit=limit,
                output_fields=[field],
                search_params={"metric_type": "IP"},
                consistency_level=consistency,
                timeout=self._timeout_s,
            )
        return [[(hit["entity"][field], hit["distance"]) for hit in hits] for hits in found]

    # Inside --------------------------------------------------------------------------------

    def _load(self, name: str) -> None:
        # Milvus Lite does not remember across restarts which collections were loaded.
        if name not in self._loaded:
            self._client.load_collection(name, timeout=_SETUP_TIMEOUT_S)
            self._loaded.add(name)

    def _schema(self, name: str) -> Any:
        if name not in self._schemas:
            self._schemas[name] = self._client.describe_collection(name, timeout=self._timeout_s)
        return self._schemas[name]

    def _send(
        self,
        method: Literal["Insert", "Upsert", "Delete"],
        request: Any,
        doing: str,
        deadline: float,
        lease: Lease,
    ) -> None:
        """Send a write until it is taken, the deadline is over or the lease has run out.

        Not through pymilvus's own methods: they prepare the request after the time limit is set
        and repeat it on their own, so that it could leave long after the lease was looked at. Here
        the request is ready, and gRPC gives it up once the lease is over, also when this process
        was stopped meanwhile.
        """

        def attempt(timeout_s: float) -> None:
            with self._translated(doing):
                send = getattr(self._handler._stub, method)
                check_status(send(request, timeout=timeout_s).status)

        self._until_done(attempt, doing, deadline, lease)

    def _until_done(
        self, attempt: Callable[[float], None], doing: str, deadline: float, lease: Lease
    ) -> None:
        """Try until it succeeds; an attempt is told how many seconds it has."""
        pause_s = _FIRST_PAUSE_S
        refusal = "it did not answer"
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Unavailable(
                    f"{doing}: Milvus at {self._settings.uri} did not do it within the step's"
                    f" budget; last: {refusal}"
                )
            lease_s = lease()
            if lease_s <= 0:
                raise LeaseRanOut(doing)
            try:
                attempt(min(left_s, lease_s))
                return
            except Unavailable as exc:
                refusal = str(exc)
            time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except MilvusException as exc:
            raise Unavailable(
                f"{doing}: Milvus at {self._settings.uri} failed: {_brief(exc.message)}"
                f" (code {exc.code})"
            ) from exc
        except grpc.RpcError as exc:  # pymilvus lets some of them through as they are
            status, details = exc.code(), exc.details()
            if status in _REFUSED:
                raise Misconfigured(
                    f"{doing}: Milvus at {self._settings.uri} refused: {details};"
                    " check MINDSTREAM_MILVUS__TOKEN"
                ) from exc
            raise Unavailable(
                f"{doing}: Milvus at {self._settings.uri} failed: {status.name} {details}"
            ) from exc


def _brief(message: object) -> str:
    """What went wrong, without the filter that may be quoted: it has user ids in it."""
    return str(message).split(" in [", 1)[0][:_LONGEST_REASON]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _any_of(field: str, keys: Sequence[str]) -> str:
    """A filter for some keys. pymilvus's own does not escape what ids may contain."""
    return f"{field} in [{', '.join(map(_quoted, keys))}]"
