"""The project in `my-company` has tests of its own, which are run in its environment."""

collect_ignore = ["my-company"]
