"""What a feed accepts, and the one sentence it answers to anything else. Nothing here connects anywhere."""

import builtins
import socket
from collections.abc import Iterator
from datetime import date, datetime, timezone
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.utils import DISALLOWED_NAMES

from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.time import TimeBricks
from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.rules import MAX_ORDINAL, MAX_PARTITIONS
from ucs_pipeline_tests.support.connections import build_defs

GOOD: dict[str, Any] = {
    "name": "orders",
    "table": "shop.orders",
    "key": "id",
    "bricks": {"class": "number", "last": 99_999},
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a feed connected to something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("UCS_CLICKHOUSE_URL", "http://nobody:nothing@127.0.0.1:1/none")
    monkeypatch.setenv("UCS_REDIS_URL", "redis://127.0.0.1:1")


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an unknown class": ({"bricks": {"class": "tine", "last": 5}}, ["bricks.class", "'number'", "'tine'"]),
    "last before first": (
        {"bricks": {"class": "number", "first": 10, "last": 5}},
        ["bricks.last (5)", "bricks.first (10)", "Swap them"],
    ),
    "a negative id": ({"bricks": {"class": "number", "last": -5}}, ["bricks.last", "greater than or equal to 0", "-5"]),
    "an id that is no integer": ({"bricks": {"class": "number", "last": 1.5}}, ["bricks.last", "integer", "1.5"]),
    "too many bricks": (
        {"bricks": {"class": "number", "last": MAX_PARTITIONS * 10_000}},
        ["100,001 bricks", "100,000", "several feeds"],
    ),
    "an id beyond what an entry id holds": (
        {"bricks": {"class": "number", "first": 2**64 * 10_000, "last": 2**64 * 10_000}},
        ["bricks.last", "is too large for an entry ID", str(MAX_ORDINAL)],
    ),
    "no range": ({"bricks": {"class": "number"}}, ["bricks.last is missing"]),
    "a time that is none": (
        {"bricks": {"class": "time", "first": "soon", "last": "2013-01-01"}},
        ["bricks.first: expected an hour such as 2013-01-01T00", "'soon'"],
    ),
    "a time before 1970": (
        {"bricks": {"class": "time", "first": "1969-12-31", "last": "1970-01-01"}},
        ["bricks.first", "is before 1970"],
    ),
    "an hour that clocks skip": (
        {"bricks": {"class": "time", "first": "2013.03.31.02", "last": "2014-01-01", "zone": "Europe/Berlin"}},
        ["bricks.first: '2013.03.31.02' is not a brick. Clocks in Europe/Berlin skip that hour"],
    ),
    "a zone that is none": (
        {"bricks": {"class": "time", "first": "2013-01-01", "last": "2013-01-02", "zone": "Berlin"}},
        ["bricks.zone: 'Berlin' is not a time zone"],
    ),
    "a time feed without a first": ({"bricks": {"class": "time", "last": "2013-01-01"}}, ["bricks.first is missing"]),
    "a setting of another class": (
        {"bricks": {"class": "number", "last": 5, "zone": "Europe/Berlin"}},
        ["bricks.zone is for the time class, and bricks.class is number"],
    ),
    "a text brick that is none": ({"bricks": {"class": "text", "first": "1.2.3"}}, ["bricks.first: '1.2.3' is not a"]),
    "an unknown base": ({"bricks": {"class": "text", "base": 7}}, ["bricks.base", "10, 100 or 1000", "7"]),
    "an unknown setting": ({"colums": {"a": "b"}}, ["colums is not a setting. Did you mean columns?"]),
    "an unknown setting like none": ({"zzz": 1}, ["zzz is not a setting"]),
    "an unknown setting of the bricks": (
        {"bricks": {"class": "number", "last": 5, "lost": 3}},
        ["bricks.lost is not a setting. Did you mean bricks.last?"],
    ),
    "an unknown setting of the stream": (
        {"stream": {"nam": "x"}},
        ["stream.nam is not a setting. Did you mean stream.name?"],
    ),
    "a setting of the stream beside it": ({"max_len": 5}, ["max_len is not a setting. Did you mean stream.max_len?"]),
    "a number that is none": (
        {"stream": {"max_len": "many"}},
        ["stream.max_len: expected a whole number (found 'many')"],
    ),
    "a number with a fraction": ({"schedule_bricks": 1.5}, ["schedule_bricks: expected a whole number (found 1.5)"]),
    "seconds that are none": ({"stream": {"pace": "fast"}}, ["stream.pace: expected a number (found 'fast')"]),
    "neither true nor false": ({"final": "maybe"}, ["final: expected true or false (found 'maybe')"]),
    "a name that is no text": ({"stream": {"name": 5}}, ["stream.name: expected text (found 5)"]),
    "a stream that is a name": ({"stream": "events"}, ["stream: expected settings, such as {name: events} (found a"]),
    "bricks that are a list": ({"bricks": [0, 5]}, ["bricks: expected settings, such as {class: number, last: 3367"]),
    "a list of columns": (
        {"columns": ["concat('secret', id)"]},
        ["columns: expected field: column pairs, such as {id: id} (found a list)"],
    ),
    "a column with a number for a field": ({"columns": {5: "a"}}, ["columns: expected text as a name (found 5). Quo"]),
    "an owner by itself": ({"owners": "team:data"}, ["owners: expected a list, such as [team:data] (found"]),
    "a ClickHouse setting that is a list": (
        {"settings": {"max_threads": [1]}},
        ["feed 'orders': settings.max_threads: expected text, a number, true or false (found a list)"],
    ),
    "a transform that names no function": (
        {"transform": "orders.py"},
        ["transform: expected package.module:function (found a text)"],
    ),
    "a name with a space": ({"name": "my feed"}, ["name is invalid. Use letters, digits and underscores", "'my feed'"]),
    "a name that starts with a digit": ({"name": "1feed"}, ["name is invalid. Use letters"]),
    "an empty name": ({"name": ""}, ["name is invalid. Use letters"]),
    "a name with a newline": ({"name": "a\nb"}, ["name is invalid. Use letters"]),
    "a name that Dagster reserves": (
        {"name": "config"},
        ["name 'config' is reserved by Dagster. Choose another; stream.name may be config."],
    ),
    "a name that Python reserves": ({"name": "import"}, ["name 'import' is reserved by Dagster"]),
    "an empty stream name": ({"stream": {"name": ""}}, ["stream.name", "at least 1 character"]),
    "an unknown order": ({"stream": {"order": "loose"}}, ["stream.order", "'strict'", "'loose'"]),
    "an offset to ids that Redis gives": (
        {"stream": {"order": "any", "id_offset": 5}},
        ["stream.id_offset needs `order: strict`, and stream.order is any"],
    ),
    "a pace without an order": (
        {"stream": {"order": "any", "pace": 5}},
        ["stream.pace needs `order: strict`", "Set `stream.max_rows_per_second`"],
    ),
    "shards without an order": (
        {"stream": {"order": "any", "shards": 2}},
        ["stream.shards needs `order: strict`, and stream.order is any"],
    ),
    "a tail without an order": (
        {"stream": {"order": "any"}, "tail": "follow"},
        ["tail: follow needs `order: strict`, and stream.order is any", "Set `tail: hold`"],
    ),
    "a run that stays without an order": (
        {"stream": {"order": "any"}, "tail": "live"},
        ["tail: live needs `order: strict`, and stream.order is any", "Set `tail: hold`"],
    ),
    "a run that stays with keys that do not rise": (
        {"bricks": {"class": "text"}, "tail": "live"},
        ["tail: live needs keys that rise, and bricks.class is text", "Set `tail: hold` and a `schedule`"],
    ),
    "a run that stays with several streams": (
        {"stream": {"shards": 2}, "tail": "live"},
        ["tail: live needs one stream, and stream.shards is 2. Set `tail: follow`"],
    ),
    "a run that stays and waits for the clock": (
        {
            "bricks": {"class": "time", "first": "2013-01-01", "last": "2013-01-02"},
            "stream": {"pace": 5},
            "tail": "live",
        },
        ["tail: live publishes rows as they arrive, and stream.pace by the times of their keys"],
    ),
    "a run that stays and that nobody launches": (
        {"sensor": False, "tail": "live"},
        ["tail: live needs the feed's sensor", "Set `sensor: true`"],
    ),
    "a look too often": ({"poll_s": 0.01}, ["poll_s", "greater than or equal to 0.05"]),
    "a run that ends at once": ({"live_max_s": 0}, ["live_max_s", "greater than or equal to 1"]),
    "a stream that no ledger can be beside": (
        {"stream": {"order": "any", "name": "a{}b"}},
        ["stream.name 'a{}b' has a brace that is no hash tag"],
    ),
    "no time to wait": ({"stream": {"timeout_s": 0}}, ["stream.timeout_s", "greater than 0"]),
    "an empty table": ({"table": ""}, ["table", "at least 1 character"]),
    "an empty key": ({"key": ""}, ["key", "at least 1 character"]),
    "an empty where": ({"where": ""}, ["where", "at least 1 character"]),
    "no bricks in a run": ({"max_bricks_per_run": 0}, ["max_bricks_per_run", "greater than or equal to 1"]),
    "a group with a space": ({"group": "a b"}, ["group, owners or tags", "a b"]),
    "an owner that is nobody": ({"owners": ["me"]}, ["group, owners or tags", "'me'", "e", "team:"]),
    "a tag with a space": ({"tags": {"domain": "a b"}}, ["group, owners or tags", "a b"]),
    "freshness by the second": ({"fresh_within_s": 5}, ["fresh_within_s", "greater than or equal to 60", "5"]),
    "a field both column and constant": (
        {"columns": {"a": "x", "b": "y"}, "constants": {"b": "z"}},
        ["field 'b' is both in columns and in constants"],
    ),
    "no field at all": ({"columns": {}}, ["columns is empty", "at least one field"]),
    "a column that is no text": ({"columns": {"a": ["b"]}}, ["columns.a: expected text (found a list)"]),
    "a constant that is no text": ({"constants": {"a": 5}}, ["constants.a: expected text (found 5). Quote it"]),
    "an answer that YAML reads as false": (
        {"columns": {"a": False}},
        ["columns.a: expected text (found false, as YAML reads off and no). Quote it"],
    ),
    "columns that are SQL": (
        {"columns": "decrypt('aes-256-gcm', c, 'secret')"},
        ["columns: expected field: column pairs, such as {id: id} (found a text)"],
    ),
    "settings that are SQL": (
        {"settings": "SETTINGS format_schema = 'secret'"},
        ["settings: expected setting: value pairs, such as {max_threads: 2} (found a text)"],
    ),
    "a stream that is an address": ({"stream": "redis://:secret@host"}, ["stream: expected sett", "(found a text)"]),
    "SQL for an id": (
        {"bricks": {"class": "number", "last": "(SELECT max(id) FROM url('http://u:secret@h'))"}},
        ["bricks.last: expected an id, an integer greater than or equal to 0 (found a text)"],
    ),
    "SQL for an hour": (
        {"bricks": {"class": "time", "first": "toDate('secret')", "last": "2013-01-01"}},
        ["bricks.first: expected an hour such as 2013-01-01T00", "[HIDDEN]"],
    ),
    "SQL for a zone": (
        {"bricks": {"class": "time", "first": "2013-01-01", "last": "2013-01-02", "zone": "('secret')"}},
        ["bricks.zone: ", "[HIDDEN]", " is not a time zone"],
    ),
    "SQL for a number": ({"stream": {"max_len": "f('secret')"}}, ["expected a whole number (found a text)"]),
    "SQL for a setting": ({"decrypt('secret')": "x"}, ["[HIDDEN] is not a setting"]),
    "SQL for a schedule": ({"schedule": "sql('secret')"}, ["schedule ", "[HIDDEN]", "is not a cron schedule"]),
    "a setting with a hostile name": ({"settings": {"x = 'secret'": 1}}, ["settings: [HIDDEN] is not the name of a"]),
    "a setting that drops rows": ({"settings": {"limit": 10}}, ["limit", "cut a result short", "`where`"]),
    "a setting that ends queries early": ({"settings": {"read_overflow_mode": "break"}}, ["read_overflow_mode"]),
}  # fmt: skip


