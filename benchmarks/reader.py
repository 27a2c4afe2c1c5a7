"""A process that reads and encodes a feed's rows repeatedly, and sends none: the load next to Redis in a run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.shapes import STREAM
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.support.connections import open_source


@contextmanager
def reader_beside(feed: Feed) -> Iterator[None]:
    """Runs it with the lowest priority, so it uses only idle processors."""
    settings = feed.model_dump_json(by_alias=True, exclude_defaults=True)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.reader", str(os.getpid()), settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or not process.stdout.readline():
            raise SystemExit("the reader did not begin")
        yield
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Reads until the parent is gone; prints a line after the first rows."""
    parent, feed = int(sys.argv[1]), Feed(**json.loads(sys.argv[2]))
    os.nice(19)
    source, begun = open_source(feed), False
    while True:
        for entries in encode(STREAM.encode(), source.scan(feed.ordinals[0], feed.ordinals[-1])):
            _ = entries.requests
            if os.getppid() != parent:
                return
            if not begun:
                begun = True
                print("reading", flush=True)


if __name__ == "__main__":
    main()
