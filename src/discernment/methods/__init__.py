"""Named ways to get a policy from a base model; one file a method, read top to bottom."""
