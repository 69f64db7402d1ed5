"""One run of the study: the later datasets learned by one method, in the same steps as the scripts."""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from datasets import interleave_datasets
from transformers import PreTrainedModel

from k1.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from k1.config import Arguments, settings_of
from k1.data.loader import DataLoader, TokenizedDataset
from k1.data.tokenizer import load_tokenizer
from k1.model import build_model, configure_torch
from k1.rehearsal import Rehearsal, keep_share
from k1.report.metrics import mean
from k1.report.tables import dataset_label
from k1.stages import Learner
from k1.study.methods import MAP, METHODS, Method, consolidation, fisher_information
from k1.training.evaluation import evaluate
from k1.training.trainer import StageTrainer, copy_parameters

Attach = Callable[[torch.optim.Optimizer], object]


def stage_arguments(
    stage: int, learning_rate: float, seed: int, settings: dict, script: str, flags: dict | None = None
) -> Arguments:
    """The settings of a stage of the arm `script` (`k1` or `baseline`), with `flags` as a user would type them."""
    return settings_of(
        script, settings["preset"], stage, data_source=settings["data_source"], seed=seed, learning_rate=learning_rate,
        threads=1, **(flags or {}),
    )  # fmt: skip


def data_loader(name: str, settings: dict) -> DataLoader:
    """The text of the dataset `name`, as the runs read it."""
    return DataLoader(dataset_name=name, arguments=stage_arguments(1, 1.0, 0, settings, "k1"))


@lru_cache(maxsize=8)
def tokenized(name: str, data_source: str, tokenizer: str, preset: str) -> TokenizedDataset:
    """A dataset, read once in each process."""
    return data_loader(name, {"preset": preset, "data_source": data_source}).tokenize(load_tokenizer(tokenizer))


def learn_first_dataset(first: str, seed: int, learning_rate: float, output: Path, settings: dict) -> dict:
    """Learn dataset 1 as `first` (`k1` or `baseline`) does, save the model to `output`, return its record."""
    arguments = stage_arguments(1, learning_rate, seed, settings, first)
    configure_torch(arguments.threads)
    started = time.perf_counter()
    text = DataLoader(dataset_name=settings["dataset_names"][0], arguments=arguments)
    learner = Learner.new(None, arguments, text.text("train"))
    learner.learn(text.tokenize(learner.tokenizer), arguments, quietly_train)
    save_checkpoint(output, learner.checkpoint)
    return record_of(learner.checkpoint.evaluations, learner.checkpoint.history, started)


def learn_later_datasets(name: str, learning_rate: float, dial: dict, first: Path, settings: dict) -> dict:
    """Learn datasets 2, 3 and so on by method `name`; returns the record.

    It continues the model of dataset 1 in the file `first`. `dial` is one of the method's `settings`,
    or of a method of `MAP` flags by name.
    """
    method = {**METHODS, **MAP}[name]
    flags = method.flags | (dial if name in MAP else {})
    previous = load_checkpoint(first, method.script)
    names = settings["dataset_names"]
    stages = [
        stage_arguments(stage, learning_rate, previous.seed, settings, method.script, flags)
        for stage in range(2, len(names) + 1)
    ]
    configure_torch(stages[0].threads)
    started = time.perf_counter()
    datasets = [tokenized(name, settings["data_source"], previous.tokenizer, settings["preset"]) for name in names]
    if method.joint:
        return learn_all_at_once(previous, datasets, stages, started)

    learner = Learner.of(previous, stages[0], datasets[:1])
    evaluations, history, importance = [previous.evaluations[0]], [], None
    for arguments, dataset in zip(stages, datasets[1:], strict=True):
        attach = None
        if "strength" in dial:
            found = fisher_information(learner.model, learner.learned[-1], arguments)
            importance = found if importance is None else [old + new for old, new in zip(importance, found)]
            new = fisher_information(learner.model, dataset, arguments)
            attach = consolidation(learner.model, importance, new, dial["strength"])
        training = partial(train_by, method, dial, attach, [*learner.learned])
        entries, _ = learner.train(dataset, arguments, training, is_last=arguments is stages[-1])
        history += entries
        evaluations.append(evaluate(learner.model, learner.learned, arguments))
    return record_of(evaluations, history, started)


