"""Runs: the recipe, content-addressed stages, running a recipe, several seeds, searching over its options."""
