"""`discern prompts`: one file a verb."""
