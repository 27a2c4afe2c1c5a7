pytest_plugins = ["ucs_pipeline.testing"]
