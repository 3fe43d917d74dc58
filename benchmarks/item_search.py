"""Milvus Lite's search among items by kind of index: `python -m benchmarks.item_search`.

Random unit vectors, which are harder to index than trained ones. A row says how long a search takes
while the rows lie in the store's log, once they are flushed and once they are indexed, and how many
of the true nearest it finds then.
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient

from deploy.local_milvus import LocalMilvusLite

WIDTH, QUERIES, LIMIT = 64, 20, 50
_ROWS_AT_ONCE = 10_000


def main() -> None:
    """Print a row for each index and `ef`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.item_search", description=__doc__)
    parser.add_argument("--items", type=int, default=100_000, help="how many to search among")
    items = parser.parse_args().items
    rng = np.random.default_rng(0)
    vectors = _unit(rng, items)
    queries = _unit(rng, QUERIES)
    nearest = [set(row.tolist()) for row in np.argsort(-(queries @ vectors.T), axis=1)[:, :LIMIT]]
    print(f"{items:,} items of width {WIDTH}, {LIMIT} asked for, median ms of {QUERIES} searches")
    print(
        f"{'index':<10} {'ef':>4} {'in log':>8} {'flushed':>8} {'indexed':>8} {'load s':>7} recall"
    )
    with LocalMilvusLite() as store:
        client = MilvusClient(store.uri)
        for index_type, settings in (("AUTOINDEX", (64, 128, 256)), ("FLAT", (64,))):
            _create(client, index_type, vectors)
            in_log, _ = _search(client, queries, 64)
            client.flush("items")
            flushed, _ = _search(client, queries, 64)
            client.release_collection("items")
            began = time.perf_counter()
            client.load_collection("items")
            load_s = time.perf_counter() - began
            for ef in settings:
                indexed, found = _search(client, queries, ef)
                recall = np.mean([len(a & b) / LIMIT for a, b in zip(found, nearest, strict=True)])
                print(
                    f"{index_type:<10} {ef:>4} {in_log:>8.0f} {flushed:>8.0f} {indexed:>8.0f}"
                    f" {load_s:>7.1f} {recall:.3f}"
                )
            client.drop_collection("items")
        client.close()


def _unit(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    drawn = rng.standard_normal((count, WIDTH)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _create(client: MilvusClient, index_type: str, vectors: NDArray[np.float32]) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=WIDTH)
    index = client.prepare_index_params()
    index.add_index("vector", index_type=index_type, metric_type="IP")
    client.create_collection("items", schema=schema, index_params=index)
    client.load_collection("items")
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        some = vectors[start : start + _ROWS_AT_ONCE]
        client.upsert("items", [{"id": start + n, "vector": one} for n, one in enumerate(some)])


def _search(
    client: MilvusClient, queries: NDArray[np.float32], ef: int
) -> tuple[float, list[set[int]]]:
    """Median milliseconds, and the ids found for each query."""
    seconds, found = [], []
    for query in queries:
        began = time.perf_counter()
        (hits,) = client.search(
            "items",
            data=[query],
            limit=LIMIT,
            search_params={"metric_type": "IP", "params": {"ef": ef}},
            consistency_level="Strong",
        )
        seconds.append(time.perf_counter() - began)
        found.append({hit["id"] for hit in hits})
    return 1000 * float(np.median(seconds)), found


if __name__ == "__main__":
    main()
