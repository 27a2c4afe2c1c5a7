"""Connections to Redis, and the meaning of its errors."""
