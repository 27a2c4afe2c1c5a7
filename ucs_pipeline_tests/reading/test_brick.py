"""A brick read back from a real stream, in Python and on the command line."""

from pathlib import Path

import pandas as pd
import pytest
import redis

from ucs_pipeline.cli.entry_tables import print_brick
from ucs_pipeline.errors import BrickError, StreamError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.reading.brick import table_of
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import read_brick
from ucs_pipeline_tests.support.home import make_home, run_ucs

FEED = Feed(name="words", table="words", key="n", bricks={"class": "number", "first": 30_000, "last": 89_999})


def test_a_brick_is_a_table_of_text_with_fields_in_the_order_they_appear(redis_server: RedisServer) -> None:
    client = redis_server.client()
    client.xadd("words", {"n": "40000", "word": "a", "last": ""}, "4-1")
    client.xadd("words", {"n": "40001", "extra": "None", "last": "\u00e9"}, "4-2")
    client.xadd("words", {"n": "50000"}, "5-1")
    frame = read_brick(FEED, "0.0.0.4", client)
    assert frame.index.name == "entry_id"
    assert list(frame.index) == ["4-1", "4-2"]
    assert list(frame.columns) == ["n", "word", "last", "extra"]
    assert list(frame["n"]) == ["40000", "40001"]
    assert list(frame["last"]) == ["", "\u00e9"]
    assert frame["word"].iloc[1] is pd.NA
    assert frame["extra"].iloc[0] is pd.NA
    assert frame["extra"].iloc[1] == "None"


def test_bytes_that_are_not_text_survive(redis_server: RedisServer) -> None:
    client = redis_server.client()
    client.xadd("words", {b"\xff\x00": b"\xfe", b"plain": b"x"}, "4-1")
    frame = read_brick(FEED, "0.0.0.4", client)
    assert [name.encode("utf-8", "surrogateescape") for name in frame.columns] == [b"\xff\x00", b"plain"]
    assert [str(value).encode("utf-8", "surrogateescape") for value in frame.iloc[0]] == [b"\xfe", b"x"]


@pytest.mark.parametrize("rows", [999, 1000, 1001, 2500])
def test_a_brick_of_several_chunks_is_whole(redis_server: RedisServer, rows: int) -> None:
    client = redis_server.client()
    with client.pipeline() as pipe:
        for row in range(1, rows + 1):
            pipe.xadd("words", {"row": row}, f"3-{row}")
        pipe.xadd("words", {"row": 1}, "4-1")
        pipe.execute()
    frame = read_brick(FEED, "0.0.0.3", client)
    assert list(frame["row"]) == [str(row) for row in range(1, rows + 1)]
    assert list(frame.index[-2:]) == [f"3-{rows - 1}", f"3-{rows}"]


def test_a_client_that_decodes_replies_gives_the_same(redis_server: RedisServer) -> None:
    client = redis_server.client()
    client.xadd("words", {"n": "40000"}, "4-1")
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as decoding:
        assert read_brick(FEED, "0.0.0.4", decoding).equals(read_brick(FEED, "0.0.0.4", client))


def test_a_brick_without_rows_between_others_is_an_empty_table(redis_server: RedisServer) -> None:
    client = redis_server.client()
    for brick in (3, 5):
        client.xadd("words", {"n": "1"}, f"{brick}-1")
    frame = read_brick(FEED, "0.0.0.4", client)
    assert frame.empty
    assert frame.index.name == "entry_id"


@pytest.mark.parametrize(
    ("brick", "kind", "sentence"),
    [
        ("0.0.0.9", UcsError, "feed 'words' has no brick 0.0.0.9. Its bricks are 0.0.0.3 to 0.0.0.8"),
        ("brick", BrickError, "'brick' is not a brick name"),
        ("0.0.0.8", UcsError, "brick 0.0.0.8 is not published yet, or has no rows: stream 'words' ends at 5-2"),
        ("0.0.0.3", UcsError, "0.0.0.3 was trimmed, or adopted without being published: stream 'words' begins at 5-1"),
    ],
    ids=["off the list", "no brick name", "not published yet", "trimmed"],
)
def test_a_brick_that_is_not_there_is_explained(
    redis_server: RedisServer, brick: str, kind: type[UcsError], sentence: str
) -> None:
    client = redis_server.client()
    for entry in ("3-1", "5-1", "5-2"):
        client.xadd("words", {"n": "1"}, entry)
    client.xtrim("words", minid="5-1", approximate=False)
    with pytest.raises(kind, match=sentence):
        read_brick(FEED, brick, client)


