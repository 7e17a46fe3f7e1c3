"""Prompt sets: reading, selecting, checking; the catalogue of public sets; the built-in starter set."""

from discernment.prompts.prompt import Label, Prompt, Split
from discernment.prompts.prompt_set import Columns, PromptSet, Provenance

__all__ = ["Columns", "Label", "Prompt", "PromptSet", "Provenance", "Split"]
