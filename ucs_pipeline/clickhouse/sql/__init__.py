"""The SQL that numbers, selects and orders rows. Text in, text out."""
