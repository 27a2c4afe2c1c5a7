"""The stable codes of all error messages and failed checks, and what each means: `docs/reference/messages.md`."""

from collections.abc import Mapping
from typing import NamedTuple


class MessageCode(NamedTuple):
    """What a code means."""

    means: str
    """What happened."""
    why: str
    """Why it happens."""
    do: str
    """What to do: one action first."""
    passes: bool = False
    """Whether the same command or run succeeds later without a change."""


FEEDS: Mapping[str, MessageCode] = {
    "UCS-SETTING": MessageCode(
        "A setting of a feed is invalid.",
        "The value has the wrong type or is out of range, the name is unknown, or two settings exclude each other.",
        "Change the setting that the message names, then run `ucs check`.",
    ),
    "UCS-CONFLICT": MessageCode(
        "Two feeds of one code location exclude each other.",
        "Both have the same name, the same stream, or names that make the same asset key.",
        "Rename one of them, or give it another `stream.name`.",
    ),
    "UCS-DEFINITIONS": MessageCode(
        "A file of definitions cannot be loaded.",
        "The YAML or Python in it is invalid, a template has no value, or the file is empty.",
        "Fix the line that the message names, then run `ucs check`.",
    ),
    "UCS-RESOURCE": MessageCode(
        "A resource that the feed names is missing, of another kind, or not configured.",
        "The definitions have no resource under that key, or its environment variable is not set.",
        "Add the resource to the definitions, or change the feed's `clickhouse` or `redis` setting.",
    ),
    "UCS-TRANSFORM": MessageCode(
        "The feed's `transform` cannot be used.",
        "The function cannot be imported, raised an error, or returned rows that do not match those it was given.",
        "Fix the function. The message names the brick and the error.",
    ),
    "UCS-VARYING": MessageCode(
        "The feed reads a value that may differ each time a row is read.",
        "A function such as `now()`, `rand()` or a window function is in `columns`, `key`, `where` or a "
        "column's default. "
        "The entries in the stream could then not be compared with the table.",
        "Store the value in the table and publish the stored column, or leave the function out.",
    ),
}

COMMANDS: Mapping[str, MessageCode] = {
    "UCS-ARGUMENT": MessageCode(
        "The arguments of a command or a call do not fit the feed.",
        "The message names the argument and what the feed expects.",
        "Run the command again with the argument that the message names.",
    ),
    "UCS-BRICK-NAME": MessageCode(
        "An ID, a brick name or a brick range is invalid.",
        "The numbering standard has no such brick, the feed has no such brick, or the range is reversed.",
        "Write the name as the message shows it.",
    ),
    "UCS-NO-FEED": MessageCode(
        "No feed has this name, or two code locations have one.",
        "The name is misspelled, or the command loads another code location than you expect.",
        "Use a name that the message lists, or name the code location with `-m MODULE` or `-f FILE`.",
    ),
    "UCS-LOCATION": MessageCode(
        "The command cannot load a code location.",
        "The directory has no `pyproject.toml` or `workspace.yaml` that names one, or another process serves it.",
        "Change to the project's directory, or name the definitions with `-m MODULE`, `-f FILE` or `-w WORKSPACE`.",
    ),
    "UCS-HOME": MessageCode(
        "Dagster's directory is not known.",
        "`DAGSTER_HOME` is not set or is no directory, and the current directory is not part of the project.",
        "Set `DAGSTER_HOME` to the directory that `dagster dev` uses.",
    ),
    "UCS-ADOPT": MessageCode(
        "Bricks cannot be adopted, or adopted bricks are no longer in front of the stream.",
        "The feed is any-order, the brick is not whole, the rows that the previous writer handled cannot be "
        "determined, "
        "or the adopted stream was lost.",
        "Follow the message: it names the option of `ucs adopt` or the setting.",
    ),
    "UCS-NOT-IN-STREAM": MessageCode(
        "The stream does not hold the entries of the brick.",
        "The brick is not published yet, has no rows, was adopted, or its entries were trimmed.",
        "Publish the brick, or read its rows from the table.",
    ),
    "UCS-SHARED-STREAM": MessageCode(
        "An any-order stream cannot be read as one feed.",
        "Other clients write to the stream too, and its entries do not name their feed.",
        "Read brick by brick with `ucs read FEED BRICK`, or use a consumer group.",
    ),
    "UCS-RUN": MessageCode(
        "A run failed, or was launched in a way that cannot work.",
        "The run names no bricks, includes an asset that reads the stream too early, or failed for a reason in "
        "its log.",
        "Open the run in the Dagster UI and follow its error message.",
    ),
    "UCS-WEBHOOK": MessageCode(
        "The webhook did not accept an alert.",
        "The address in `UCS_ALERT_WEBHOOK_URL` cannot be reached, or did not answer with a status of 200 to 299.",
        "Fix the address or the service. The sensor sends the alert at a later tick.",
    ),
}

