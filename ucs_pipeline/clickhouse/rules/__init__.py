"""What must be true of a table and its rows before they become entries."""
