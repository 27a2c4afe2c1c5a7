"""Where workers find the URL of the Redis that the feeds write to."""

from ucs_pipeline.redis.connection import redis_url as redis_url
