"""Rows as stream entries, as bytes of the Redis protocol. Pure."""
