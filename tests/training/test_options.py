"""Orders that a resumed stage sees again, checkpoints that were written whole, and a history without double rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from discernment.errors import TrainingError
from discernment.files import append_json_lines, read_json_lines
from discernment.training.batches import EpochSampler
from discernment.training.checkpoints import latest_checkpoint
from discernment.training.history import HistoryCallback, StopWithoutImprovement
from discernment.training.options import OptimizerOptions, steps_of, trainer_arguments


def shuffled(length):
    return lambda generator: torch.randperm(length, generator=generator).tolist()


@given(st.integers(1, 30), st.integers(0, 50), st.integers(0, 20))
@settings(deadline=None)
def test_an_order_depends_on_seed_and_epoch_alone(length, seed, epoch):
    first, resumed = (EpochSampler(shuffled(length), length, seed) for _ in range(2))
    for past in range(epoch + 1):
        first.set_epoch(past)
        order = list(first)
    torch.rand(7)
    resumed.set_epoch(epoch)
    assert list(resumed) == order
    assert sorted(order) == list(range(length))
    assert len(resumed) == length


def test_no_two_epochs_of_any_seeds_are_the_same():
    orders = set()
    for seed in range(5):
        sampler = EpochSampler(shuffled(50), 50, seed)
        for epoch in range(5):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 25


def checkpoint(out, step, *, weights="model.safetensors", missing=()):
    folder = out / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, folder / weights)
    torch.save({"state": {0: torch.ones(9)}}, folder / "optimizer.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    for name in missing:
        (folder / name).unlink()
    return folder


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10, weights="adapter_model.safetensors")
    assert latest_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("missing", ["trainer_state.json", "optimizer.pt", "model.safetensors"])
def test_a_checkpoint_that_lacks_a_part_is_removed(tmp_path, missing):
    whole, torn = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, missing=[missing])
    assert latest_checkpoint(tmp_path) == whole
    assert not torn.exists()


DAMAGES = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "other bytes in the middle": lambda content: content[:200] + bytes(len(content) - 400) + content[-200:],
    "other JSON": lambda content: b"[1]",
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("optimizer.pt", "rng_state.pth") for damage in DAMAGES),
        *((name, "half") for name in ("model.safetensors", "trainer_state.json")),
        ("trainer_state.json", "other JSON"),
    ],
)
def test_a_checkpoint_with_a_damaged_file_is_removed(tmp_path, name, damage):
    whole, torn = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    (torn / name).write_bytes(DAMAGES[damage]((torn / name).read_bytes()))
    assert latest_checkpoint(tmp_path) == whole
    assert not torn.exists()


@pytest.fixture
def callback(tmp_path):
    history = HistoryCallback(tmp_path / "history.jsonl", {"loss": "loss", "eval_loss": "validation_loss"})
    arguments, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerControl()

    def call(event, step, **kwargs):
        getattr(history, event)(arguments, TrainerState(global_step=step), control, **kwargs)
        return [row for _, row in read_json_lines(history.path)]

    return call


def test_history_goes_on_from_the_checkpoint(callback, tmp_path):
    assert callback("on_train_begin", 0) == []
    for step in (1, 2, 3):
        callback("on_log", step, logs={"loss": step / 2, "grad_norm": 9.0})
    callback("on_log", 3, logs={"eval_loss": 0.7, "eval_runtime": 1.0})
    callback("on_log", 3, logs={"train_runtime": 1.0})
    with (tmp_path / "history.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')
    assert callback("on_train_begin", 2) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    assert callback("on_log", 3, logs={"eval_loss": 0.6})[-1] == {"step": 3, "validation_loss": 0.6}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_stage(callback, tmp_path, value):
    append_json_lines(tmp_path / "history.jsonl", [])
    with pytest.raises(
        TrainingError, match=rf"The validation_loss is {value} at step 5; lower the learning rate"
    ):
        callback("on_log", 5, logs={"eval_loss": value})
    assert callback("on_log", 6, logs={"grad_norm": value}) == []


def test_options_reach_the_trainer(tmp_path, monkeypatch):
    monkeypatch.delenv("DISCERNMENT_REPORT_TO", raising=False)
    options = OptimizerOptions(
        learning_rate=3e-4, batch_size=6, gradient_accumulation=2, warmup=0.25, schedule="linear", seed=9
    )
    with pytest.raises(
        TrainingError, match="set CUDA_VISIBLE_DEVICES=1 and `device: cuda` instead of `device: cuda:1`"
    ):
        trainer_arguments(options, tmp_path, 40, torch.device("cuda:1"), mixed=False)
    given = TrainingArguments(**trainer_arguments(options, tmp_path, 40, torch.device("cpu"), mixed=False))
    assert (given.learning_rate, given.per_device_train_batch_size) == (3e-4, 6)
    assert (given.gradient_accumulation_steps, given.get_warmup_steps(40)) == (2, 10)
    assert (given.lr_scheduler_type, given.seed, given.data_seed) == ("linear", 9, 9)
    assert (given.save_strategy, given.report_to) == ("no", [])
    often = options.model_copy(update={"checkpoint_every": 7})
    given = TrainingArguments(**trainer_arguments(often, tmp_path, 40, torch.device("cpu"), mixed=False))
    assert (given.save_strategy, given.save_steps) == ("steps", 7)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "steps"),
    [(9, 8, 1, 4.0, 8), (256, 8, 1, 2.0, 64), (17, 4, 2, 3.0, 9), (3, 8, 4, 0.5, 1), (10, 4, 1, 1.5, 5)],
)
def test_steps_are_those_that_the_trainer_takes(rows, batch, accumulation, epochs, steps, tmp_path):
    options = OptimizerOptions(learning_rate=1.0, batch_size=batch, gradient_accumulation=accumulation)
    assert steps_of(options, rows, epochs) == steps
    given = trainer_arguments(options, tmp_path, steps, torch.device("cpu"), mixed=False)
    trainer = Trainer(
        torch.nn.Linear(1, 1), TrainingArguments(**given, num_train_epochs=epochs), train_dataset=range(rows)
    )
    assert trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1] == steps


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0}, {"batch_size": 0}, {"warmup": 1}, {"lora": {"rank": 0}}]
)
def test_options_out_of_range(wrong):
    with pytest.raises(ValidationError):
        OptimizerOptions(**{"learning_rate": 1, "batch_size": 1, **wrong})


def looks(*values, metric="eval_x"):
    """A trainer's state after looks at these values, one every ten steps from the start on."""
    state = TrainerState()
    state.log_history = [{"step": 10 * n, metric: value} for n, value in enumerate(values)]
    return state


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([0.9], False),  # the start is no candidate
        ([0.9, 0.5, 0.6], False),
        ([0.9, 0.5, 0.6, 0.5], False),
        ([0.9, 0.5, 0.6, 0.5, 0.6], True),  # as good as the best is no improvement
        ([0.9, 0.7, 0.6, 0.5], True),
        ([0.9, 0.5, 0.4, 0.6], False),
    ],
)
def test_stopping_is_decided_from_the_log_alone(values, over):
    stop = StopWithoutImprovement("eval_x", greater_is_better=True, patience=2)
    down = StopWithoutImprovement("eval_x", greater_is_better=False, patience=2)
    for callback, seen in ((stop, values), (down, [-v for v in values])):
        evaluated, resumed = TrainerControl(), TrainerControl()
        callback.on_evaluate(None, looks(*seen), evaluated)
        callback.on_train_begin(None, looks(*seen), resumed)
        assert evaluated.should_training_stop is over
        assert resumed.should_training_stop is over
