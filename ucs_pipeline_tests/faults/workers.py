"""Publisher processes: forked from one that has everything imported, so that killing them costs little."""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from ucs_pipeline_tests.faults.orders import Order, Reply, say

_PR_SET_PDEATHSIG = 1
# The process that forks has no engine, no threads and no connection; each child starts its own.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["clickhouse_connect", "pyarrow.parquet", "ucs_pipeline_tests.faults.workers"])


class Worker:
    """A process that carries out one order after the other."""

    def __init__(self, log: Path) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, log), daemon=True)
        self._process.start()
        theirs.close()
        self.busy = False

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return self._process.is_alive()

    def begin(self, order: Order) -> None:
        """Gives it an order."""
        self._pipe.send(order)
        self.busy = True

    def poll(self, seconds: float = 0) -> Reply | None:
        """How its order ended; None if it has not ended yet."""
        if not self._pipe.poll(seconds):
            return None
        self.busy = False
        try:
            reply: Reply = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(10)
            return Reply(f"the process ended with code {self._process.exitcode}")
        return reply

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._process.kill()
        self._process.join(10)
        self._process.close()
        self._pipe.close()
        self.busy = False


def _serve(pipe: "Connection[Reply, Order]", log: Path) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            break
        say(f"process {os.getpid()} begins: {type(order).__name__}")
        try:
            reply = order.carry_out()
        except Exception as error:
            traceback.print_exc()
            reply = Reply(f"{type(error).__name__}: {error}")
        say(f"process {os.getpid()} ends: {reply.error or 'done'}")
        pipe.send(reply)
    sys.stdout.flush()
    os._exit(0)
