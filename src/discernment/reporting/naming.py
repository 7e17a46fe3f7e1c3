"""What labels and benchmarks are called in tables, captions and figures."""

from discernment.evaluation.groups import POOLED
from discernment.prompts import Label

label_in_words: dict[Label, str] = {
    Label.TOXIC: "toxic",
    Label.SEEMINGLY_TOXIC: "seemingly toxic",
    Label.BENIGN: "benign",
}


def benchmark_in_words(benchmark: str) -> str:
    """The benchmark's name, or words for all of them together."""
    return "all benchmarks" if benchmark == POOLED else benchmark


def pair_in_words(toxic: str, harmless: str, label: Label) -> str:
    """Toxic prompts of one benchmark and the others of one, such as `XSTest: benign against toxic`."""
    words = label_in_words[label]
    first = "All benchmarks" if harmless == POOLED else harmless
    if toxic == harmless:
        return f"{first}: {words} against toxic"
    return f"{first} ({words}) against {benchmark_in_words(toxic)} (toxic)"


def pair_of_labels(one: Label, other: Label) -> str:
    """Two labels in words: `toxic with seemingly toxic`."""
    return f"{label_in_words[one]} with {label_in_words[other]}"
