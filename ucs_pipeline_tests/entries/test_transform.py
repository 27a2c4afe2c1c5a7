"""A feed's own function between table and stream."""

from typing import Any

import pytest

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import FeedError, SourceError
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.verify import verify
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support import transforms
from ucs_pipeline_tests.support.tables import Table, source_of

ROWS = 25_000
NAME = "ucs_pipeline_tests.support.transforms"


@pytest.fixture
def stream(redis_server: RedisServer) -> OrderedStream:
    return OrderedStream("feed", redis_server.client())


def _table() -> Table:
    columns = "id UInt64, word Nullable(String), at DateTime64(3, 'UTC'), day Date, yes Bool, wide Int256"
    values = "number, if(number % 3, concat('wörd ', toString(number)), NULL), toDateTime64(number + 0.5, 3, 'UTC')"
    return Table(columns, f"SELECT {values}, '2013-01-31', number % 2, number FROM numbers({ROWS})", order_by="id")


def _feed(function: str, **more: Any) -> Any:
    return _table().feed(ROWS - 1, transform=f"{NAME}:{function}", constants={"kind": "test"}, **more)


def test_entries_are_what_the_function_makes_of_the_rows(stream: OrderedStream) -> None:
    feed = _feed("words")
    reports = list(publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {}))
    assert [report.rows for report in reports] == [10_000, 10_000, 5_000]
    assert transforms.seen == [
        *("uint64[pyarrow]", "string[pyarrow]", "timestamp[ms, tz=UTC][pyarrow]"),
        *("date32[day][pyarrow]", "bool[pyarrow]", "string[pyarrow]"),
    ]
    found = stream.entries(EntryId(0, 0), EntryId(9, 0))
    assert len(found) == ROWS
    for n in (0, 1, 2, 3, 12_346, ROWS - 1):
        expected = {
            b"twice": b"%d" % (2 * n),
            b"half": str(n / 2).removesuffix(".0").encode(),
            b"at": f"1970-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.500+00:00".encode(),
            b"day": b"2013-01-31",
            b"yes": b"true" if n % 2 else b"false",
            b"kind": b"test",
        }
        expected |= {b"word": f"WÖRD {n}".encode()} if n % 3 else {}
        expected |= {b"odd": b"odd"} if n % 2 else {}
        assert found[n] == (EntryId(n // 10_000, n % 10_000 + 1), expected)
    assert verify(feed, source_of(feed), stream).agrees
    # The content that is recorded is the table's, so that the checks can hold it against the table.
    census = source_of(feed).census().bricks
    assert {report.ordinal: report.content_hash for report in reports} == {
        ordinal: content.hash for ordinal, content in census.items()
    }


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("shorter", r"brick 0\.0\.0\.0: it returned [\d,]+ rows for [\d,]+, expected one a row"),
        ("sorted_otherwise", "it returned the rows with another index"),
        ("failing", "it failed with KeyError"),
        ("lists", "column 'list' cannot be written as text"),
        ("a_number", "it returned a int, expected a DataFrame"),
        ("nobody", "cannot be imported"),
    ],
)
def test_a_function_that_breaks_its_word_fails_the_brick_with_a_sentence(
    function: str, sentence: str, stream: OrderedStream
) -> None:
    feed = _feed(function)
    with pytest.raises(SourceError, match=sentence) as caught:
        list(publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {}))
    assert "feed 'feed': transform 'ucs_pipeline_tests.support.transforms:" in str(caught.value)
    assert stream.state().length == 0


def test_bytes_that_are_no_text_are_refused_by_key_and_column(stream: OrderedStream) -> None:
    table = Table(
        "id UInt64, word Nullable(String)", "SELECT number, if(number = 7, unhex('ff00fe'), 'w') FROM numbers(9)"
    )
    feed = table.feed(9_999, transform=f"{NAME}:same")
    sentence = r"feed 'feed': brick 0\.0\.0\.0: column 'word' of the row with key 7 is not UTF-8"
    with pytest.raises(SourceError, match=sentence):
        list(publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {}))
    assert stream.state().length == 0
    legible = table.feed(9_999, transform=f"{NAME}:same", columns={"word": "hex(word)"})
    list(publish(legible, source_of(legible), stream, legible.ordinals, lambda _: {}))
    assert stream.entries(EntryId(0, 8), EntryId(0, 8)) == [(EntryId(0, 8), {b"word": b"FF00FE"})]


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(FeedError, match="transform"):
        _table().feed(0, transform="no function")
