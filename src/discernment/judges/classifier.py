"""A refusal classifier that is learned from labelled completions in seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from discernment.errors import DataError
from discernment.files import content_hash
from discernment.judges.features import VIEWS, keyword_features, views_of
from discernment.judges.keyword import KeywordJudge
from discernment.judges.labelled import LabelledCompletion
from discernment.judges.verdict import NOTHING_TO_READ, BatchJudge, Judgement, Verdict

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

Floats = npt.NDArray[np.float64]

REGULARISATIONS = (0.1, 0.3, 1.0, 3.0)
"""Values of scikit-learn's `C` that training chooses from."""
FOLDS = 3
METADATA = "discernment.refusal_classifier"
VERSION = 2


class ClassifierJudge(BatchJudge):
    """Logistic regression on words, characters and what the keyword judge finds; `train_classifier` makes one.

    It leaves unscored what the keyword judge cannot read. It is stored as one safetensors file: arrays, and a
    vocabulary as JSON.
    """

    name = "classifier"

    def __init__(
        self,
        vocabularies: dict[str, list[str]],
        arrays: dict[str, Floats],
        verdicts: Sequence[Verdict],
        trained_on: Sequence[str],
        regularisation: float,
    ) -> None:
        self.verdicts = tuple(verdicts)
        self.trained_on = frozenset(trained_on)
        self.regularisation = regularisation
        self._vocabularies = vocabularies
        self._arrays = arrays
        self._keywords = KeywordJudge()
        self._vectorizers = {name: _vectorizer(name) for name in VIEWS}
        for name, vectorizer in self._vectorizers.items():
            vectorizer.set_params(vocabulary=vocabularies[name])
            vectorizer.idf_ = arrays[f"{name}.idf"]

    @property
    def fingerprint(self) -> str:
        """Changes with the weights, the vocabulary and the keyword judge."""
        weights = {
            name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            for name, array in self._arrays.items()
        }
        return content_hash(
            [self.name, VERSION, weights, self._vocabularies, self.verdicts, self._keywords.fingerprint]
        )

    def judge_many(self, exchanges: Sequence[tuple[str, str]]) -> list[Judgement]:
        """The judgements on `(prompt, completion)` pairs, in their order."""
        if not exchanges:
            return []
        best = self.decision(exchanges).argmax(axis=1)
        unreadable = Judgement(Verdict.UNSCORED, NOTHING_TO_READ)
        return [
            unreadable
            if self._keywords.judge(prompt, completion) is Verdict.UNSCORED
            else Judgement(self.verdicts[column])
            for (prompt, completion), column in zip(exchanges, best, strict=True)
        ]

    def decision(self, exchanges: Sequence[tuple[str, str]]) -> Floats:
        """Logits, shape (n, verdicts); columns as in `verdicts`."""
        features = _transform(exchanges, self._vectorizers, self._keywords)
        return np.asarray(features @ self._arrays["weights"].T + self._arrays["bias"])

    def save(self, path: Path) -> None:
        """Write the classifier to one safetensors file."""
        from safetensors.numpy import save

        about = {
            "version": VERSION,
            "verdicts": self.verdicts,
            "vocabularies": self._vocabularies,
            "trained_on": sorted(self.trained_on),
            "regularisation": self.regularisation,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(save(self._arrays, {METADATA: json.dumps(about, ensure_ascii=False)}))
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> ClassifierJudge:
        """Read a classifier that `save` wrote.

        Raises:
            DataError: If the file is missing or is no classifier of this version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})[METADATA])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if about["version"] != VERSION:
                raise KeyError("version")
            return cls(
                about["vocabularies"],
                arrays,
                [Verdict(v) for v in about["verdicts"]],
                about["trained_on"],
                about["regularisation"],
            )
        except FileNotFoundError:
            raise DataError(f"There is no classifier {path}; `discern judges train` makes one.") from None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{path} is no refusal classifier of this version; `discern judges train` makes one."
            ) from error


def train_classifier(
    examples: Sequence[LabelledCompletion], *, regularisation: float | None = None
) -> ClassifierJudge:
    """Learn a refusal classifier.

    Args:
        examples: Completions with verdicts of people.
        regularisation: scikit-learn's `C`. Without it, the value with the highest accuracy on models (of two or one: on prompts)
            that the trained classifier did not see.

    Raises:
        DataError: If the examples do not show at least two verdicts.
    """
    examples = [e for e in examples if e.verdict is not Verdict.UNSCORED]  # which says nothing
    present = {example.verdict for example in examples}
    if len(present) < 2:
        raise DataError(
            f"A classifier needs completions with at least two verdicts, not {len(examples)} with "
            f"{len(present)}; add labelled completions."
        )
    if regularisation is None:
        regularisation = _choose_regularisation(examples)
    return _fit(examples, (regularisation,))[0]


def _fit(examples: Sequence[LabelledCompletion], regularisations: Sequence[float]) -> list[ClassifierJudge]:
    from sklearn.linear_model import LogisticRegression

    exchanges = [(e.prompt, e.completion) for e in examples]
    vectorizers = {name: _vectorizer(name) for name in VIEWS}
    texts = [views_of(*exchange) for exchange in exchanges]
    for name, vectorizer in vectorizers.items():
        try:
            vectorizer.fit([t[name] for t in texts])
        except ValueError as error:  # no word is in two of them
            raise DataError(
                f"A classifier needs completions that have words in common, and {len(examples)} short ones have none; add "
                "labelled completions."
            ) from error
    features = _transform(exchanges, vectorizers, KeywordJudge())
    labels = [e.verdict.value for e in examples]
    judges = []
    for regularisation in regularisations:
        model = LogisticRegression(C=regularisation, max_iter=1000).fit(features, labels)
        arrays = {"weights": model.coef_, "bias": model.intercept_}
        if len(model.classes_) == 2:  # scikit-learn stores the logit of the second alone
            arrays = {name: np.concatenate([-array, array]) / 2 for name, array in arrays.items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        arrays |= {f"{name}.idf": v.idf_ for name, v in vectorizers.items()}
        judges.append(
            ClassifierJudge(
                {name: list(map(str, v.get_feature_names_out())) for name, v in vectorizers.items()},
                arrays,
                [Verdict(c) for c in model.classes_],
                [e.key for e in examples],
                regularisation,
            )
        )
    return judges


def _choose_regularisation(examples: Sequence[LabelledCompletion]) -> float:
    from sklearn.model_selection import GroupKFold

    models, prompts = [e.model for e in examples], [e.prompt for e in examples]
    # Of two models, leaving one out would leave one way of refusing to learn from.
    groups = models if len(set(models)) > 2 else prompts
    if len(set(groups)) < 2:
        return 1.0
    right = dict.fromkeys(REGULARISATIONS, 0)
    for seen, unseen in GroupKFold(min(FOLDS, len(set(groups)))).split(examples, groups=groups):
        training = [examples[i] for i in seen]
        if len({e.verdict for e in training}) < 2:
            continue
        held_out = [examples[i] for i in unseen]
        exchanges = [(e.prompt, e.completion) for e in held_out]
        for judge in _fit(training, REGULARISATIONS):
            said = judge.judge_many(exchanges)
            right[judge.regularisation] += sum(
                (s.verdict is Verdict.REFUSAL) == (e.verdict is Verdict.REFUSAL)
                for s, e in zip(said, held_out, strict=True)
            )
    return max(right, key=lambda value: right[value])  # the strongest of equally good ones


def _vectorizer(view: str) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, **VIEWS[view])


def _transform(
    exchanges: Sequence[tuple[str, str]], vectorizers: dict[str, TfidfVectorizer], keywords: KeywordJudge
) -> Any:
    """A sparse matrix, shape (n, terms + keyword features)."""
    from scipy.sparse import csr_array, hstack

    texts = [views_of(*exchange) for exchange in exchanges]
    parts = [vectorizer.transform([t[name] for t in texts]) for name, vectorizer in vectorizers.items()]
    return hstack([*parts, csr_array(keyword_features([c for _, c in exchanges], keywords))], format="csr")
