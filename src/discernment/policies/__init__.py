"""Policies: a model with its tokenizer, chat format and at most one rule, and all that makes it speak."""
