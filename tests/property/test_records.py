"""Records read our way are those that kafka-python reads."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from encoder import records as records_module
from encoder.record_columns import read_columns
from encoder.records import Record, _block, _varint

_FIRST = -(2**63)  # damage may make an offset negative

data = st.none() | st.binary(max_size=5) | st.binary(min_size=60, max_size=200)
headers = st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2)
records = st.lists(
    st.tuples(st.integers(-200, 200_000), data, data, headers), min_size=1, max_size=9
)


def batch_of(given_records: list[Any], codec: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, True, 7, 0, 3, 1 << 20)
    for offset, (timestamp, key, value, of_record) in enumerate(given_records):
        builder.append(offset, 1_700_000_000_000 + timestamp, key, value, of_record)
    return bytes(builder.build())


def read(raw: bytes, first_offset: int = _FIRST) -> list[Record]:
    return list(_block(5, DefaultRecordBatch(raw), first_offset).records())


def read_at_once(raw: bytes) -> list[Record] | None:
    """None where that is left to the way from record to record."""
    batch = DefaultRecordBatch(raw)
    batch._maybe_uncompress()
    found = read_columns(bytes(batch._buffer), batch._pos, batch.records_count)
    if found is None:
        return None
    return [
        Record(5, batch.base_offset + ahead, batch.first_timestamp + since, key, value)
        for since, ahead, key, value in zip(
            found.since_ms.tolist(), found.ahead.tolist(), found.keys, found.values, strict=True
        )
    ]


def attributes(raw: bytearray) -> set[int]:
    """Where each record's byte of attributes is."""
    found, at = set(), DefaultRecordBatch.HEADER_STRUCT.size
    while at < len(raw):
        length, at = _varint(bytes(raw), at)
        found.add(at)
        at += length
    return found


def read_by_kafka_python(raw: bytes) -> list[Record]:
    return [
        Record(5, one.offset, one.timestamp, one.key, one.value, tuple(one.headers))
        for one in DefaultRecordBatch(raw)
    ]


@given(records, st.sampled_from([0, 3]), st.integers(0, 9))
def test_what_is_read_is_the_same(given_records: list[Any], codec: int, first: int) -> None:
    """Nulls, headers, times before the first, compressed or not, from any offset on."""
    raw = batch_of(given_records, codec)
    expected = [one for one in read_by_kafka_python(raw) if one.offset >= first]
    assert read(raw, first) == expected


@given(records, st.data())
def test_damage_is_told_as_by_kafka_python(given_records: list[Any], drawn: st.DataObject) -> None:
    """Whatever byte of the records is changed, and wherever they are cut."""
    raw = bytearray(batch_of(given_records, 0))
    at = drawn.draw(st.integers(DefaultRecordBatch.HEADER_STRUCT.size, len(raw) - 1))
    assume(at not in attributes(raw))  # a byte that nothing uses; kafka-python takes it for more
    if drawn.draw(st.booleans()):
        raw[at] = drawn.draw(st.integers(0, 255))
    else:
        del raw[at:]
    try:
        expected = read_by_kafka_python(bytes(raw))
    except CorruptRecordError as exc:
        if "UnicodeDecodeError" in str(exc):
            return  # a header's name, which we read
        with pytest.raises(CorruptRecordError):
            read(bytes(raw))
    else:
        assert read(bytes(raw)) == expected


@settings(max_examples=500)
@given(records, st.data())
def test_what_is_read_at_once_is_the_same(given_records: list[Any], drawn: st.DataObject) -> None:
    """Sound records without headers are read so; of damaged ones, none that are not as they are."""
    plain = [(timestamp, key, value, []) for timestamp, key, value, _ in given_records]
    raw = bytearray(batch_of(plain, 0))
    assert read_at_once(bytes(raw)) == read_by_kafka_python(bytes(raw))
    at = min(attributes(raw)) + drawn.draw(st.integers(1, 6))  # the numbers before the first value
    raw[min(at, len(raw) - 1)] = drawn.draw(st.integers(0, 255))
    if (found := read_at_once(bytes(raw))) is not None:
        assert found == read(bytes(raw))
    raw = bytearray(batch_of(given_records, 0))
    with_headers = any(of_record for *_, of_record in given_records)
    assert (read_at_once(bytes(raw)) is None) == with_headers


def test_many_records_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From their first offset on; record by record where some of them are not asked for."""
    plain = [(number, b"k%d" % number, None if number % 3 else b"v", []) for number in range(100)]
    raw = batch_of(plain, 3)
    expected = read_by_kafka_python(raw)
    assert read(raw, 40) == expected[40:]
    monkeypatch.setattr(records_module, "_varint", None)
    assert read(raw) == expected


def test_a_header_name_may_be_any_bytes() -> None:
    """One that is not UTF-8 is told by its bytes, and its record is read."""
    raw = batch_of([(0, b"key", b"value", [("na", b"1"), ("x", None)])], 0)
    raw = raw.replace(b"\x04na", b"\x04\xff\xfe")
    (record,) = read(raw)
    assert record.headers == (("\\xff\\xfe", b"1"), ("x", None))
