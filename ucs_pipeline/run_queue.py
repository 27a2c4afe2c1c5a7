"""Where a `dagster.yaml` finds its run coordinator."""

from ucs_pipeline.instance.run_queue import StreamRunCoordinator as StreamRunCoordinator
