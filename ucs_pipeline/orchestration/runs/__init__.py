"""The run of a feed's asset: the refusal of a changed numbering, publishing, and `tail: live`."""
