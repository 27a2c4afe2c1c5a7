"""The code location: every feed in `defs/`, and what feeds share."""

from pathlib import Path

import dagster as dg

from ucs_pipeline.build import assemble

defs = assemble(dg.load_from_defs_folder(path_within_project=Path(__file__).parent))
