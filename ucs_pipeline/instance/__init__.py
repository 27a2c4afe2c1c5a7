"""Classes for `dagster.yaml` and process managers."""
