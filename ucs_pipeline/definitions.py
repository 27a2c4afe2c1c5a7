"""The code location: every feed in `defs/`, and what feeds share."""

import gc

from ucs_pipeline.project.files import load

# What Dagster's import has made stays. The garbage collector would walk through all of it while the feeds are loaded,
# which takes a quarter of the time, and again in every run.
gc.freeze()

defs = load()
