"""What a run of a feed's asset does, from the refusal of a changed numbering to a run that stays."""
