"""The feeds of a code location, and the errors in its files."""
