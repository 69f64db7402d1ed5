"""The quality of generated text, right after a dataset's own stage and at the end, and how much of it is kept."""

from concurrent.futures import Future
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.compute
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer

from k1.checkpoints import load_checkpoint, restore_model
from k1.data.loader import TokenizedDataset
from k1.data.tokenizer import load_tokenizer, vocabulary_size
from k1.model import configure_torch
from k1.parallel import process_pool
from k1.report.generation import generate
from k1.report.generation_arguments import TEMPERATURE, TOP_K
from k1.report.kneser_ney import KneserNey
from k1.report.metrics import distinct_2

# Of each dataset by each model.
CONTINUATIONS = 400
PROMPT_TOKENS, NEW_TOKENS = 32, 64
GROUP_SIZE = 8
RESAMPLES = 10_000
PERCENTILES = (2.5, 97.5)
# One token more lowers the loss on held-out text by less than 0.1 nats and takes half as long again.
ORDER = 5
NGRAM_TOKENS = 5_000_000
SNIPPETS = 2_000


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


def cut_passages(dataset: TokenizedDataset, prompt_tokens: int, new_tokens: int) -> tuple[np.ndarray, int]:
    """400 prompts spread evenly over the whole test text, and what follows each; (count, length) ids, prompts' length.

    Of the same number of texts, one for each prompt gives the narrowest interval.
    What follows a prompt may reach into the next. A test text that is too short for
    that many different prompts gives fewer, and one of fewer than `prompt_tokens` +
    `new_tokens` tokens gives at most half of them as the prompt.
    """
    text = token_stream(dataset, "test", dataset.tokens["test"])
    length = min(len(text), prompt_tokens + new_tokens)
    return windows(text, length, CONTINUATIONS), min(prompt_tokens, length // 2)


class GenerationTest:
    """Prompts from each dataset's test text, and judges of their continuations; the same for every model.

    The judges know nothing but training text. One classifier tells the datasets apart by the text of `new_tokens`
    tokens: logistic regression on the tf-idf of character n-grams, 1 to 3 long. Each dataset has an n-gram model of
    its own, of order 5 with Kneser-Ney smoothing, of its first 5 million training tokens.
    """

    def __init__(self, datasets: list[TokenizedDataset], tokenizer: Tokenizer, seq_length: int) -> None:
        # Together no longer than the sequences the models were trained on.
        prompt_tokens = max(1, min(PROMPT_TOKENS, seq_length // 2))
        self.new_tokens = min(NEW_TOKENS, seq_length - prompt_tokens)
        self.datasets, self.tokenizer = datasets, tokenizer
        self.passages = [cut_passages(dataset, prompt_tokens, self.new_tokens) for dataset in datasets]

    def train_judges(self) -> None:
        """Train the classifier and the n-gram models."""
        training = [token_stream(dataset, "train", NGRAM_TOKENS) for dataset in self.datasets]
        self.ngram_tokens = [len(tokens) for tokens in training]
        self.ngrams = [KneserNey(tokens, vocabulary_size(self.tokenizer), ORDER) for tokens in training]
        # The same number of every dataset: none is likelier before anything is read.
        count = min(SNIPPETS, min(self.ngram_tokens) - self.new_tokens + 1)
        snippets = np.vstack([windows(tokens, self.new_tokens, count) for tokens in training])
        # Hashing needs no vocabulary, so that memory does not grow with the text.
        self.classifier = make_pipeline(
            HashingVectorizer(
                analyzer="char", ngram_range=(1, 3), lowercase=False, n_features=2**16, alternate_sign=False, norm=None
            ),
            TfidfTransformer(sublinear_tf=True),
            LogisticRegression(C=10, max_iter=1_000),
        ).fit(self.tokenizer.decode_batch(snippets.tolist()), np.repeat(np.arange(len(training)), count))

    def score(self, index: int, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The scores of continuations, means over groups of 8 successive ones.

        `tokens` is (count, length): prompts of dataset number `index`, continued.
        `domain` is the share that the classifier assigns to the dataset, `fluency` the
        loss in nats per token under the dataset's n-gram model, of which the prompts are
        context alone, `distinct_2` the share of different ones among the word pairs of a group.
        """
        prompt_length = self.passages[index][1]
        texts = self.tokenizer.decode_batch(tokens[:, prompt_length:].tolist())
        of_domain = (self.classifier.predict(texts) == index).astype(float)
        losses = -np.log(self.ngrams[index].probabilities(tokens)[:, prompt_length:]).mean(1)
        groups = np.array_split(np.arange(len(tokens)), max(1, len(tokens) // GROUP_SIZE))
        return {
            "domain": np.array([of_domain[group].mean() for group in groups]),
            "fluency": np.array([losses[group].mean() for group in groups]),
            "distinct_2": np.array([distinct_2([texts[i] for i in group]) for group in groups]),
        }

    def describe(self) -> dict:
        """Of the judges, by dataset if not said otherwise:

        `continuations` that are scored, `ngram_tokens` that the n-gram model has read,
        `real_text` with the scores of what really follows the prompts, and
        `classifier_accuracy`, over all datasets, on that text.
        """
        names, texts = [dataset.name for dataset in self.datasets], [tokens for tokens, _ in self.passages]
        real = [
            {score: float(values.mean()) for score, values in self.score(index, tokens).items()}
            for index, tokens in enumerate(texts)
        ]
        return {
            "continuations": dict(zip(names, map(len, texts))),
            "ngram_tokens": dict(zip(names, self.ngram_tokens)),
            "real_text": dict(zip(names, real)),
            "classifier_accuracy": float(np.mean([scores["domain"] for scores in real])),
        }

    def qualities(self, runs: dict[str, list[Path]], device: str, threads: int, seed: int) -> dict[str, dict]:
        """The quality of what the models of each run, checkpoints by stage, write: dataset -> score -> `quality_kept`.

        Two processes write, while this one trains the judges.
        """
        pool = process_pool(2, __name__)

        @cache  # some arms share a file
        def written(path: Path, index: int) -> Future[np.ndarray]:
            tokens, length = self.passages[index]
            return pool.submit(write, path, tokens[:, :length], self.new_tokens, device, threads, seed)

        def kept(index: int, *texts: Future[np.ndarray]) -> dict:
            own, end = (self.score(index, text.result()) for text in texts)
            return {score: quality_kept(own[score], end[score], score == "fluency", seed) for score in own}

        try:
            texts = {
                arm: [(index, written(own, index), written(files[-1], index)) for index, own in enumerate(files)]
                for arm, files in runs.items()
            }
            self.train_judges()
            names = [dataset.name for dataset in self.datasets]
            return {arm: dict(zip(names, [kept(*asked) for asked in found])) for arm, found in texts.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def write(path: Path, prompts: np.ndarray, new_tokens: int, device: str, threads: int, seed: int) -> np.ndarray:
    """What the model of the checkpoint at `path` writes after `prompts`, and them in front; (count, length) ids."""
    configure_torch(threads)
    checkpoint = load_checkpoint(path)
    model, tokenizer = restore_model(checkpoint, device), load_tokenizer(checkpoint.tokenizer)
    written = generate(model, tokenizer, prompts.tolist(), new_tokens, TEMPERATURE, TOP_K, seed, stop_at_end=False)
    return np.hstack([prompts, written])


def quality_kept(own: np.ndarray, final: np.ndarray, lower_is_better: bool, seed: int) -> dict:
    """How much of a score is kept, with a 95% interval, from the score of each group of prompts at both times.

    `own` and `final` are the means; `kept` is their ratio, `final` / `own` or, where
    lower is better, `own` / `final`, so that less than 1 is worse; 1 if both
    would be 0 or nothing was there to lose. `interval` is the percentile bootstrap
    (Efron and Tibshirani 1993, section 13.3) over groups, drawn alike for both
    times. Groups of neighbouring prompts, not continuations, are drawn since
    neighbours share a document, and since a text drawn twice would count as
    repetition in distinct-2.
    """
    drawn = np.random.default_rng(seed).integers(len(own), size=(RESAMPLES, len(own)))

    def ratio(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        above, below = (before, after) if lower_is_better else (after, before)
        return np.divide(above, below, out=np.ones_like(above), where=below > 0)

    kept = ratio(own.mean(keepdims=True), final.mean(keepdims=True))[0]
    interval = np.percentile(ratio(own[drawn].mean(1), final[drawn].mean(1)), PERCENTILES)
    return {
        "own": float(own.mean()), "final": float(final.mean()), "kept": float(kept), "interval": interval.tolist(),
    }  # fmt: skip
