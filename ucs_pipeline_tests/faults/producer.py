"""Another producer, which writes to the same stream all the time, over every outage."""

import threading

import redis

from ucs_pipeline_tests.faults.links import link
from ucs_pipeline_tests.faults.rigs import Rig
from ucs_pipeline_tests.faults.shapes import OTHERS
from ucs_pipeline_tests.servers.lifetime import Closed

_PAUSE_SECONDS = 0.01


class Producer(Closed):
    """Adds an entry every hundredth of a second, in a thread of its own."""

    def __init__(self, rig: Rig, stream: str) -> None:
        self._rig = rig
        self._stream = stream
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._over.wait(_PAUSE_SECONDS):
            try:
                with link(self._rig.server.port) as opened:
                    while not self._over.wait(_PAUSE_SECONDS):
                        opened.ask("XADD", self._stream, "NOMKSTREAM", "*", OTHERS, "somebody else")
            except (redis.RedisError, OSError):
                continue
