"""A whole later stage, with all that it takes besides its steps: K-1's beside the baseline's."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer
from torch import Tensor

from k1.benchmark.contestants import K1, REFERENCE, rewriting_of
from k1.benchmark.timing import alternate, ratio, spread
from k1.checkpoints import save_checkpoint, stage_checkpoint
from k1.data.loader import TokenizedDataset
from k1.training.evaluation import evaluate
from k1.training.rehearsal import begin_rehearsal, write_rehearsal
from k1.training.trainer import StageTrainer

STEPS = 5  # timed together, so that little depends on a single one
DATASETS = 2  # learned at the end of the second stage, which is the one measured


def measure_stage(
    k1: StageTrainer, baseline: StageTrainer, tokenizer: Tokenizer, dataset: TokenizedDataset, written: list[Tensor],
    rounds: int,
) -> dict:  # fmt: skip
    """Stage 2 of K-1, which rehearses `written`, and of the baseline; the keys are those of `stage`, see `__main__`.

    All parts take turns, and each counts as often as a stage has it.
    """
    arguments, scores = k1.arguments, evaluate(k1.model, [dataset], k1.arguments)

    def take_steps(stage: StageTrainer) -> None:
        for _ in range(STEPS):
            stage.optimize()

    def evaluate_one() -> None:
        # Both datasets after the stage; before it test text alone, of the new one, by this and by the initial model.
        evaluate(k1.model, [dataset], arguments)
        evaluate(k1.model, [dataset], arguments, ("test",))

    def save(stage: StageTrainer, texts: list[Tensor], path: Path) -> None:
        checkpoint = stage_checkpoint(
            stage.model, tokenizer, dataset, stage.arguments,
            untrained=scores, before=scores, after=scores, history=[], written=texts,
        )  # fmt: skip
        save_checkpoint(path, checkpoint)

    with TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in (REFERENCE, K1)}
        things = {
            (REFERENCE, "training"): partial(take_steps, baseline),
            (REFERENCE, "checkpoint"): partial(save, baseline, [], files[REFERENCE]),
            (K1, "training"): partial(take_steps, k1),
            (K1, "checkpoint"): partial(save, k1, DATASETS * written, files[K1]),
            (K1, "evaluation"): evaluate_one,
            (K1, "rewriting"): rewriting_of(k1),
            (K1, "teacher"): partial(begin_rehearsal, k1.model, written, tokenizer, arguments),
            (K1, "writing"): partial(write_rehearsal, k1.model, dataset, tokenizer, arguments),
            (K1, "predicted forgetting"): partial(k1.rehearsal.predicted_forgetting, k1.model),
        }
        seconds = alternate(things, rounds, warm_up=0)
        sizes = {name: file.stat().st_size for name, file in files.items()}
    seconds[REFERENCE, "evaluation"] = seconds[K1, "evaluation"]
    rewritings = sum(map(k1.rehearsal.is_due, range(1, arguments.max_steps + 1)))
    often = {"training": arguments.max_steps / STEPS, "evaluation": DATASETS, "rewriting": rewritings}
    parts: dict[str, dict[str, list[float]]] = {REFERENCE: {}, K1: {}}
    for (name, part), values in seconds.items():
        parts[name][part] = [often.get(part, 1) * value for value in values]
    for found in parts.values():
        found["sum"] = [sum(values) for values in zip(*found.values())]
    return {
        "seconds": {name: {part: spread(values) for part, values in found.items()} for name, found in parts.items()},
        "ratio": ratio(parts[K1]["sum"], parts[REFERENCE]["sum"]),
        "checkpoint_bytes": sizes,
    }