def _yaml(value: Any, indent: int = 0) -> str:
    """JSON-like data as block YAML, with every text quoted."""
    if isinstance(value, dict) and value:
        return "".join(f"\n{' ' * indent}{_yaml(key)}: {_yaml(inner, indent + 2)}" for key, inner in value.items())
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value)


def _sentence(error: pytest.ExceptionInfo[FeedError], parts: list[str]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "pydantic" not in text.lower()
    assert "Input should" not in text
    assert "secret" not in text
    assert "Traceback" not in text
    for part in parts:
        assert part in text
    return text


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_setting_is_one_sentence_in_python_and_in_yaml(wrong: str) -> None:
    change, parts = WRONG[wrong]
    settings = {**GOOD, **change}
    with pytest.raises(FeedError) as in_python:
        BrickFeed(**settings)
    assert _sentence(in_python, parts).startswith(f"feed {settings['name']!r}: ")
    with pytest.raises(FeedError) as in_yaml:
        BrickFeed.resolve_from_yaml(_yaml(settings))
    assert _sentence(in_yaml, parts) == str(in_python.value)
    assert in_yaml.value.__cause__ is None
    assert in_yaml.value.__suppress_context__


@pytest.mark.parametrize("missing", GOOD)
def test_a_missing_setting_is_named(missing: str) -> None:
    settings = {name: value for name, value in GOOD.items() if name != missing}
    with pytest.raises(FeedError, match=f"{missing} is missing"):
        BrickFeed(**settings)
    with pytest.raises(FeedError, match=f"{missing} is missing"):
        BrickFeed.resolve_from_yaml(_yaml(settings))


def test_yaml_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(FeedError, match=r"^a feed is a mapping of settings \(found a list\)\. \[UCS-SETTING\]$"):
        BrickFeed.resolve_from_yaml("- a")


def test_several_mistakes_are_named_at_once() -> None:
    with pytest.raises(FeedError) as error:
        BrickFeed(**{**GOOD, "bricks": {"class": "x", "last": -1}, "tabel": "t"})
    _sentence(error, ["bricks.class", "bricks.last", "tabel is not a setting"])


def test_yaml_and_python_give_the_same_feed() -> None:
    settings = {
        **GOOD,
        "bricks": {"class": "number", "first": 20_000, "last": 336_775},
        "columns": {"id": "id", "it's": "concat(\"a\", 'b')", "日本": "x"},
        "constants": {"type": "worker", "empty": ""},
        "where": "x > 1 -- all",
        "final": True,
        "settings": {"max_threads": 2, "a": "b", "c": 1.5, "d": True},
        "stream": {"name": "s", "order": "strict", "timeout_s": 2.5},
        "max_bricks_per_run": 5,
        "fresh_within_s": 600,
        "group": "g",
        "owners": ["team:data"],
        "tags": {"domain": "sales"},
        "description": "what for",
    }
    feed = BrickFeed(**settings)
    assert BrickFeed.resolve_from_yaml(_yaml(settings)) == feed
    assert BrickFeed(**feed.model_dump(mode="json", by_alias=True)) == feed
    assert feed.settings == {"max_threads": 2, "a": "b", "c": 1.5, "d": True}
    assert type(feed.settings["d"]) is bool
    assert feed.ordinals == range(2, 34)


def test_what_is_left_out_has_its_default_in_yaml_too() -> None:
    feed = BrickFeed(**GOOD)
    assert BrickFeed.resolve_from_yaml(_yaml(GOOD)) == feed
    assert feed.stream_name == "orders"
    assert (feed.columns, feed.constants, feed.where, feed.final) == (None, {}, None, False)
    assert feed.ordinals == range(10)


def test_templates_stand_for_any_setting() -> None:
    text = _yaml({**GOOD, "bricks": {"class": "number", "last": "{{ last }}"}, "stream": {"name": "{{ where }}_s"}})
    feed = BrickFeed.resolve_from_yaml(text, scope={"last": 29_999, "where": "here"})
    assert feed.ordinals == range(3)
    assert feed.stream_name == "here_s"
    with pytest.raises(FeedError, match=r"bricks\.last.*-1"):
        BrickFeed.resolve_from_yaml(text, scope={"last": -1, "where": "here"})


def test_a_variable_of_the_environment_that_is_not_set_is_an_error_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGION", raising=False)
    for where in (
        "region = '{{ env.REGION }}'",
        "{{ env.REGION }}",
        "{{ env('REGION') }}",
        "a{{ env['REGION'] | upper }}",
    ):
        with pytest.raises(FeedError) as error:
            BrickFeed.resolve_from_yaml(_yaml({**GOOD, "where": where}))
        _sentence(error, ["feed 'orders': where: a template has no value: environment variable REGION is not set"])
        assert error.value.__suppress_context__
    for region in ("env('REGION', 'eu')", "env.REGION or 'eu'", "env.REGION | default('eu')"):
        text = _yaml({**GOOD, "where": f"region = '{{{{ {region} }}}}'"})
        assert BrickFeed.resolve_from_yaml(text).where == "region = 'eu'"
    with pytest.raises(FeedError, match="where: a template has no value: a part of the text is None"):
        BrickFeed.resolve_from_yaml(_yaml({**GOOD, "where": "region = {{ it }}"}), scope={"it": None})
    with pytest.raises(FeedError, match="columns: a template cannot stand for a name"):
        BrickFeed.resolve_from_yaml(_yaml({**GOOD, "columns": {"{{ it }}": "id"}}), scope={"it": "a"})


def test_what_a_template_makes_of_a_text_is_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERSION", "5")
    text = _yaml({**GOOD, "constants": {"version": "{{ env.VERSION }}"}, "columns": {"v": "'{{ env.VERSION }}'"}})
    feed = BrickFeed.resolve_from_yaml(text)
    assert (feed.constants, feed.columns) == ({"version": "5"}, {"v": "'5'"})
    assert (
        BrickFeed.resolve_from_yaml(_yaml({**GOOD, "max_bricks_per_run": "{{ env.VERSION }}"})).max_bricks_per_run == 5
    )


def test_what_comes_from_the_environment_is_shown_nowhere_but_as_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "hunter2hunter2")
    monkeypatch.setenv("DATABASE", "shop")
    settings = {**GOOD, "table": "{{ env.DATABASE }}.orders", "where": "f(x) = '{{ env.KEY }}' -- {{ env.KEY }}"}
    feed = BrickFeed.resolve_from_yaml(_yaml({**settings, "settings": {"format_schema": "{{ env.KEY }}"}}))
    assert feed.where == "f(x) = 'hunter2hunter2' -- hunter2hunter2"
    assert (feed.redacted.table, feed.redacted.where) == ("shop.orders", "f(x) = '[HIDDEN]' -- [HIDDEN]")
    assert feed.redacted.settings == {"format_schema": "[HIDDEN]"}
    assert feed.redact("near 'hunter2hunter2'") == "near '[HIDDEN]'"
    for wrong in ({"bricks": {"class": "number", "last": "{{ env.KEY }}"}}, {"stream": {"order": "{{ env.KEY }}"}}):
        with pytest.raises(FeedError, match=r"^feed 'orders': .*\(found '\[HIDDEN\]'\)\. \[UCS-SETTING\]$") as error:
            BrickFeed.resolve_from_yaml(_yaml({**GOOD, **wrong}))
        assert "hunter" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("where: a\nfinal: true\nwhere: b", "where is written twice, in lines 6 and 8. Keep one of them"),
        ("columns: {id: id, id: x}", "columns.id is written twice, in lines 6 and 6"),
        (
            "max_bricks_per_run: 0100",
            "max_bricks_per_run (line 6): YAML reads the number in base 8, for its leading zero",
        ),
        (
            "max_bricks_per_run: 0x10",
            "max_bricks_per_run (line 6): YAML reads the number in base 16. Write it in base 10",
        ),
        (
            "sensor_interval_s: 1:30",
            "sensor_interval_s (line 6): YAML reads the number in base 60, as minutes and seconds",
        ),
        ("stream: {timeout_s: .inf}", "stream.timeout_s (line 6): expected a number"),
        (
            "settings: {compatibility: 24.10}",
            "settings.compatibility (line 6): YAML reads a number and does not keep all its digits",
        ),
    ],
)
def test_a_file_that_says_something_else_than_it_means_is_refused(more: str, said: str) -> None:
    bricks = "bricks: {class: number, last: 99_999}"
    text = f"# A feed.\nname: orders\ntable: t\nkey: id\n{bricks}\n"
    assert BrickFeed.resolve_from_yaml(text).bricks.last == 99_999
    with pytest.raises(FeedError) as error:
        BrickFeed.resolve_from_yaml(text + more)
    # The comment is no part of the document, whose lines are those of the file.
    _sentence(error, ["feed 'orders': " + said])


