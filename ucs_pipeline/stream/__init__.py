"""One feed's stream in Redis, and the keys next to it."""
