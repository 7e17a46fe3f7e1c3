"""Searching over the options of a recipe."""
