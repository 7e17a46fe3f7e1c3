"""The report of a run, and the table for the terminal: reads a run's files and nothing else."""

from discernment.reporting.pages.run import write_report
from discernment.reporting.tables.methods import results_table

__all__ = ["results_table", "write_report"]
