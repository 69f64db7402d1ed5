"""The recipe of a stage, once: all training scripts and the study learn a dataset by it."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from k1.checkpoints import (
    Checkpoint,
    ResumeFile,
    load_finished_stage,
    restore_initial_model,
    restore_model,
    save_checkpoint,
    stage_checkpoint,
)
from k1.config import Arguments, Flags
from k1.data.initial import initial_model
from k1.data.loader import TokenizedDataset, load_datasets, require_distinct
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error
from k1.experiment import STAGES
from k1.files import lock
from k1.parallel import is_main_process
from k1.rehearsal import Rehearsal
from k1.report.tables import print_evaluation
from k1.training.evaluation import evaluate
from k1.training.event_log import EventLog
from k1.training.rehearsal import begin_rehearsal, write_rehearsal
from k1.training.trainer import StageTrainer

# Trains a model in place on the text of a dataset, with what it rehearses; returns the history.
Training = Callable[[PreTrainedModel, TokenizedDataset, Arguments, Rehearsal | None], list[dict]]


@dataclass(frozen=True)
class StageOutput:
    """What a stage leaves: its checkpoint at `path`, its events, and while a script trains its resume file."""

    flags: Flags
    path: Path
    resume_file: ResumeFile
    event_log: EventLog | None

    def learn(self, learner: "Learner", dataset: TokenizedDataset, arguments: Arguments) -> None:
        """Let `learner` learn `dataset`, write the checkpoint, and print what its model scores.

        A stage that is finished is taken as it is if it had the same settings, text and start; others are trained
        again with `--overwrite`, and without it raise `K1Error`, naming the first difference.
        """
        checkpoint = self._take(learner, dataset, arguments) if self.path.exists() else None
        if checkpoint is None:
            checkpoint = learner.learn(
                dataset, arguments, lambda *stage: StageTrainer(*stage).run(self.resume_file, self.event_log)
            )
            self._save(checkpoint)
        self.resume_file.remove(arguments)
        print_evaluation(checkpoint)

    def _take(self, learner: "Learner", dataset: TokenizedDataset, arguments: Arguments) -> Checkpoint | None:
        """Let `learner` continue with the checkpoint at `path`, and return it; None if it is to be replaced."""
        try:
            checkpoint = load_finished_stage(self.path, dataset, arguments, learner.start, learner.checkpoint)
            learner.model = restore_model(checkpoint, arguments.device)
        except K1Error:
            if not self.flags.overwrite:
                raise
            return None
        learner.checkpoint, learner.written = checkpoint, checkpoint.written
        learner.learned.append(dataset)
        if is_main_process():
            print(f"{self.path} is already trained with these settings; remove it to train it again", file=sys.stderr)
        return checkpoint

    def _save(self, checkpoint: Checkpoint) -> None:
        """Write `checkpoint`, and its evaluations as events."""
        save_checkpoint(self.path, checkpoint)
        if is_main_process():
            print(f"wrote {self.path}", file=sys.stderr)
        if self.event_log:
            name, after = checkpoint.datasets[-1]["name"], checkpoint.evaluations[-1]
            before = checkpoint.evaluations[-2] if checkpoint.stage > 1 else checkpoint.initial_evaluation
            self.event_log.add_evaluations({name: before[name]}, after, checkpoint.arguments["max_steps"])


def stage_outputs(flags: Flags, stages: Sequence[int]) -> list[StageOutput]:
    """What the `stages` of one script leave; raises `K1Error` if another process is writing one of their files."""
    paths = [flags.checkpoint(stage) for stage in stages]
    if is_main_process():
        for path in paths:
            lock(path)
    resume_file = ResumeFile(paths[-1], flags.save_steps, flags.overwrite)
    has_events = flags.report_to == "tensorboard" and is_main_process()
    logs = [EventLog(flags.logging_dir / path.stem) if has_events else None for path in paths]
    return [StageOutput(flags, path, resume_file, log) for path, log in zip(paths, logs)]


class Learner:
    """A model that learns one dataset after another, what it has `learned`, and what it has `written` to rehearse.

    `checkpoint` is that of the last stage, None before the first; `build_initial` makes the model as it was
    before stage 1, and `start` says which pretrained one that was, None for fresh weights.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, build_initial: Callable[[], PreTrainedModel],
        start: dict | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.build_initial, self.start = model, tokenizer, build_initial, start
        self.learned: list[TokenizedDataset] = []
        self.written: list[Tensor] = []
        self.checkpoint: Checkpoint | None = None

    @classmethod
    def new(cls, init_from: str | None, arguments: Arguments, text: Iterable[str]) -> "Learner":
        """A model that has learned nothing here, and its tokenizer; see `k1.data.initial.initial_model`."""
        initial = initial_model(init_from, arguments, text)
        device = arguments.device
        return cls(initial.build(device), initial.tokenizer, lambda: initial.build(device), initial.start)

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, arguments: Arguments, learned: list[TokenizedDataset] | None = None
    ) -> "Learner":
        """The model of `checkpoint` and what it learned, which is read again unless it is given."""
        tokenizer, device = load_tokenizer(checkpoint.tokenizer), arguments.device
        model = restore_model(checkpoint, device)
        learner = cls(model, tokenizer, lambda: restore_initial_model(checkpoint, device), checkpoint.start)
        learner.checkpoint, learner.written = checkpoint, checkpoint.written
        learner.learned = load_datasets(checkpoint.datasets, tokenizer, arguments) if learned is None else [*learned]
        return learner

    def train(
        self, dataset: TokenizedDataset, arguments: Arguments, training: Training, is_last: bool = False
    ) -> tuple[list[dict], Rehearsal | None]:
        """Learn `dataset` by `training`, and write what later stages rehearse, unless there are none.

        Returns the history and what was rehearsed.
        """
        rehearsal = begin_rehearsal(self.model, self.written, self.tokenizer, arguments)
        history = training(self.model, dataset, arguments, rehearsal)
        self.learned.append(dataset)
        self.written = [] if is_last else write_rehearsal(self.model, dataset, self.tokenizer, arguments, self.written)
        return history, rehearsal

    def learn(self, dataset: TokenizedDataset, arguments: Arguments, training: Training) -> Checkpoint:
        """Do a whole stage: evaluate, train, write for later stages, and evaluate; returns the new `checkpoint`."""
        require_distinct([*(known.name for known in self.learned), dataset.name])
        initial = self.build_initial() if self.checkpoint else self.model
        untrained = evaluate(initial, [dataset], arguments, splits=("test",))
        before = evaluate(self.model, [dataset], arguments, splits=("test",)) if self.checkpoint else untrained
        history, rehearsal = self.train(dataset, arguments, training, is_last=arguments.stage == STAGES)
        predicted = rehearsal.predicted_forgetting(self.model) if rehearsal else []
        after = evaluate(self.model, self.learned, arguments)
        self.checkpoint = stage_checkpoint(
            self.model, self.tokenizer, dataset, arguments, previous=self.checkpoint, start=self.start,
            untrained=untrained, before=before, after=after, history=history, written=self.written,
            predicted_forgetting=predicted,
        )  # fmt: skip
        return self.checkpoint
