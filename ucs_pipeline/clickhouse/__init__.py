"""The table, read as ordered Arrow batches."""
