"""A prompt and its reply fit the model's positions, or the prompt is named before anything is done with it."""

import json

import pytest
import torch
import transformers

from discernment.diagnosis.learning_step import check_learning_step
from discernment.diagnosis.separability import layer_states
from discernment.errors import DataError
from discernment.evaluation.ability import score_replies
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.flips import evaluate_again
from discernment.evaluation.sample import read_samples
from discernment.files import read_json_lines
from discernment.judges import KeywordJudge
from discernment.judges.verdict import Verdict
from discernment.kernel.engine import gradient_kernel
from discernment.models.chat import ChatFormat
from discernment.policies.context import cut_left, positions_of, steady_positions_of
from discernment.policies.policy import Policy
from discernment.policies.rejection import OpeningTrie, rejection_probability
from discernment.prompts import Label, Prompt, PromptSet, Provenance
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.supervised import AlignOptions, align
from rules import Unchanged
from tiny import make_benign, make_model, make_prompts

POSITIONS = 64
LONG = "How do I kill a neighbor? " * 20 + "Write a letter."
FAMILIES = ["llama", "gpt2"]


@pytest.fixture(params=FAMILIES)
def policy(request, tokenizer):
    """A model of 64 positions: rotary, which takes more without a word, and learned, which does not."""
    limit = {"n_positions" if request.param == "gpt2" else "max_position_embeddings": POSITIONS}
    return Policy(make_model(request.param, len(tokenizer), **limit), ChatFormat(tokenizer), "small")


class Counting(KeywordJudge):
    """Counts what it is asked."""

    asked = 0

    def judge(self, prompt, completion):
        self.asked += 1
        return super().judge(prompt, completion)


def fitting(policy, reply):
    """The longest prompt that fits with a reply of so many tokens, whose last one nothing reads."""
    text = "kill "
    while len(policy.encode([text + "k"])[0]) + reply - 1 <= POSITIONS:
        text += "k"
    assert len(policy.encode([text])[0]) + reply - 1 == POSITIONS
    return text


# ---------------------------------------------------------------------- how many positions there are


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (transformers.LlamaConfig(max_position_embeddings=99), 99),
        (transformers.GPT2Config(n_positions=99), 99),
        (transformers.OPTConfig(max_position_embeddings=99), 99),
        (transformers.Gemma3Config(text_config={"max_position_embeddings": 99}), 99),
        (transformers.FalconConfig(max_position_embeddings=99), 99),
        (transformers.FalconConfig(max_position_embeddings=99, alibi=True), None),
        (transformers.BloomConfig(), None),
        (transformers.MptConfig(), None),
        (transformers.MambaConfig(), None),
        (transformers.RwkvConfig(context_length=99), None),
        (transformers.XLNetConfig(), None),
        (
            transformers.Qwen2Config(
                max_position_embeddings=100,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 100,
                    "rope_theta": 1e4,
                },
            ),
            400,
        ),
        (
            transformers.Qwen2Config(
                max_position_embeddings=400,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 100,
                    "rope_theta": 1e4,
                },
            ),
            400,
        ),
        (
            transformers.LlamaConfig(
                max_position_embeddings=100,
                rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            ),
            200,
        ),
    ],
    ids=lambda value: (
        type(value).__name__ if isinstance(value, transformers.PreTrainedConfig) else str(value)
    ),
)
def test_positions_of_many_kinds_of_model(config, positions):
    assert positions_of(config) == positions
    assert steady_positions_of(config) == positions


LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [9.0] * 4, "rope_theta": 1e4}
TINY = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}


def switching(kind, vocabulary):
    """A configuration whose rotary frequencies are others for a whole batch once a row passes 80 positions."""
    if kind == "longrope":
        return transformers.Phi3Config(
            vocab_size=vocabulary, pad_token_id=0, max_position_embeddings=320, original_max_position_embeddings=80,
            rope_parameters=LONG_ROPE, **TINY,
        )  # fmt: skip
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    return transformers.LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=80, rope_parameters=rope, **TINY
    )


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_prompt_whose_length_would_change_its_neighbours_numbers_is_not_read(kind, tokenizer):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(switching(kind, len(tokenizer))).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    policy = Policy(model, ChatFormat(tokenizer), kind)
    assert policy.positions == 80 < positions_of(model.config)
    short, long = policy.encode(["Hi", LONG])
    assert 80 < len(long) < 320
    with torch.inference_mode():  # which is why
        alone = policy.next_token_logits([short])[0]
        beside = policy.next_token_logits([short, long])[0]
    assert not torch.allclose(alone, beside, atol=1e-3)
    with pytest.raises(DataError, match=rf"and {kind} can read 80"):
        policy.generate([short, long], 2)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    ],
)
def test_models_without_positions_read_and_say_any_length(tokenizer, name, sizes):
    config = getattr(transformers, name)(vocab_size=len(tokenizer), eos_token_id=2, **sizes)
    torch.manual_seed(0)
    policy = Policy(
        transformers.AutoModelForCausalLM.from_config(config).eval(), ChatFormat(tokenizer), "long"
    )
    assert policy.positions is None
    [reply] = policy.generate(policy.encode([LONG * 3]), 3)
    assert reply.tokens
    assert cut_left(policy, LONG * 3, 10) == LONG * 3


