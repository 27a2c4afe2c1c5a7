"""From table to stream."""
