"""The numbering standard: keys to bricks, bricks to bounds. Pure."""

from ucs_pipeline.bricks.base import Bounds
from ucs_pipeline.bricks.number import NumberBricks, get_brick_bounds, get_brick_list, get_brick_name
from ucs_pipeline.bricks.text import TextBricks
from ucs_pipeline.bricks.time import TimeBricks

__all__ = [
    "Bounds",
    "NumberBricks",
    "TextBricks",
    "TimeBricks",
    "get_brick_bounds",
    "get_brick_list",
    "get_brick_name",
]
