"""The quality of generated text: what judges are told, what they say, and how much is said to be kept."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from k1.data.tokenizer import train_tokenizer
from k1.report.quality import (
    CONTINUATIONS,
    GROUP_SIZE,
    GenerationTest,
    cut_passages,
    quality_kept,
    token_stream,
    windows,
)
from tests.conftest import VOCABULARIES

PROMPT = 16  # half a sequence


def dataset_of(name="", has_beginnings=False, **splits):
    """A dataset whose splits are tokens, in blocks of 32."""
    blocks = {
        split: datasets.Dataset.from_dict(
            {"input_ids": [tokens[start : start + 32] for start in range(0, len(tokens), 32)]}
        ).with_format("torch")
        for split, tokens in splits.items()
    }
    counts = {split: len(tokens) for split, tokens in splits.items()}
    return SimpleNamespace(name=name, blocks=blocks, tokens=counts, has_beginnings=has_beginnings)


@pytest.fixture(scope="module")
def judged():
    """Judges of three domains, and prompts of each."""

    def sentences(name, count, seed):
        generator = np.random.default_rng(seed)
        return [" ".join(generator.choice(VOCABULARIES[name], size=12)) + "." for _ in range(count)]

    training = {name: sentences(name, 200, seed=1) for name in VOCABULARIES}
    tokenizer = train_tokenizer([text for texts in training.values() for text in texts], 400)
    corpora = [
        dataset_of(
            name,
            train=tokenizer.encode(" ".join(training[name])).ids,
            test=tokenizer.encode(" ".join(sentences(name, 40, seed=2))).ids,
        )
        for name in VOCABULARIES
    ]
    test = GenerationTest(corpora, tokenizer, seq_length=2 * PROMPT)
    test.train_judges()
    return test


def means(judged, index, tokens):
    return {score: values.mean() for score, values in judged.score(index, tokens).items()}


def test_windows_are_spread_from_the_first_token_to_the_last():
    tokens = np.arange(100)
    assert windows(tokens, 10, 4)[:, 0].tolist() == [0, 30, 60, 90]
    assert windows(tokens, 10, 4)[-1].tolist() == list(range(90, 100))
    assert windows(tokens[:12], 10, 4)[:, 0].tolist() == [0, 1, 2]


def test_the_stream_is_the_tokens_of_all_blocks_but_those_that_begin_one_and_no_more_than_asked_for():
    tokens = list(range(70))
    assert token_stream(dataset_of(test=tokens), "test", 1_000).tolist() == tokens
    assert token_stream(dataset_of(test=tokens), "test", 40).tolist() == tokens[:40]
    begun = token_stream(dataset_of(test=tokens, has_beginnings=True), "test", 1_000)
    assert begun.tolist() == [token for token in tokens if token % 32]


@pytest.mark.parametrize(
    ("tokens", "count", "prompt"), [(5_000, CONTINUATIONS, 32), (100, 5, 32), (20, 1, 10), (2, 1, 1)]
)
def test_a_short_text_gives_fewer_and_then_shorter_passages(tokens, count, prompt):
    cut, prompt_length = cut_passages(dataset_of(test=list(range(tokens))), 32, 64)
    assert cut.shape == (count, min(96, tokens)) and prompt_length == prompt


def test_real_text_is_recognized_and_another_domain_is_not(judged):
    described = judged.describe()
    assert described["classifier_accuracy"] > 0.99
    for index, name in enumerate(VOCABULARIES):
        real, other = judged.passages[index][0], judged.passages[(index + 1) % 3][0]
        assert described["real_text"][name] == means(judged, index, real)
        assert described["real_text"][name]["domain"] > 0.99 and described["continuations"][name] == len(real) > 50
        found = means(judged, index, other)
        assert found["domain"] < 0.01 and found["fluency"] > described["real_text"][name]["fluency"] + 1
    # Groups are of neighbours.
    both = np.vstack([judged.passages[index][0][:GROUP_SIZE] for index in (0, 1)])
    assert judged.score(0, both)["domain"].tolist() == [1, 0]


def test_disorder_costs_fluency_and_repetition_costs_variety(judged):
    real = judged.passages[0][0]
    shuffled = np.random.default_rng(0).permuted(real, axis=1)
    assert means(judged, 0, shuffled)["fluency"] > 1.2 * means(judged, 0, real)["fluency"]
    # Every continuation is the same: within itself as varied as before.
    repeated = real.copy()
    repeated[:, PROMPT:] = real[0, PROMPT:]
    assert means(judged, 0, repeated)["distinct_2"] < 0.7 * means(judged, 0, real)["distinct_2"]


def test_the_prompt_is_context_and_is_not_scored(judged):
    real = judged.passages[0][0]
    other = real.copy()
    other[:, :PROMPT] = np.roll(real[:, :PROMPT], 1, axis=0)
    a, b = judged.score(0, real), judged.score(0, other)
    assert (a["domain"] == b["domain"]).all() and (a["distinct_2"] == b["distinct_2"]).all()
    assert (a["fluency"] != b["fluency"]).any()
    expected = -np.log(judged.ngrams[0].probabilities(real)[:, PROMPT:]).mean()
    # Groups may differ in size by one.
    assert a["fluency"].mean() == pytest.approx(expected, rel=1e-2)


def test_kept_is_a_ratio_below_one_if_the_text_got_worse():
    own, final = np.array([0.8, 0.6, 1.0, 0.8]), np.array([0.4, 0.4, 0.6, 0.6])
    kept = quality_kept(own, final, lower_is_better=False, seed=0)
    assert (kept["own"], kept["final"], kept["kept"]) == pytest.approx((0.8, 0.5, 0.625))
    assert quality_kept(final, own, lower_is_better=True, seed=0)["kept"] == pytest.approx(0.625)
    # If nothing was there to lose all is kept.
    nothing = quality_kept(np.zeros(3), np.array([0.0, 0.5, 0.0]), False, seed=0)
    assert nothing["kept"] == 1 and nothing["interval"] == [1, 1]


def test_the_interval_compares_the_same_prompts_at_both_times_and_has_the_width_of_the_standard_error():
    own = np.random.default_rng(0).uniform(0.1, 1, size=50)
    assert quality_kept(own, 0.9 * own, False, seed=0)["interval"] == pytest.approx([0.9, 0.9])
    # Of a mean over 400 groups against a constant, 1.96 standard errors to either side.
    final = np.random.default_rng(1).normal(1, 0.5, size=400)
    low, high = quality_kept(np.ones(400), final, False, seed=0)["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * final.std() / 20, rel=0.05)
