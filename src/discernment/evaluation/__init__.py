"""Generation, judges, metrics and statistics."""
