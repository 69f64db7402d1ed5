"""The n-gram model: the probabilities of another implementation, and of a distribution."""

from itertools import product

import numpy as np
import pytest
from nltk.lm import KneserNeyInterpolated
from nltk.util import everygrams

from k1.report.kneser_ney import KneserNey

VOCABULARY = 6


def reference(text, order, discount):
    """The probability of a token after a context, from nltk, of which the unigrams are mixed with the uniform."""
    model = KneserNeyInterpolated(order, discount=discount)
    words = list(map(str, text))
    model.fit([everygrams(words, max_len=order)], vocabulary_text=words)

    def unigram(word):
        count, total = model.estimator._continuation_counts(word)
        return (max(count - discount, 0) + discount * len(set(words)) / VOCABULARY) / total

    model.estimator.unigram_score = unigram
    return lambda token, context: model.unmasked_score(str(token), tuple(map(str, context)))


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("discount", [0.1, 0.75])
def test_the_probabilities_are_those_of_nltk(order, discount):
    text = np.random.default_rng(0).choice(5, size=300, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    text = np.append(text, text[:5])  # so that something follows its end
    expected, model = reference(text, order, discount), KneserNey(text, VOCABULARY, order)
    # That of nltk has one discount for all lengths.
    model.levels = [level._replace(discount=discount) for level in model.levels]
    # Token 5 does not occur in the text, and not every context does.
    rows = np.random.default_rng(1).integers(VOCABULARY, size=(40, 6))
    for row, probabilities in zip(rows, model.probabilities(rows)):
        for i, probability in enumerate(probabilities):
            context = row[max(0, i - order + 1) : i]
            assert probability == pytest.approx(expected(row[i], context), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_probabilities_after_any_context_add_up_to_one(order):
    contexts = list(product(range(VOCABULARY), repeat=3))
    rows = np.array([[*context, token] for context in contexts for token in range(VOCABULARY)])
    # A text shorter than the order is enough.
    for text in (np.arange(300) % 7 % 5, np.array([0]), np.array([0, 1, 0])):
        last = KneserNey(text, VOCABULARY, order).probabilities(rows)[:, -1].reshape(-1, VOCABULARY)
        assert last.min() > 0
        np.testing.assert_allclose(last.sum(1), 1, rtol=1e-12)


def test_the_discount_is_that_of_chen_and_goodman():
    # Occurrences 3, 2, 1, 1: n1 = 2, n2 = 1, so the discount is 2 / (2 + 2).
    found = KneserNey(np.array([0, 0, 0, 1, 1, 2, 3]), 5, order=1).probabilities(np.arange(5)[None])
    np.testing.assert_allclose(found, [[2.9 / 7, 1.9 / 7, 0.9 / 7, 0.9 / 7, 0.4 / 7]])