def test_a_constant_of_digits_stays_a_text() -> None:
    assert BrickFeed.resolve_from_yaml(_yaml({**GOOD, "constants": {"version": "5"}})).constants == {"version": "5"}


def test_the_largest_feed_and_the_largest_id_are_allowed() -> None:
    feed = BrickFeed(**{**GOOD, "bricks": {"class": "number", "last": MAX_PARTITIONS * 10_000 - 1}})
    assert len(feed.ordinals) == MAX_PARTITIONS
    last = MAX_ORDINAL * 10_000 + 9_999
    assert list(BrickFeed(**{**GOOD, "bricks": {"class": "number", "first": last, "last": last}}).ordinals) == [
        MAX_ORDINAL
    ]
    with pytest.raises(FeedError):
        BrickFeed(**{**GOOD, "bricks": {"class": "number", "first": last, "last": last + 1}})


def test_two_feeds_of_one_name_are_refused() -> None:
    with pytest.raises(FeedError, match="2 feeds are named 'orders'"):
        build_defs(BrickFeed(**GOOD), BrickFeed(**{**GOOD, "stream": {"name": "other"}}))


def test_two_feeds_of_one_stream_are_refused() -> None:
    with pytest.raises(FeedError, match="2 feeds are writing to stream 'orders'") as error:
        build_defs(BrickFeed(**GOOD), BrickFeed(**{**GOOD, "name": "copy", "stream": {"name": "orders"}}))
    _sentence(error, ["'orders'", "'copy'"])


