"""A campaign of faults against publishing: real servers, real publisher processes, and a check after every round.

`python -m ucs_pipeline_tests.faults --faults 500 --seed 1` runs it and prints what was injected and what was found.
"""
