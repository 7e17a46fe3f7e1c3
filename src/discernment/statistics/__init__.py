"""Intervals, tests and comparisons: numbers in, numbers out; knows no model and no file."""
