"""The first recipe for a model and prompts that nobody has written one for: what there is, what follows, and why."""