CONNECTIONS: Mapping[str, MessageCode] = {
    "UCS-URL": MessageCode(
        "The address of a server is invalid.",
        "It is empty, is no ClickHouse or Redis URL, names a file that cannot be read, or names a wrong port or "
        "master.",
        "Correct the URL in the variable or resource that the message names.",
    ),
    "UCS-TLS": MessageCode(
        "Redis and the client do not accept each other's certificates.",
        "The CA, the host name or the client certificate does not match.",
        "Check `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` in the URL.",
    ),
    "UCS-LOGIN": MessageCode(
        "A server refused the login.",
        "The user or the password in the URL is wrong or missing.",
        "Correct user and password in the URL.",
    ),
    "UCS-RIGHTS": MessageCode(
        "The user of a server lacks a right.",
        "Redis refused a command or a key, or ClickHouse refused a table or a query setting.",
        "Grant the right that the message names.",
    ),
    "UCS-EMBEDDED": MessageCode(
        "An embedded server, or the demo's data, cannot be used.",
        "A package or program is not installed, its data is of a newer version, or its files cannot be read.",
        "Install what the message names, or name a server of yours in the URL.",
    ),
    "UCS-REDIS-UNAVAILABLE": MessageCode(
        "Redis cannot take rows now.",
        "It cannot be reached, is starting, is a replica, is moving a slot, or cannot save to disk.",
        "Wait: runs retry for `stream.timeout_s` seconds, and sensors launch the run again. "
        "If the message comes back, check the server and the URL.",
        passes=True,
    ),
    "UCS-REDIS-FULL": MessageCode(
        "Redis has no memory left.",
        "The data of the server reaches `maxmemory`.",
        "Let the consumers catch up and trim the stream, or raise `maxmemory`.",
        passes=True,
    ),
    "UCS-REPLICAS": MessageCode(
        "Too few replicas have confirmed the entries.",
        "A replica is down or behind, and the feed's `min_replicas` or Redis' `min-replicas-to-write` asks for more.",
        "Repair the replication, or lower the setting.",
        passes=True,
    ),
    "UCS-REDIS-REFUSED": MessageCode(
        "Redis refused a command for a reason that does not pass.",
        "The key holds another type, the keys are in several cluster slots, or Redis reports an error of its own.",
        "Follow the message. It ends with the words of Redis.",
    ),
    "UCS-EVICTION": MessageCode(
        "Redis may delete the whole stream when memory is short.",
        "`maxmemory-policy` is one of the `allkeys-*` policies.",
        "Set `maxmemory-policy` to `noeviction` or to a `volatile-*` policy.",
    ),
    "UCS-CLICKHOUSE-UNAVAILABLE": MessageCode(
        "ClickHouse cannot answer now, or a scan ended early.",
        "The server cannot be reached, is overloaded, or the connection broke.",
        "Wait: runs retry. If the message comes back, check the server and the URL.",
        passes=True,
    ),
}

TABLES: Mapping[str, MessageCode] = {
    "UCS-TABLE": MessageCode(
        "The table cannot be read as the feed describes it.",
        "A table, a column, a function or a type does not match the feed, or ClickHouse refused the query.",
        "Check `table`, `key`, `columns` and `where` of the feed. If the table was altered during the run, "
        "launch again.",
    ),
    "UCS-SCAN-INCOMPLETE": MessageCode(
        "A scan returned fewer rows than ClickHouse counted before.",
        "Rows were deleted meanwhile, or a cache or a lagging replica answered.",
        "Launch again. If the message comes back, read from one replica or set "
        "`settings: {select_sequential_consistency: 1}`.",
        passes=True,
    ),
    "UCS-ROW": MessageCode(
        "A row cannot become a stream entry.",
        "Every field of it is NULL, it is larger than Redis accepts, or a transform is given a value that is "
        "not UTF-8.",
        "Change `columns`, or leave the row out with `where`.",
    ),
}

