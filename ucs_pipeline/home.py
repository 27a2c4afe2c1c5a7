"""The project's directories: Dagster's home, and that of the embedded engine's and server's files."""

import logging.handlers
import os
from pathlib import Path

from ucs_pipeline.errors import UcsError

EMBEDDED = "embedded"
"""The URL of the engine, or the server, of this home."""

_MARKS = ("dagster.yaml", "workspace.yaml")


def project_home() -> Path:
    """Absolute path of `DAGSTER_HOME`, else of the nearest directory upwards with dagster.yaml and workspace.yaml.

    Raises:
        UcsError: `DAGSTER_HOME` is not a directory, or it is unset and no such directory encloses the current one.
    """
    configured = os.environ.get("DAGSTER_HOME")
    if configured:
        home = Path(configured).expanduser()
        if not home.is_dir():
            raise UcsError(
                f"DAGSTER_HOME is {configured!r}, which is not a directory. Create it, or set another one.", "UCS-HOME"
            )
        return home.resolve()
    here = Path.cwd().resolve()
    for directory in (here, *here.parents):
        if all((directory / mark).is_file() for mark in _MARKS):
            return directory
    raise UcsError(
        f"DAGSTER_HOME is not set, and neither {here} nor a directory above it has {' and '.join(_MARKS)}. Set it to "
        "the directory that `dagster dev` uses.",
        "UCS-HOME",
    )


def data_dir() -> Path:
    """`.ucs` in the project's home, created on first use and readable by its owner only."""
    directory = project_home() / ".ucs"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def log_file_handler(filename: str, max_bytes: int, backup_count: int) -> logging.handlers.RotatingFileHandler:
    """Rotating handler for `logs/<filename>` in the project's home, for `python_logs` in dagster.yaml.

    The standard handler resolves a relative name against the current directory, which differs between the web
    server, the daemon and the runs they start.
    """
    directory = project_home() / "logs"
    # Logs name keys and show rows that differ.
    directory.mkdir(mode=0o700, exist_ok=True)
    return logging.handlers.RotatingFileHandler(
        directory / filename, maxBytes=max_bytes, backupCount=backup_count, encoding="utf-8", delay=True
    )
