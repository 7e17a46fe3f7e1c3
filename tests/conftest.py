"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As the command does it before the libraries are imported.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ["DISCERNMENT_DTYPE"] = "float32"  # the same on every machine; tests of other precisions name them

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from tiny import CHAT_TEMPLATE, CORPUS, FAMILIES, make_model, save_model

if TYPE_CHECKING:
    from reduced import Field

torch.set_num_threads(1)

# The default run tries the same examples everywhere and has no deadlines, which a busy machine would miss;
# `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile(
    "explore", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is `thinned(n)`, every n-th case is in the default run; the others are slow."""
    seen: Counter[str] = Counter()
    for item in items:
        thinned, name = item.get_closest_marker("thinned"), item.nodeid.partition("[")[0]
        if thinned and seen[name] % thinned.args[0]:
            item.add_marker("slow")
        seen[name] += 1


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template, trained on a few sentences."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<s>"]
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return str(request.param)


@pytest.fixture
def tiny_policy(tokenizer: PreTrainedTokenizerFast) -> Policy:
    """A policy with a tiny random Llama."""
    return Policy(make_model("llama", len(tokenizer)), ChatFormat(tokenizer), "tiny")


@pytest.fixture
def model_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Saves a tiny model with its tokenizer and gives the folder."""

    def save(family: str = "llama", **changes: object) -> Path:
        return save_model(tmp_path / f"model-{family}", tokenizer, family, **changes)

    return save


@pytest.fixture(scope="session")
def field(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Field:
    """The recipe of all methods in a reduced form."""
    from reduced import make_field

    return make_field(tmp_path_factory.mktemp("field"), tokenizer)


@pytest.fixture(scope="session")
def field_run(tmp_path_factory: pytest.TempPathFactory, field: Field) -> Path:
    """The directory of its run, made once by the command for all tests that look at it."""
    from typer.testing import CliRunner

    from discernment.cli.main import app

    directory = tmp_path_factory.mktemp("runs") / "field"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISCERNMENT_DATA", str(field.data))
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")  # which the command sets
        command = ["run", str(field.file), "--out", str(directory)]
        CliRunner().invoke(app, command, catch_exceptions=False)
    return directory


@pytest.fixture(scope="session", autouse=True)
def _packages_are_not_listed() -> Iterator[None]:
    """lm-evaluation-harness starts `pip list` at each call, a second each, for notes that nobody reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.collect_env.get_pip_packages", lambda run, patterns=None: ("pip", ""))
        yield


@pytest.fixture(scope="module", autouse=True)
def _imports_are_not_garbage() -> None:
    """Stages and statsmodels collect garbage again and again; what was imported so far is not looked at each time."""
    gc.collect()
    gc.freeze()
