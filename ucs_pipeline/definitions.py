"""The code location: every feed in `defs/`, and their shared resources."""

import gc
from pathlib import Path

import dagster as dg

from ucs_pipeline.project.files import load

# Objects from Dagster's import stay. Without this, the garbage collector visits them while feeds load, which takes a
# quarter of the time, and again in every run.
gc.freeze()

# One process per run: starting a step process costs seconds, and a run has one step.
defs = dg.Definitions.merge(load(Path(__file__).parent / "defs"), dg.Definitions(executor=dg.in_process_executor))
