"""An n-gram language model with interpolated Kneser-Ney smoothing, over token ids, in numpy."""

from typing import NamedTuple

import numpy as np


class Level(NamedTuple):
    """The n-grams of one length n that occur in a text, in the order of their `keys`.

    A key is the index of the first n - 1 tokens among the keys one level below,
    times the size of the vocabulary, plus the last token. `counts` are occurrences
    at the highest level, and below it the number of different tokens before the
    n-gram. By the index of the first n - 1 tokens, `totals` is the sum of the counts
    of the n-grams that begin with them and `kinds` the number of counts above 0.
    """

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    discount: float


class KneserNey:
    """An n-gram model of `tokens`, a 1-D array of ids below `vocabulary_size`.

    Interpolated Kneser-Ney smoothing (Kneser and Ney, ICASSP 1995; Chen and
    Goodman, Computer Speech and Language 1999, section 2.8) down to the uniform
    distribution: every token has a probability after any context, and they add up
    to 1. The discount of each length is n1 / (n1 + 2 n2), of the n-grams that
    count once and twice.
    """

    def __init__(self, tokens: np.ndarray, vocabulary_size: int, order: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.levels: list[Level] = []
        tokens = np.asarray(tokens, dtype=np.int64)
        # Of the n-gram that begins at each position: its index among the n-grams of its length.
        indices = np.zeros(len(tokens), dtype=np.int64)
        shorter = counts = indices[:0]
        for length in range(1, min(order, len(tokens)) + 1):
            ngrams = indices[: len(tokens) - length + 1] * vocabulary_size + tokens[length - 1 :]
            keys, first, longer, counts = np.unique(ngrams, return_index=True, return_inverse=True, return_counts=True)
            if length > 1:
                # Each different n-gram without its first token.
                self._add_level(shorter, np.bincount(indices[first + 1], minlength=len(shorter)))
            shorter, indices = keys, longer
        self._add_level(shorter, counts)

    def _add_level(self, keys: np.ndarray, counts: np.ndarray) -> None:
        contexts = keys // self.vocabulary_size
        size = len(self.levels[-1].keys) if self.levels else 1
        once, twice = (int((counts == number).sum()) for number in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        totals = np.bincount(contexts, weights=counts, minlength=size)
        kinds = np.bincount(contexts[counts > 0], minlength=size)
        self.levels.append(Level(keys, counts, totals, kinds, discount))

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Probability of each token given those before it in its row; `tokens` and the result are (rows, length)."""
        tokens = np.asarray(tokens, dtype=np.int64)
        result = np.full(tokens.shape, 1 / self.vocabulary_size)
        # Of the n - 1 tokens before each position: their index one level below, -1 if they do not occur.
        contexts = np.zeros(tokens.shape, dtype=np.int64)
        for level in self.levels:
            totals = np.where(contexts >= 0, level.totals[contexts], 0)
            wanted = np.where(contexts >= 0, contexts * self.vocabulary_size + tokens, -1)
            places = np.minimum(np.searchsorted(level.keys, wanted), len(level.keys) - 1)
            found = level.keys[places] == wanted
            counted = np.where(found, np.maximum(level.counts[places] - level.discount, 0), 0)
            mixed = (counted + level.discount * level.kinds[contexts] * result) / np.maximum(totals, 1)
            result = np.where(totals > 0, mixed, result)
            contexts = np.full(tokens.shape, -1)
            contexts[:, 1:] = np.where(found, places, -1)[:, :-1]
        return result
