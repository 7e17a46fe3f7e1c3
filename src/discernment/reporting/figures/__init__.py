"""The figures of the pages, each a list of small panels that stand side by side or, on a phone, one under another."""
