"""Prompt sets: reading, selecting, checking; the catalogue of public sets; the built-in starter set."""

from discernment.prompts.catalogue import CatalogueEntry, catalogue, load_catalogue_set
from discernment.prompts.check import CheckReport, check_sets
from discernment.prompts.columns import Columns
from discernment.prompts.conversation import Asked, Conversation, Turn
from discernment.prompts.duplicates import Duplicate, Likeness, find_duplicates
from discernment.prompts.leaks import LabelLeaks, LeakScore, label_leaks
from discernment.prompts.prompt import HARMLESS, Label, Prompt, Split
from discernment.prompts.prompt_set import PromptSet, Provenance
from discernment.prompts.sources import PromptSource, load_source, load_sources
from discernment.prompts.split import SplitLeak, assign_splits, split_leaks
from discernment.prompts.starter import STARTER_SETS, load_starter
from discernment.prompts.suites import load_suite, suites

__all__ = [
    "HARMLESS",
    "STARTER_SETS",
    "Asked",
    "CatalogueEntry",
    "CheckReport",
    "Columns",
    "Conversation",
    "Duplicate",
    "Label",
    "LabelLeaks",
    "LeakScore",
    "Likeness",
    "Prompt",
    "PromptSet",
    "PromptSource",
    "Provenance",
    "Split",
    "SplitLeak",
    "Turn",
    "assign_splits",
    "catalogue",
    "check_sets",
    "find_duplicates",
    "label_leaks",
    "load_catalogue_set",
    "load_source",
    "load_sources",
    "load_starter",
    "load_suite",
    "split_leaks",
    "suites",
]
