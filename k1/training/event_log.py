"""What TensorBoard shows of a training. It is written beside it: no figure and no bit of a model depends on it."""

from pathlib import Path

from k1.data.sources import dataset_labels
from k1.errors import K1Error


class EventLog:
    """The events of a stage, in `folder`; raises `K1Error` if the package tensorboard is missing."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise K1Error("--report_to tensorboard needs a package that is missing; run: pip install tensorboard")
        self._open, self._folder = SummaryWriter, folder

    def begin(self, done: int) -> None:
        """Continue after the step `done`, 0 at a new beginning; what was written of later steps counts no more."""
        # Step 0 is never written, so that of a new beginning nothing old is left.
        self._writer = self._open(str(self._folder), purge_step=done + 1 if done else 0)
        self._writer.flush()

    def add_entry(self, entry: dict) -> None:
        """Write an entry of the history (see `k1.training.trainer.StageTrainer`), at its step."""
        for name in entry.keys() - {"step"}:
            self._writer.add_scalar(f"training/{name}", entry[name], entry["step"])
        # At once, as a process can be killed at any moment.
        self._writer.flush()

    def add_evaluations(self, before: dict, after: dict, max_steps: int) -> None:
        """Write the evaluations before and after the stage, at the steps 0 and `max_steps`.

        They are a run of their own in the folder `evaluation`, which takes the place of an earlier one.
        """
        labels = dict(zip(after, dataset_labels(after)))
        with self._open(str(self._folder / "evaluation"), purge_step=0) as writer:
            for step, evaluation in {0: before, max_steps: after}.items():
                for name, splits in evaluation.items():
                    for split, scores in splits.items():
                        for score in ("loss", "perplexity", "accuracy"):
                            writer.add_scalar(f"{score}/{split}/{labels[name]}", scores[score], step)
