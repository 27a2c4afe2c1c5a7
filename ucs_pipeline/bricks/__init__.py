"""The numbering standard: keys to bricks, bricks to bounds. Pure."""
