"""The quality of generated text, right after a dataset's own stage and at the end, and how much of it is kept."""

from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer

from k1.checkpoints import Checkpoint, restore_model
from k1.config import Arguments
from k1.data.loader import TokenizedDataset, load_datasets
from k1.data.tokenizer import load_tokenizer
from k1.report.generation import generate
from k1.report.generation_arguments import TEMPERATURE, TOP_K
from k1.report.judges import Judges, token_stream, windows
from k1.report.metrics import distinct_2
from k1.report.tables import SCORES

LOWER_IS_BETTER = ("fluency",)
# Of each dataset by each model.
CONTINUATIONS = 400
PROMPT_TOKENS, NEW_TOKENS = 32, 64
GROUP_SIZE = 8
RESAMPLES = 10_000
PERCENTILES = (2.5, 97.5)


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
    """Prompts from each dataset's test text, and what scores their continuations; the same for every model."""

    def __init__(
        self, datasets: list[TokenizedDataset], tokenizer: Tokenizer, prompt_tokens: int, new_tokens: int, seed: int
    ) -> None:
        self.names = [dataset.name for dataset in datasets]
        self.passages = [cut_passages(dataset, prompt_tokens, new_tokens) for dataset in datasets]
        self.judges = Judges(datasets, tokenizer, new_tokens)
        self.tokenizer, self.new_tokens, self.seed = tokenizer, new_tokens, seed
        self.known: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def score_model(self, checkpoint: Checkpoint, indices: list[int], device: str) -> list[dict[str, np.ndarray]]:
        """The scores of what the model of `checkpoint` generates for the datasets number `indices`."""
        # Two arms may share a checkpoint.
        missing = [index for index in indices if (checkpoint.sha256, index) not in self.known]
        model = restore_model(checkpoint, device) if missing else None
        for index in missing:
            tokens, prompt_length = self.passages[index]
            prompts = tokens[:, :prompt_length]
            continuations = generate(
                model, self.tokenizer, prompts.tolist(), self.new_tokens, TEMPERATURE, TOP_K, self.seed,
                stop_at_end=False,
            )  # fmt: skip
            self.known[checkpoint.sha256, index] = self.score(index, np.hstack([prompts, continuations]))
        return [self.known[checkpoint.sha256, index] for index in indices]

    def score(self, index: int, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The scores of continuations, means over groups of 8 successive ones.

        `tokens` is (count, length): prompts of dataset number `index`, continued.
        `domain` is the share that the classifier assigns to the dataset, `fluency` the
        loss in nats per token under the dataset's n-gram model, `distinct_2` the share
        of different ones among the word pairs of a group.
        """
        prompt_length = self.passages[index][1]
        texts = self.tokenizer.decode_batch(tokens[:, prompt_length:].tolist())
        of_domain = self.judges.is_of_domain(index, texts)
        losses = self.judges.loss(index, tokens, prompt_length)
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
        real = [self.score(index, tokens) for index, (tokens, _) in enumerate(self.passages)]
        real_text = [{score: float(values[score].mean()) for score in SCORES} for values in real]
        return {
            "continuations": {name: len(tokens) for name, (tokens, _) in zip(self.names, self.passages)},
            "ngram_tokens": dict(zip(self.names, self.judges.ngram_tokens)),
            "real_text": dict(zip(self.names, real_text)),
            "classifier_accuracy": float(np.mean([scores["domain"] for scores in real_text])),
        }


def prepare_test(final: Checkpoint, device: str) -> GenerationTest:
    """Prompts and judges for the datasets of `final`; raises `K1Error` if their text is no longer the same."""
    tokenizer, arguments = load_tokenizer(final.tokenizer), replace(Arguments(**final.arguments), device=device)
    # Together no longer than the sequences the models were trained on.
    prompt_tokens = max(1, min(PROMPT_TOKENS, arguments.seq_length // 2))
    new_tokens = min(NEW_TOKENS, arguments.seq_length - prompt_tokens)
    datasets = load_datasets(final.datasets, tokenizer, arguments)
    return GenerationTest(datasets, tokenizer, prompt_tokens, new_tokens, final.seed)


def generation_quality(run: list[Checkpoint], test: GenerationTest, device: str) -> dict:
    """The quality of the text that the models of `run` generate: dataset -> score -> what `quality_kept` returns."""
    end = test.score_model(run[-1], list(range(len(run))), device)
    own = [test.score_model(checkpoint, [index], device)[0] for index, checkpoint in enumerate(run)]
    return {
        name: {
            score: quality_kept(before[score], after[score], score in LOWER_IS_BETTER, test.seed) for score in SCORES
        }
        for name, before, after in zip(test.names, own, end)
    }


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
