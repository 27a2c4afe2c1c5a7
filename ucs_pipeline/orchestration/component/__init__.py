"""The feed as a Dagster component, in YAML or Python."""