def train_by(
    method: Method, dial: dict, attach: Attach | None, learned: list[TokenizedDataset],
    model: PreTrainedModel, dataset: TokenizedDataset, arguments: Arguments, rehearsal: Rehearsal | None,
) -> list[dict]:  # fmt: skip
    """Train `model` in place on `dataset` as `method` does, with its replay, adapter or interpolation; the history."""
    start, trained = copy_parameters(model), model
    if method.replay:
        dataset = with_replay(dataset, learned, method.replay, arguments)
    if method.adapter:
        # Its fresh weights depend on the stage's seed.
        torch.manual_seed(arguments.stage_seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trained = method.adapter(model, **dial)
    history = quietly_train(trained, dataset, arguments, rehearsal, attach)
    if method.adapter:
        # In place: the adapter is inside `model`.
        trained.merge_and_unload().requires_grad_(True)
    if "keep" in dial:
        keep_share(model, start, copy_parameters(model), dial["keep"])
    return history


def learn_all_at_once(
    previous: Checkpoint, datasets: list[TokenizedDataset], stages: list[Arguments], started: float
) -> dict:
    """Learn all datasets mixed, from fresh weights, with as many tokens of each as the stages read one by one.

    There are no stages: the model after each one is the model at the end.
    """
    arguments = stages[-1]
    model = build_model(previous.model_config, previous.seed, arguments.device)
    steps = [previous.arguments["max_steps"], *(stage.max_steps for stage in stages)]
    joint = mixture(datasets, [count / sum(steps) for count in steps], arguments)
    history = quietly_train(model, joint, replace(arguments, max_steps=sum(steps)))
    return record_of([evaluate(model, datasets, arguments)] * len(datasets), history, started)


def with_replay(
    dataset: TokenizedDataset, learned: list[TokenizedDataset], share: float, arguments: Arguments
) -> TokenizedDataset:
    """`dataset` with training blocks of which `share` come from the datasets learned before, equally from each."""
    return mixture([dataset, *learned], [1 - share, *[share / len(learned)] * len(learned)], arguments)


def mixture(datasets: list[TokenizedDataset], shares: list[float], arguments: Arguments) -> TokenizedDataset:
    """The first of `datasets` with training blocks drawn at random from all of them, in these `shares`."""
    mixed = interleave_datasets(
        [dataset.blocks["train"] for dataset in datasets], probabilities=shares, seed=arguments.stage_seed
    ).with_format("torch")
    return replace(datasets[0], blocks={**datasets[0].blocks, "train": mixed})


def quietly_train(
    model: PreTrainedModel, dataset: TokenizedDataset, arguments: Arguments, rehearsal: Rehearsal | None = None,
    attach: Attach | None = None,
) -> list[dict]:  # fmt: skip
    """Train `model` in place without a progress bar, as the study has one of its own; returns the history."""
    return StageTrainer(model, dataset, arguments, rehearsal, attach).run(progress=False)


def record_of(evaluations: list[dict], history: list[dict], started: float) -> dict:
    """What the study keeps: [nats per token, accuracy] by stage, dataset and split; share updated; seconds.

    A local dataset goes by its file name, so that a record can be moved to another machine.
    """
    return {
        "evaluations": [
            {
                dataset_label(name): {split: [scores["loss"], scores["accuracy"]] for split, scores in splits.items()}
                for name, splits in row.items()
            }
            for row in evaluations
        ],
        "updated_fraction": mean([entry["updated_fraction"] for entry in history]),
        "seconds": time.perf_counter() - started,
    }
