"""The tables of the terminal, the pages and the CSV files."""
