"""Benchmarks, each a module of its own: `uv run python -m benchmarks.<name>`."""

import os
import sys

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Each process that a benchmark starts would compile Dagster again, which takes longer than most measurements.
    sys.dont_write_bytecode = False
    print("benchmarks: PYTHONDONTWRITEBYTECODE was set, and is not while this runs", file=sys.stderr)
