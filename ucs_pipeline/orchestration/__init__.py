"""All that Dagster shows and runs."""
