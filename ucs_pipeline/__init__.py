"""Moves a ClickHouse table into a Redis stream, brick by brick, exactly once, in order, under Dagster."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ucs_pipeline.orchestration.build import build_defs
    from ucs_pipeline.orchestration.component.brick_feed import BrickFeed
    from ucs_pipeline.orchestration.resources import ClickHouseResource, RedisResource
    from ucs_pipeline.project.publish import publish
    from ucs_pipeline.project.readers import Reader, read_brick, read_entries
    from ucs_pipeline.redis.connection import redis_url

__all__ = [
    "BrickFeed",
    "ClickHouseResource",
    "Reader",
    "RedisResource",
    "__version__",
    "build_defs",
    "publish",
    "read_brick",
    "read_entries",
    "redis_url",
]
__version__ = "0.1.0"

_HOME = {
    "BrickFeed": "ucs_pipeline.orchestration.component.brick_feed",
    "ClickHouseResource": "ucs_pipeline.orchestration.resources",
    "Reader": "ucs_pipeline.project.readers",
    "RedisResource": "ucs_pipeline.orchestration.resources",
    "build_defs": "ucs_pipeline.orchestration.build",
    "publish": "ucs_pipeline.project.publish",
    "read_brick": "ucs_pipeline.project.readers",
    "read_entries": "ucs_pipeline.project.readers",
    "redis_url": "ucs_pipeline.redis.connection",
}


def __getattr__(name: str) -> Any:
    # Importing Dagster takes seconds; `ucs_pipeline.bricks` alone should not.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Dagster imports what is listed here to find components, in every process that loads feeds. So readers, their
    # clients and `publish`, which loads the feeds, are left out.
    return ["BrickFeed", "__version__", "build_defs"]
