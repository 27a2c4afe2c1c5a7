"""The overview of a feed in the UI. Pure."""

from collections.abc import Mapping

from ucs_pipeline.orchestration.status import FeedStatus


def overview(status: FeedStatus, table_rows: int) -> Mapping[str, str]:
    """Bricks, rows, stream and consumer groups of a feed, each as a short text.

    Args:
        status: where the feed is.
        table_rows: rows of the feed's bricks in the table.
    """
    return {
        "bricks": _bricks(status),
        "rows": f"{status.rows:,} recorded of {table_rows:,} in the table: {max(0, table_rows - status.rows):,} behind",
        "stream": _stream(status),
        "consumer groups": _groups(status),
    }


def _bricks(status: FeedStatus) -> str:
    text = f"{status.done:,} of {status.bricks:,} done"
    if status.failed:
        text += f", {status.failed:,} failed"
    return f"{text}; next: {status.next_brick}" if status.next_brick else text


def _stream(status: FeedStatus) -> str:
    if status.redis is None:
        return f"{status.stream}: {status.problem}"
    share = status.redis.length / status.max_len
    text = f"{status.stream}: {status.redis.length:,} of {status.max_len:,} entries ({share:.1%})"
    return f"{text}, last ID {status.redis.top}" if status.redis.top else text


def _groups(status: FeedStatus) -> str:
    if status.redis is None or not status.redis.groups:
        return "none"
    return "; ".join(
        f"{group.name}: {group.pending:,} pending, "
        f"{'?' if group.undelivered is None else format(group.undelivered, ',')} to come"
        for group in status.redis.groups
    )
