"""What the user wrote about one table and one stream. Plain settings, no I/O."""
