"""The code location: every feed in `defs/`, and what feeds share."""

import gc
from pathlib import Path

import dagster as dg

from ucs_pipeline.build import assemble

# What Dagster's import has made stays. The garbage collector would walk through all of it while the feeds are loaded,
# which takes a quarter of the time, and again in every run.
gc.freeze()

defs = assemble(dg.load_from_defs_folder(path_within_project=Path(__file__).parent))
