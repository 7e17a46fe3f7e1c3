"""`discern judges`: one file a verb."""
