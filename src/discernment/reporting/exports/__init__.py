"""The samples of a run in forms that other tools read."""
