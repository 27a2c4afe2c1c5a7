"""One feed's stream in Redis, and what is kept in the keys next to it."""
