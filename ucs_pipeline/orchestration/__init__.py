"""Everything that Dagster shows and runs."""
