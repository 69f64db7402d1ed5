"""The quality of generated text: what judges are told, what they say, and how much is said to be kept."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from k1.data.tokenizer import train_tokenizer
from k1.report.judges import token_stream, windows
from k1.report.quality import CONTINUATIONS, GROUP_SIZE, GenerationTest, cut_passages, quality_kept
from tests.conftest import VOCABULARIES

SNIPPET = 16


def sentences(name, count, seed):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(VOCABULARIES[name], size=12)) + "." for _ in range(count)]


def blocks_of(tokens, length=32):
    rows = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    return datasets.Dataset.from_dict({"input_ids": rows})


@pytest.fixture(scope="module")
def generation_test():
    """Judges of three domains, prompts of four tokens from each, and the tokenizer."""
    training = {name: sentences(name, 200, seed=1) for name in VOCABULARIES}
    tokenizer = train_tokenizer([text for texts in training.values() for text in texts], 400)
    tokens = {
        name: {
            "train": tokenizer.encode(" ".join(training[name])).ids,
            "test": tokenizer.encode(" ".join(sentences(name, 40, seed=2))).ids,
        }
        for name in VOCABULARIES
    }
    corpora = [
        SimpleNamespace(
            name=name, blocks={split: blocks_of(ids) for split, ids in splits.items()}, has_beginnings=False,
            tokens={split: len(ids) for split, ids in splits.items()},
        )
        for name, splits in tokens.items()
    ]  # fmt: skip
    return GenerationTest(corpora, tokenizer, prompt_tokens=4, new_tokens=SNIPPET, seed=0)


def test_windows_are_spread_from_the_first_token_to_the_last():
    tokens = np.arange(100)
    assert windows(tokens, 10, 4)[:, 0].tolist() == [0, 30, 60, 90]
    assert windows(tokens, 10, 4)[-1].tolist() == list(range(90, 100))
    assert windows(tokens[:12], 10, 4)[:, 0].tolist() == [0, 1, 2]
    assert windows(tokens[:10], 10, 4).tolist() == [list(range(10))]


def test_the_stream_is_the_tokens_of_all_blocks_and_no_more_than_asked_for():
    blocks = blocks_of(list(range(70)))
    length = len(blocks[0]["input_ids"])
    dataset = SimpleNamespace(blocks={"test": blocks}, has_beginnings=False)
    assert token_stream(dataset, "test", 70).tolist() == list(range(70))
    assert token_stream(dataset, "test", 40).tolist() == list(range(40))
    dataset.blocks["test"] = blocks.with_format("torch")
    assert token_stream(dataset, "test", 1_000).tolist() == list(range(70))
    dataset.has_beginnings = True
    assert token_stream(dataset, "test", 1_000).tolist() == [token for token in range(70) if token % length]


@pytest.mark.parametrize(
    ("tokens", "count", "prompt"), [(5_000, CONTINUATIONS, 32), (100, 5, 32), (20, 1, 10), (2, 1, 1)]
)
def test_a_short_text_gives_fewer_and_then_shorter_passages(tokens, count, prompt):
    blocks = {"test": blocks_of(list(range(tokens)))}
    dataset = SimpleNamespace(blocks=blocks, tokens={"test": tokens}, has_beginnings=False)
    cut, prompt_length = cut_passages(dataset, 32, 64)
    assert cut.shape == (count, min(96, tokens)) and prompt_length == prompt


def test_real_text_is_recognized_and_another_domain_is_not(generation_test):
    test = generation_test
    described = test.describe()
    assert described["classifier_accuracy"] > 0.99
    for index, name in enumerate(test.names):
        real, other = test.passages[index][0], test.passages[(index + 1) % 3][0]
        assert described["real_text"][name]["domain"] > 0.99
        assert test.score(index, other)["domain"].mean() < 0.01
        assert test.score(index, other)["fluency"].mean() > test.score(index, real)["fluency"].mean() + 1
        assert described["continuations"][name] == len(real) > 50
    # Groups are of neighbours.
    both = np.vstack([test.passages[index][0][:GROUP_SIZE] for index in (0, 1)])
    assert test.score(0, both)["domain"].tolist() == [1, 0]


def test_disorder_costs_fluency_and_repetition_costs_variety(generation_test):
    test = generation_test
    real = test.passages[0][0]
    shuffled = np.random.default_rng(0).permuted(real, axis=1)
    assert test.score(0, shuffled)["fluency"].mean() > 1.2 * test.score(0, real)["fluency"].mean()
    # Every continuation is the same: within itself as varied as before.
    repeated = real.copy()
    repeated[:, 4:] = real[0, 4:]
    assert test.score(0, repeated)["distinct_2"].mean() < 0.7 * test.score(0, real)["distinct_2"].mean()


def test_the_prompt_is_context_and_is_not_scored(generation_test):
    test = generation_test
    real = test.passages[0][0]
    other = real.copy()
    other[:, :4] = np.roll(real[:, :4], 1, axis=0)
    a, b = test.score(0, real), test.score(0, other)
    assert (a["domain"] == b["domain"]).all() and (a["distinct_2"] == b["distinct_2"]).all()
    expected = -np.log(test.judges.ngrams[0].probabilities(real)[:, 4:]).mean()
    # Groups may differ in size by one.
    assert a["fluency"].mean() == pytest.approx(expected, rel=1e-2)
    assert (a["fluency"] != b["fluency"]).any()


def test_kept_is_a_ratio_below_one_if_the_text_got_worse():
    own, final = np.array([0.8, 0.6, 1.0, 0.8]), np.array([0.4, 0.4, 0.6, 0.6])
    kept = quality_kept(own, final, lower_is_better=False, seed=0)
    assert (kept["own"], kept["final"], kept["kept"]) == pytest.approx((0.8, 0.5, 0.625))
    assert quality_kept(final, own, lower_is_better=True, seed=0)["kept"] == pytest.approx(0.625)
    # Where nothing was there to lose all is kept.
    nothing = quality_kept(np.zeros(3), np.array([0.0, 0.5, 0.0]), False, seed=0)
    assert nothing["kept"] == 1 and nothing["interval"] == [1, 1]


def test_the_interval_compares_the_same_prompts_at_both_times_and_has_the_width_of_the_standard_error():
    own = np.random.default_rng(0).uniform(0.1, 1, size=50)
    assert quality_kept(own, 0.9 * own, False, seed=0)["interval"] == pytest.approx([0.9, 0.9])
    low, high = quality_kept(own, np.roll(own, 1), False, seed=0)["interval"]
    assert low < 0.9 and high > 1.1
    # Of a mean over 400 groups against a constant, 1.96 standard errors to either side.
    final = np.random.default_rng(1).normal(1, 0.5, size=400)
    low, high = quality_kept(np.ones(400), final, False, seed=0)["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * final.std() / 20, rel=0.05)
