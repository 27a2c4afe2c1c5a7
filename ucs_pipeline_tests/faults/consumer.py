"""A consumer group that reads and acknowledges all the time, over every outage."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from ucs_pipeline_tests.faults.links import Link, link
from ucs_pipeline_tests.faults.shapes import Entry
from ucs_pipeline_tests.servers.lifetime import Closed

_GROUP = "consumers"
_COUNT = 2_000
_BLOCK_MILLISECONDS = 50


class Consumer(Closed):
    """The only consumer of a group, in a thread of its own. An entry it got twice counts where it came first."""

    def __init__(self, port: int, stream: str) -> None:
        self.delivered: list[bytes] = []
        """Ids in the order of their first delivery."""
        self.entries: list[Entry] = []
        """The same with their fields."""
        self._going = threading.Event()
        self._going.set()
        self._known: set[bytes] = set()
        self._port = port
        self._stream = stream
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer", daemon=True)
        self._thread.start()

    def wait_for(self, entries: int, seconds: float) -> None:
        """Waits until it has got so many different entries, or the time is up."""
        deadline = time.monotonic() + seconds
        while len(self.delivered) < entries and time.monotonic() < deadline:
            time.sleep(0.02)

    def wait_for_id(self, entry_id: bytes | None, seconds: float) -> None:
        """Waits until it has got that entry, or the time is up."""
        deadline = time.monotonic() + seconds
        while entry_id is not None and entry_id not in self._known and time.monotonic() < deadline:
            time.sleep(0.02)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Reads and acknowledges nothing meanwhile."""
        self._going.clear()
        try:
            yield
        finally:
            self._going.set()

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with link(self._port) as opened:
                    self._read(opened)
            except (redis.RedisError, OSError):
                time.sleep(0.02)

    def _read(self, opened: Link) -> None:
        try:
            opened.ask("XGROUP", "CREATE", self._stream, _GROUP, "0", "MKSTREAM")
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        # What it got and did not acknowledge comes first: the reply, or the acknowledgement, may have been lost.
        while self._take(opened, "0"):
            pass
        while not self._over.is_set():
            self._going.wait(_BLOCK_MILLISECONDS / 1000)
            if self._going.is_set():
                self._take(opened, ">")

    def _take(self, opened: Link, after: str) -> int:
        command = ("XREADGROUP", "GROUP", _GROUP, "one", "COUNT", _COUNT, "BLOCK", _BLOCK_MILLISECONDS)
        reply = opened.ask(*command, "STREAMS", self._stream, after)
        entries = reply[0][1] if reply else []
        if entries:
            ids = [entry_id for entry_id, _ in entries]
            fresh = [entry for entry in entries if entry[0] not in self._known]
            self.entries += fresh
            self.delivered += (entry[0] for entry in fresh)
            self._known.update(ids)
            opened.ask("XACK", self._stream, _GROUP, *ids)
        return len(entries)