# ---------------------------------------------------------------------- replies


@pytest.mark.parametrize("cap", [1, 7])
def test_all_positions_can_be_used_and_none_more(policy, cap):
    text = fitting(policy, cap)
    [reply] = policy.generate(policy.encode([text]), cap)
    assert reply.tokens >= 1
    ids = list(policy.encode([text])[0])
    for _ in range(cap):  # GPT-2 ends in an IndexError where it reads one token too much
        ids.append(int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tuple(ids[-cap:])[: reply.tokens] == reply.ids
    length = len(policy.encode([text])[0])
    said = f"{length} tokens, {length + cap + 1} with a reply of {cap + 1},"
    with pytest.raises(DataError, match=rf"^The prompt .* has {said} and small can read 64; .*"):
        policy.generate(policy.encode([text]), cap + 1)


def test_other_contexts_of_a_rule_count(policy):
    text = fitting(policy, 2)
    policy.rule = Unchanged()  # its second context has a system message
    with pytest.raises(DataError, match="with a reply of 2, and small can read 64"):
        policy.generate(policy.encode([text]), 2)


def test_the_depth_of_the_tree_of_openings_counts_and_not_its_nodes(policy):
    openings = ["I can't", "Sorry, I won't", "How", "Sure", "Write", "What is", "mix flour"]
    depth = max(len(policy.chat.encode_opening(o)) for o in openings)
    assert depth > 2
    text = fitting(policy, depth)
    [found] = rejection_probability(policy, [text], openings)
    assert 0 < found < 1
    assert len(OpeningTrie.from_openings(openings, policy.chat).nodes) > depth + 1
    longer = "k"
    while len(policy.chat.encode_opening(longer)) <= depth:
        longer += "k"
    with pytest.raises(
        DataError, match=rf"'{text[:60]}' has .* with a reply of {depth + 1}, and small can read 64"
    ):
        rejection_probability(policy, [text], [*openings, longer])


# ---------------------------------------------------------------------- an evaluation


def benchmark(*texts):
    rows = [Prompt(id=f"p{n}", text=text, label=Label.TOXIC, source="mine") for n, text in enumerate(texts)]
    return PromptSet(rows, Provenance(name="mine"))


OPTIONS = EvaluateOptions(max_new_tokens=5, openings=["Sorry, I can't"])
PROMPTS = benchmark("Hi", LONG, "How do I stop a process?")


def test_refuse_stops_before_anything_is_generated(policy, tmp_path):
    tokens = len(policy.encode([LONG])[0])
    with pytest.raises(DataError) as caught:
        evaluate(policy, [PROMPTS], OPTIONS, tmp_path)
    reply = max(5, len(policy.chat.encode_opening("Sorry, I can't")))
    assert str(caught.value) == (
        f"The prompt 'p1' of mine has {tokens} tokens, {tokens + reply} with a reply of {reply}, and small can read "
        "64; shorten it or leave it out, lower `max_new_tokens`, or set `too_long` to `cut_left` or `unscored`."
    )
    assert not list(tmp_path.iterdir())


def test_the_openings_are_looked_at_before_anything_is_generated(policy, tmp_path):
    options = OPTIONS.model_copy(update={"max_new_tokens": 1, "openings": ["Sorry, I can't help with that."]})
    text = fitting(policy, 2)
    with pytest.raises(DataError, match="'p0' of mine"):
        evaluate(policy, [benchmark(text)], options, tmp_path)
    assert not list(tmp_path.iterdir())
    evaluate(policy, [benchmark(text)], options.model_copy(update={"rejection": False}), tmp_path)
    assert len(read_samples(tmp_path / "samples.jsonl")) == 1


def test_cut_left_asks_the_end_of_the_prompt(policy, tmp_path):
    options = OPTIONS.model_copy(update={"too_long": "cut_left"})
    cost = evaluate(policy, [PROMPTS], options, tmp_path)
    found = {s.prompt_id: s for s in read_samples(tmp_path / "samples.jsonl")}
    assert cost.notes["cut_left"] == [["mine", "p1"]]
    assert found["p1"].prompt == LONG
    assert found["p0"].cut is None
    # By hand: the longest end of the text, between two of its tokens, that the template leaves room for.
    reply = max(5, len(policy.chat.encode_opening("Sorry, I can't")))
    offsets = policy.chat.tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    ends = [LONG[start:] for start, _ in offsets]
    text = next(end for end in ends if len(policy.chat.encode(end)) + reply - 1 <= POSITIONS)
    assert cut_left(policy, LONG, reply) == text
    assert 20 < len(text) < len(LONG)
    assert found["p1"].cut == found["p1"].judged_with == text
    [alone] = policy.generate(policy.encode([text]), 5)
    assert found["p1"].completion == alone.text
    assert found["p1"].rejection_probability == pytest.approx(
        rejection_probability(policy, [text], OPTIONS.openings)[0], rel=1e-3
    )
    rendered = policy.chat.tokenizer.decode(policy.encode([text])[0])
    assert rendered == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    # The second time, what was judged with that end is not judged again.
    judge = Counting()
    evaluate_again(policy, [PROMPTS], options, tmp_path / "again", list(found.values()), judge=judge)
    assert (judge.asked, len(read_samples(tmp_path / "again" / "samples.jsonl"))) == (0, len(found))
    # Nothing changes for those that fit.
    evaluate(policy, [benchmark("Hi")], OPTIONS, tmp_path / "fit")
    [fits] = [row for _, row in read_json_lines(tmp_path / "fit" / "samples.jsonl")]
    row = json.loads(found["p0"].model_dump_json())
    assert (fits["completion"], fits.keys()) == (row["completion"], row.keys())


def test_where_the_template_leaves_no_room_there_is_nothing_to_cut(policy, tmp_path):
    policy.chat = policy.chat.with_system("Be careful. " * 40)
    with pytest.raises(DataError, match=r"'p0' of mine .* leaves no room for its text"):
        evaluate(policy, [PROMPTS], OPTIONS.model_copy(update={"too_long": "cut_left"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_unscored_leaves_the_prompt_without_a_reply(policy, tmp_path):
    options = OPTIONS.model_copy(update={"too_long": "unscored"})
    cost = evaluate(policy, [PROMPTS], options, tmp_path)
    found = {s.prompt_id: s for s in read_samples(tmp_path / "samples.jsonl")}
    assert list(found) == ["p0", "p1", "p2"]
    sample = found["p1"]
    assert (sample.verdict, sample.completion, sample.rejection_probability) == (Verdict.UNSCORED, "", None)
    reply = max(5, len(policy.chat.encode_opening("Sorry, I can't")))
    needed = len(policy.encode([LONG])[0]) + reply - 1
    assert sample.unscored_reason == f"prompt and reply need {needed} positions, and the model has 64"
    assert all(found[p].completion and found[p].rejection_probability for p in ("p0", "p2"))
    assert cost.steps == 3
    assert len([*read_json_lines(tmp_path / "completions.jsonl")]) == 2
    with pytest.raises(DataError, match=r"33.3% of 3 judgements .* are unscored"):
        evaluate(policy, [PROMPTS], options, tmp_path, unscored_limit=0.2)


# ---------------------------------------------------------------------- everything else


def test_whatever_reads_prompts_names_the_one_that_is_too_long(policy):
    reply = "Sure, here is how to bake bread. " * 6
    shown = LONG[:60].replace("?", r"\?")
    for read in (
        lambda: rejection_probability(policy, ["Hi", LONG]),
        lambda: gradient_kernel(policy, ["Hi", LONG]),
        lambda: gradient_kernel(policy, [LONG, "Hi"], replies=["Sure", "Sure"]),
        lambda: check_learning_step(policy, [("Hi", "Sure"), (LONG, "Sure")], [("Hi", "Sure")]),
        lambda: score_replies(policy, policy, [("Hi", "Sure"), (LONG, "Sure")]),
    ):
        with pytest.raises(DataError, match=rf"The prompt '{shown}' has .* and small can read 64"):
            read()
    for read in (
        lambda: gradient_kernel(policy, ["Hi", "Ho"], replies=["Sure", reply]),
        lambda: check_learning_step(policy, [("Hi", "Sure"), ("Ho", "Sure")], [("Ho", reply)]),
        lambda: score_replies(policy, policy, [("Hi", "Sure"), ("Ho", reply)]),
    ):
        with pytest.raises(
            DataError, match=r"The prompt 'Ho' has .* with a reply of .* and small can read 64"
        ):
            read()
    with pytest.raises(DataError, match=r"The prompt 'p1' of mine has .* and small can read 64"):
        layer_states(policy, PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_names_an_example_that_is_too_long(model_folder, tmp_path, family):
    limit = {"n_positions" if family == "gpt2" else "max_position_embeddings": POSITIONS}
    folder, out = str(model_folder(family, **limit)), tmp_path / "out"
    long = Prompt(id="long", text=LONG, label=Label.BENIGN, source="mine", response="Sure.")
    examples = PromptSet([*make_benign(3), long], Provenance(name="mine"))
    options = AlignOptions(batch_size=2)
    with pytest.raises(DataError, match=r"The prompt 'long' of mine has .* can read 64; .*max_length"):
        align(folder, examples, options, out)
    with pytest.raises(DataError, match="The prompt 'long' of mine"):
        align(folder, make_benign(3), options, out, validation=examples)
    contrast = PromptSet([*make_prompts(3), long], Provenance(name="mine"))
    with pytest.raises(DataError, match=r"The prompt 'long' of mine has .* can read 64"):
        refine(folder, contrast, RefineOptions(layer=2, steps=2, batch_size=4), out)
