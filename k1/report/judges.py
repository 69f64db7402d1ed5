"""What generated text is scored with: a classifier of domains and an n-gram model of each dataset."""

import numpy as np
import pyarrow.compute
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer

from k1.data.loader import TokenizedDataset
from k1.data.tokenizer import vocabulary_size
from k1.report.kneser_ney import KneserNey

# One token more lowers the loss on held-out text by less than 0.1 nats and takes half as long again.
ORDER = 5
NGRAM_TOKENS = 5_000_000
SNIPPETS = 2_000


class Judges:
    """Judges of text, trained on nothing but the training text of `datasets`.

    One classifier tells the datasets apart by the text of a snippet of `snippet_tokens` tokens: logistic regression on
    the tf-idf of character n-grams, 1 to 3 long. Each dataset has an n-gram model of its own, of order 5 with
    Kneser-Ney smoothing, of its first 5 million training tokens, `ngram_tokens` in number.
    """

    def __init__(self, datasets: list[TokenizedDataset], tokenizer: Tokenizer, snippet_tokens: int) -> None:
        training = [token_stream(dataset, "train", NGRAM_TOKENS) for dataset in datasets]
        self.ngram_tokens = [len(tokens) for tokens in training]
        self.ngrams = [KneserNey(tokens, vocabulary_size(tokenizer), ORDER) for tokens in training]
        # The same number of every dataset: none is likelier before anything is read.
        count = min(SNIPPETS, min(self.ngram_tokens) - snippet_tokens + 1)
        snippets = np.vstack([windows(tokens, snippet_tokens, count) for tokens in training])
        # Hashing needs no vocabulary, so that memory does not grow with the text.
        self.classifier = make_pipeline(
            HashingVectorizer(
                analyzer="char", ngram_range=(1, 3), lowercase=False, n_features=2**16, alternate_sign=False, norm=None
            ),
            TfidfTransformer(sublinear_tf=True),
            LogisticRegression(C=10, max_iter=1_000),
        ).fit(tokenizer.decode_batch(snippets.tolist()), np.repeat(np.arange(len(training)), count))

    def is_of_domain(self, index: int, texts: list[str]) -> np.ndarray:
        """For each text 1 if the classifier assigns it to dataset number `index`, else 0."""
        return (self.classifier.predict(texts) == index).astype(float)

    def loss(self, index: int, tokens: np.ndarray, prompt_length: int) -> np.ndarray:
        """Nats per token of each row under the n-gram model of dataset number `index`.

        `tokens` is (rows, length); the first `prompt_length` of them are context and do not count.
        """
        return -np.log(self.ngrams[index].probabilities(tokens)[:, prompt_length:]).mean(1)


def token_stream(dataset: TokenizedDataset, split: str, max_tokens: int) -> np.ndarray:
    """The first `max_tokens` tokens of the text of a split, without those that begin a block."""
    blocks = dataset.blocks[split]
    length = len(blocks[0]["input_ids"])
    rows = blocks.with_format("arrow")[: -(-max_tokens // length)]["input_ids"]
    tokens = pyarrow.compute.list_flatten(rows).to_numpy()[:max_tokens]
    return np.delete(tokens, np.s_[::length]) if dataset.has_beginnings else tokens


def windows(tokens: np.ndarray, length: int, count: int) -> np.ndarray:
    """Stretches of `length` tokens, (`count`, `length`), spread evenly; fewer if they could not begin apart."""
    count = min(count, len(tokens) - length + 1)
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.lib.stride_tricks.sliding_window_view(tokens, length)[starts]
