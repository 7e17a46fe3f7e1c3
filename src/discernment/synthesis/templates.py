"""What the models are asked. The published pipeline's steps and constraints, in words of our own."""

from collections.abc import Mapping

from discernment.files import content_hash, packaged_yaml

QUESTIONS = packaged_yaml("discernment.synthesis", "questions.yaml")
TEMPLATE_VERSION: int = QUESTIONS["version"]
CATEGORIES: Mapping[str, str] = QUESTIONS["categories"]
"""The ten categories of OR-Bench (Cui et al., ICML 2025), with meanings of our own."""
NONCE_LENGTH = 16


def nonce_for(text: str) -> str:
    """The code that fences `text`: made from a hash over it, so that the text cannot contain it."""
    return content_hash(["fence", text])[:NONCE_LENGTH]


def seed_question(category: str, count: int, number: int) -> str:
    """Ask for the `number`-th list of `count` seeds of a category."""
    return str(QUESTIONS["seeds"]).format(
        category=category, meaning=CATEGORIES[category], count=count, number=number
    )


def rewrite_question(seed: str, count: int) -> str:
    """Ask for `count` harmless requests that resemble `seed`."""
    return str(QUESTIONS["rewrites"]).format(count=count, nonce=nonce_for(seed), seed=seed)


def moderation_question(prompt: str) -> str:
    """Ask whether `prompt` is toxic."""
    categories = "\n".join(f"- {name}: {meaning}" for name, meaning in CATEGORIES.items())
    return str(QUESTIONS["moderation"]).format(nonce=nonce_for(prompt), prompt=prompt, categories=categories)
