"""The command `ucs`. Each command imports what it needs, so that `ucs --help` answers at once."""

import sys
from typing import NoReturn

import click

from ucs_pipeline import __version__
from ucs_pipeline.errors import UcsError


@click.group()
@click.version_option(__version__)
def ucs() -> None:
    """Moves ClickHouse tables into Redis streams, brick by brick, exactly once, in order."""


@ucs.command()
def demo() -> None:
    """Publish 336,776 real flights through Dagster, and prove that they arrived.

    Reads the embedded ClickHouse engine, or the server at UCS_CLICKHOUSE_URL; writes to the embedded redis-server,
    or to the one at UCS_REDIS_URL. Exits with 0 only if table and stream agree.
    """
    from ucs_pipeline.demo import run_demo

    sys.exit(0 if run_demo() else 1)


@ucs.command()
@click.argument("feed")
def verify(feed: str) -> None:
    """Compare every row of FEED with its entry in the stream. Exits with 0 only if they agree."""
    from ucs_pipeline.feeds import feed_named
    from ucs_pipeline.redis_link import connect_redis
    from ucs_pipeline.report import print_verdict
    from ucs_pipeline.source import open_source
    from ucs_pipeline.stream import OrderedStream
    from ucs_pipeline.verify import verify as compare

    chosen = feed_named(feed)
    verdict = compare(chosen, open_source(chosen), OrderedStream(chosen.stream_name, connect_redis()))
    print_verdict(chosen, verdict)
    sys.exit(0 if verdict.agrees else 1)


@ucs.command()
def stop() -> None:
    """Stop the embedded redis-server. Its data stays; the next command starts it again."""
    from ucs_pipeline.embedded_redis import stop_embedded_redis

    click.echo("stopped the embedded redis-server" if stop_embedded_redis() else "no embedded redis-server is running")


def main() -> NoReturn:
    """Entry point: a user's mistake ends with one sentence and exit code 2, never with a traceback."""
    try:
        ucs(standalone_mode=False)
    except click.Abort:  # what click makes of Ctrl-C
        click.echo("ucs: stopped; what is in the stream stays, and the same command goes on from there", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UcsError as error:
        click.echo(f"ucs: {error}", err=True)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
