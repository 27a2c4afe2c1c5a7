"""A feed's asset checks."""
