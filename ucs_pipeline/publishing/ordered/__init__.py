"""Publishing of an ordered feed: the entry id carries the position."""
