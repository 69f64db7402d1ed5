"""One run of the study: the later datasets learned by one method, in the same steps as the scripts."""

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from k1.checkpoints import load_checkpoint, save_checkpoint
from k1.config import Arguments, settings_of
from k1.data.loader import DataLoader, TokenizedDataset
from k1.data.sources import dataset_labels
from k1.data.tokenizer import load_tokenizer
from k1.model import build_model, configure_torch
from k1.report.metrics import Matrix, mean
from k1.stages import Learner
from k1.study.methods import METHODS, Stage, mixture
from k1.training.evaluation import evaluate


def stage_arguments(script: str, stage: int, settings: dict, **flags: object) -> Arguments:
    """The settings of a stage of `script` (`k1` or `baseline`), with `flags` as a user would type them."""
    return settings_of(script, settings["preset"], stage, data_source=settings["data_source"], threads=1, **flags)


def read(name: str, settings: dict) -> DataLoader:
    """The text of the dataset `name`, as all runs read it."""
    return DataLoader(name, stage_arguments("k1", 1, settings))


@lru_cache(maxsize=8)
def tokenized(name: str, tokenizer: str, preset: str, data_source: str) -> TokenizedDataset:
    """A dataset, read once in each process."""
    return read(name, {"preset": preset, "data_source": data_source}).tokenize(load_tokenizer(tokenizer))


def learn_first_dataset(script: str, seed: int, output: Path, settings: dict) -> None:
    """Learn dataset 1 as `script` (`k1` or `baseline`) does, and save the model to `output`."""
    arguments = stage_arguments(script, 1, settings, seed=seed)
    configure_torch(arguments.threads)
    text = read(settings["dataset_names"][0], settings)
    learner = Learner.new(None, arguments, text.text("train"))
    learner.learn(text.tokenize(learner.tokenizer), arguments, lambda *stage: Stage(*stage, [], []).train())
    save_checkpoint(output, learner.checkpoint)


def learn_later_datasets(run: dict, first: Path, settings: dict) -> dict:
    """Learn datasets 2, 3 and so on as the method of `run` does, from the model in the file `first`.

    Returns the record: scores of all datasets so far after each stage, as matrices (`k1.report.metrics`) of
    accuracy and loss on test text and of loss on validation text; the share of parameters that a step updated; seconds.
    """
    started = time.perf_counter()
    method, names = METHODS[run["method"]], settings["dataset_names"]
    previous = load_checkpoint(first, method.script)
    stages = [
        stage_arguments(
            method.script, stage, settings, seed=previous.seed, learning_rate=run["learning_rate"],
            rehearsal=method.rehearsal, **method.flags,
        )
        for stage in range(2, len(names) + 1)
    ]  # fmt: skip
    configure_torch(stages[0].threads)
    datasets = [tokenized(name, previous.tokenizer, settings["preset"], settings["data_source"]) for name in names]
    evaluations, history, importance = previous.evaluations[:1], [], []
    if method.joint:
        # From fresh weights, with as many tokens of each as the stages read; the model after each is that at the end.
        model = build_model(previous.model_config, previous.seed, stages[-1].device)
        steps = [previous.arguments["max_steps"], *(arguments.max_steps for arguments in stages)]
        arguments = replace(stages[-1], max_steps=sum(steps))
        joint = mixture(datasets, [count / sum(steps) for count in steps], arguments)
        history = Stage(model, joint, arguments, None, [], []).train()
        evaluations = [evaluate(model, datasets, arguments)] * len(datasets)
    else:
        learner = Learner.of(previous, stages[0], datasets[:1])
        for arguments, dataset in zip(stages, datasets[1:], strict=True):
            entries, _ = learner.train(
                dataset, arguments,
                lambda *stage: method.training(Stage(*stage, learner.learned, importance), **run["setting"]),
                is_last=arguments is stages[-1],
            )  # fmt: skip
            history += entries
            evaluations.append(evaluate(learner.model, learner.learned, arguments))

    def matrix(split: str, score: str) -> Matrix:
        names = list(evaluations[-1])
        rows = [[row[name][split][score] if name in row else None for name in names] for row in evaluations]
        return [[None] * len(names), *rows]

    return {
        "datasets": dataset_labels(evaluations[-1]),
        "accuracy_matrix": matrix("test", "accuracy"),
        "loss_matrix": matrix("test", "loss"),
        "validation_loss_matrix": matrix("validation", "loss"),
        "updated_fraction": mean([entry["updated_fraction"] for entry in history]),
        "seconds": time.perf_counter() - started,
    }