def test_a_stream_that_is_gone_or_empty_is_explained(redis_server: RedisServer) -> None:
    client = redis_server.client()
    with pytest.raises(UcsError, match="not published yet, or has no rows: stream 'words' has had no entries"):
        read_brick(FEED, "0.0.0.4", client)
    client.xadd("words", {"n": "1"}, "4-1")
    client.xtrim("words", maxlen=0, approximate=False)
    with pytest.raises(UcsError, match=r"was trimmed, .* is empty and had entries up to 4-1"):
        read_brick(FEED, "0.0.0.4", client)
    client.delete("words")
    client.set("words", "a string")
    with pytest.raises(StreamError, match="stream 'words': the key holds another type"):
        read_brick(FEED, "0.0.0.4", client)


@pytest.fixture
def flights(tmp_path: Path, redis_server: RedisServer) -> Path:
    """A project home whose feed's stream holds rows 2 to 4 of brick 7."""
    client = redis_server.client()
    for row in range(2, 5):
        client.xadd("flights", {"id": 70_000 + row, b"note": b'\xff, "x"' if row == 2 else b""}, f"7-{row}")
    client.xadd("flights", {"id": 70_005}, "7-5")
    return make_home(tmp_path)


def test_the_command_shows_the_first_rows(flights: Path, redis_server: RedisServer) -> None:
    code, output = run_ucs("read", "flights", "0.0.0.7", "--rows", "3", home=flights, UCS_REDIS_URL=redis_server.url)
    assert code == 0, output
    lines = [line.split() for line in output.splitlines()]
    assert ["entry_id", "id", "note"] in lines
    assert ["7-2", "70002", "\\xff,", '"x"'] in lines
    assert ["7-4", "70004"] in lines
    assert "3 of 4 rows; 1 row before them trimmed" in output
    code, output = run_ucs("read", "flights", "0.0.0.7", home=flights, UCS_REDIS_URL=redis_server.url)
    assert ["7-5", "70005", "NULL"] in [line.split() for line in output.splitlines()]
    assert "4 of 4 rows" in output


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("0-1", "2 of 2 rows"),
        ("0-3", "2 of 2 rows; 2 rows before them trimmed"),
        ("5-1", "2 of 2 rows; those before entry 5-1 were trimmed, if its bricks before that one had any"),
        ("5-3", "2 of 2 rows; all before entry 5-3 were trimmed"),
    ],
)
def test_what_is_gone_of_a_block_is_said_by_the_id_of_its_first_entry(
    capsys: pytest.CaptureFixture[str], first: str, said: str
) -> None:
    frame = table_of([(first, {b"id": b"1"}), ("6-1", {b"id": b"2"})])
    print_brick(frame, "0.0.0", "flights", 5, 0)
    assert capsys.readouterr().out.splitlines()[-1].strip() == said


def test_the_command_writes_csv(flights: Path, redis_server: RedisServer) -> None:
    code, _ = run_ucs("read", "flights", "0.0.0.7", "--csv", home=flights, UCS_REDIS_URL=redis_server.url)
    assert code == 0
    assert (flights / "process.log").read_bytes() == (
        b'entry_id,id,note\n7-2,70002,"\xff, ""x"""\n7-3,70003,\n7-4,70004,\n7-5,70005,\\N\n'
    )


def test_a_brick_the_feed_has_not_ends_with_one_sentence(flights: Path, redis_server: RedisServer) -> None:
    code, output = run_ucs("read", "flights", "0.0.0.99", home=flights, UCS_REDIS_URL=redis_server.url)
    sentence = "feed 'flights' has no brick 0.0.0.99. Its bricks are 0.0.0.0 to 0.0.0.33. [UCS-BRICK-NAME]"
    assert (code, output) == (2, f"ucs: {sentence}\n")
