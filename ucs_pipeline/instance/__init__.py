"""What `dagster.yaml` and process managers plug in."""