def test_every_name_that_dagster_refuses_is_refused_by_the_feed() -> None:
    for name in filter(str.isidentifier, {*DISALLOWED_NAMES, *dir(builtins), "result", "default"}):
        if name.startswith("_"):
            continue
        bare = BrickFeed.model_construct(**{**dict(BrickFeed(**GOOD)), "name": name, "schedule": "* * * * *"})
        try:
            dg.Definitions.validate_loadable(build_defs(bare))
        except dg.DagsterInvalidDefinitionError:
            with pytest.raises(FeedError, match=f"name '{name}' is reserved"):
                BrickFeed(**{**GOOD, "name": name})
        else:
            BrickFeed(**{**GOOD, "name": name})


def test_shards_may_have_a_reserved_name_with_their_number() -> None:
    feed = BrickFeed(**{**GOOD, "name": "config", "stream": {"shards": 2}})
    dg.Definitions.validate_loadable(build_defs(feed))


def _nodes(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "feed", schema
    yield from schema.get("$defs", {}).items()


def test_every_setting_is_described_in_the_schema_of_the_component() -> None:
    model = BrickFeed.get_model_cls()
    assert model is not None
    schema = model.model_json_schema()
    names = {f"{node}.{name}" for node, inner in _nodes(schema) for name in inner["properties"]}
    assert {"feed.bricks", "feed.settings", "BricksModel.class", "BricksModel.first", "StreamModel.timeout_s"} <= names
    bare = [
        f"{node}.{name}"
        for node, inner in _nodes(schema)
        for name, setting in inner["properties"].items()
        if not setting.get("description")
    ]
    assert bare == []
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {field.alias or name for name, field in BrickFeed.model_fields.items()}


def test_building_definitions_connects_to_nothing() -> None:
    defs = build_defs(BrickFeed(**GOOD))
    assert defs.resolve_asset_graph().has(dg.AssetKey("orders"))


@pytest.mark.parametrize(
    ("bricks", "first", "last", "count"),
    [
        ({"class": "time", "first": "2013-01-01", "last": "2013-12-31T23"}, "2013.01.01.00", "2013.12.31.23", 8760),
        ({"class": "time", "first": "2013-01-01", "last": "2013-12-31"}, "2013.01.01.00", "2013.12.31.23", 8760),
        (
            {"class": "time", "first": "2013-03-31", "last": "2013-03-31", "zone": "Europe/Berlin"},
            "2013.03.31.00",
            "2013.03.31.23",
            23,
        ),
        (
            {"class": "time", "first": "2013.03.31.01", "last": "2013-03-31T03:30:00Z"},
            "2013.03.31.01",
            "2013.03.31.03",
            3,
        ),
        ({"class": "text"}, "0.0.0.0", "9.9.9.9", 10_000),
        ({"class": "text", "first": "2.0.0.0", "last": "2.0.0.9", "base": 100}, "2.0.0.0", "2.0.0.9", 10),
    ],
)
def test_lists_of_time_and_text_bricks(bricks: dict[str, Any], first: str, last: str, count: int) -> None:
    feed = BrickFeed(**{**GOOD, "bricks": bricks})
    assert (feed.partitions.name(feed.partitions.first), feed.partitions.name(feed.partitions.last)) == (first, last)
    assert len(feed.partitions.starts) == count
    assert BrickFeed.resolve_from_yaml(_yaml({**GOOD, "bricks": bricks})) == feed
    assert BrickFeed(**feed.model_dump(mode="json", by_alias=True)) == feed
    assert (feed.warning is None) == (feed.bricks.base == 10)


def test_python_may_give_times_as_such() -> None:
    bricks = {"class": "time", "first": date(2013, 1, 1), "last": datetime(2013, 1, 1, 5, tzinfo=timezone.utc)}
    assert BrickFeed(**{**GOOD, "bricks": bricks}).partitions.names() == [f"2013.01.01.0{hour}" for hour in range(6)]


def test_an_offset_moves_the_ordinals_and_not_the_names() -> None:
    feed = BrickFeed(**{**GOOD, "stream": {"id_offset": 10**13}})
    assert feed.ordinals == range(10**13, 10**13 + 10)
    assert feed.partitions.names()[-1] == "0.0.0.9"
    with pytest.raises(FeedError, match="is too large for an entry ID"):
        BrickFeed(**{**GOOD, "stream": {"id_offset": MAX_ORDINAL}})


@pytest.mark.parametrize(
    ("level", "last", "sentence"),
    [
        ("brick", "9999-12-31", "make about 70,012,583 bricks, and Dagster supports 100,000"),
        ("block", "9999-12-31", "make about 2,917,190 blocks, and Dagster supports 100,000"),
        ("part", "9999-12-31", "bricks.last (9999-12-31) is too late. The last hour is 9998-12-31T23"),
        ("shard", "9999-01-01", "bricks.last (9999-01-01) is too late"),
    ],
)
def test_a_list_for_thousands_of_years_is_refused_before_it_is_made(
    level: str, last: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TimeBricks, "units", lambda *_: pytest.fail("the list was made"))
    with pytest.raises(FeedError) as refusal:
        BrickFeed(
            name="f", table="t", key="k", bricks={"class": "time", "first": "2013-01-01", "last": last, "level": level}
        )
    assert sentence in str(refusal.value)
