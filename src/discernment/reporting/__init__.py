"""The report of a run, and the table for the terminal: reads a run's files and nothing else."""