STREAMS: Mapping[str, MessageCode] = {
    "UCS-GAP": MessageCode(
        "Publishing the bricks now would leave a gap in an ordered stream.",
        "Earlier bricks have rows that are not in the stream.",
        "Launch the range that the message names. It begins with the missing brick.",
    ),
    "UCS-STREAM-FULL": MessageCode(
        "The stream holds as many entries as its cap allows.",
        "The consumers have not trimmed or acknowledged enough entries for `stream.timeout_s` seconds.",
        "Let the consumers catch up and trim the stream, raise `stream.max_len`, or choose another `stream.when_full`.",
        passes=True,
    ),
    "UCS-FOREIGN-ENTRY": MessageCode(
        "The stream holds an entry that is not the feed's.",
        "Another client or feed has written to it, or the feed's brick range became shorter.",
        "Choose another `stream.name`, or delete the stream and publish all bricks again. If the feed has published "
        "nothing yet and the writer has stopped, set `stream.id_offset` to continue after its entries. Deleting the "
        "entry does not help: the stream keeps its last ID.",
    ),
    "UCS-BRICK-CHANGED": MessageCode(
        "The table and the stream differ for a brick that was published, or partly published.",
        "Rows were inserted, deleted or updated after publishing, or the stream holds other entries.",
        "Restore the rows in the table, or publish to another `stream.name`. "
        "For an any-order feed, launch the brick with `replay: true`.",
    ),
    "UCS-ENTRIES-LOST": MessageCode(
        "Redis has fewer entries than a moment ago.",
        "A failover to a lagging replica, a restored older copy, FLUSHALL or DEL removed entries or keys.",
        "Wait: the next attempt publishes the missing entries again. If the message comes back, check Redis' "
        "persistence "
        "and replication.",
        passes=True,
    ),
    "UCS-OTHER-WRITER": MessageCode(
        "Another client changed the stream or its keys while a run published.",
        "A program adds entries to an ordered stream, or changed the stream at that moment.",
        "Stop the other writer. The next attempt compares its entries with the table and refuses those that differ.",
        passes=True,
    ),
    "UCS-STREAM-CHANGED": MessageCode(
        "The stream was deleted or altered while a run published, and the run stopped.",
        "A client ran DEL, XSETID or a similar command, or another run published the same feed.",
        "Stop other runs of the feed, run `ucs verify`, then publish from the brick that the message names.",
    ),
    "UCS-NUMBERING": MessageCode(
        "The feed numbers its rows in another way than when it published.",
        "`bricks`, `stream.id_offset` or the time zone database has changed.",
        "Set the settings back, or publish with another feed name to another stream.",
    ),
    "UCS-SHARDS": MessageCode(
        "The bricks were assigned to other stream shards before.",
        "`stream.shards` or `bricks.level` has changed.",
        "Set both back, choose a new `stream.name`, or delete all streams of the feed.",
    ),
    "UCS-LEDGER": MessageCode(
        "The stream and the ledger of an any-order feed do not belong together.",
        "One of the two keys was deleted, restored, renamed or written by another client.",
        "Stop other runs of the feed, then restore both keys or run the commands of the message.",
    ),
    "UCS-RESERVED-KEY": MessageCode(
        "A key exists under a name that ucs reserves.",
        "Another client created the key.",
        "Rename or delete the key.",
    ),
}

CHECKS: Mapping[str, MessageCode] = {
    "UCS-CHECK-ROWS": MessageCode(
        "Check `all_rows_arrived` failed: table, record and stream differ.",
        "Rows of materialized bricks changed in the table, or entries were changed, deleted or added in the stream.",
        "Restore the table. If the stream is wrong, publish to another `stream.name`, or delete the stream and "
        "launch all "
        "bricks.",
    ),
    "UCS-CHECK-GAPS": MessageCode(
        "Check `no_gaps` failed: bricks below the newest materialized one are not materialized.",
        "Runs failed or were left out, or materializations were deleted.",
        "Launch the bricks that the check lists. Rows that are in the stream already are not published again.",
    ),
    "UCS-CHECK-LATE": MessageCode(
        "Check `no_late_rows` failed: materialized bricks have changed in the table.",
        "Rows arrived after the brick was sealed, or rows were updated or deleted.",
        "If consumers need the change, publish to another `stream.name`. Otherwise raise `bricks.settle_s`, or "
        "accept it.",
    ),
    "UCS-CHECK-UNASSIGNED": MessageCode(
        "Check `no_unassigned_rows` failed: rows are in no brick of the feed.",
        "Their keys are NULL, negative, or outside `bricks.first` to `bricks.last`.",
        "Change the feed's `bricks`, or leave such rows out with `where`.",
    ),
    "UCS-CHECK-BEHIND": MessageCode(
        "Check `stream_not_behind` failed: the stream ends before the last recorded entry.",
        "Redis lost entries, or the stream was deleted.",
        "Launch the bricks that the check names. The run adds the missing entries.",
    ),
}

GROUPS: Mapping[str, Mapping[str, MessageCode]] = {
    "Feeds and definitions": FEEDS,
    "Commands and runs": COMMANDS,
    "Connections": CONNECTIONS,
    "Tables": TABLES,
    "Streams": STREAMS,
    "Checks": CHECKS,
}
"""All codes, in the order of the page."""

CODES: Mapping[str, MessageCode] = {code: meaning for group in GROUPS.values() for code, meaning in group.items()}
"""All codes."""
