"""What goes on between the trainings of two stages: importance, bases, rehearsed text, evaluation, checkpoints."""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from k1.arguments import Arguments
from k1.benchmark.setting import SHAPES, Setting
from k1.checkpoints.contents import stage_checkpoint
from k1.checkpoints.storage import save_checkpoint
from k1.sparse.eigenbasis import enter_eigenbasis
from k1.sparse.importance import add_importance, fisher_information, sample_batches
from k1.sparse.rehearsal import begin_rehearsal, write_rehearsal
from k1.sparse.selection import Tensors
from k1.training.evaluation import evaluate
from k1.training.loop import train

# Where the stages themselves are not measured, a later one needs something to go on from, however rough.
ROUGH_BATCHES = 2


class Stopwatch:
    """Calls functions and keeps in `seconds` how long each took, by what it does."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, what: str, function: Callable, *arguments) -> object:
        started = time.perf_counter()
        result = function(*arguments)
        self.seconds[what] = time.perf_counter() - started
        return result


def first_stage(setting: Setting) -> dict:
    """Write what a later stage of K-1 goes on from, and where the shape says so measure all that goes into it.

    Training itself is left out: the time of what is measured does not depend on
    what a model has learned. Returns `seconds` of each part, `checkpoint_bytes` of
    both methods, and `rewritings`, how often a later stage writes its text anew;
    nothing where the shape does not measure stages.
    """
    setting.begin()
    measures = SHAPES[setting.shape].stages
    arguments, later = setting.arguments("k1", 1), setting.arguments("k1", 2)
    if not measures:
        arguments, later = (replace(each, importance_batches=ROUGH_BATCHES) for each in (arguments, later))
    model, dataset, watch = setting.fresh_model(), setting.dataset, Stopwatch()
    sizes = {}
    if measures:
        # A checkpoint without a history is refused.
        with redirect_stderr(io.StringIO()):
            history = train(model, dataset, replace(arguments, max_steps=1))
        scores = watch("evaluation", evaluate, model, [dataset], arguments)
        watch("evaluation on test text", evaluate, model, [dataset], arguments, ("test",))
        written = watch("writing rehearsed text", write_rehearsal, model, dataset, setting.tokenizer, arguments)
        trained = {"evaluation": scores, "history": history, "written": written}
        sizes["baseline"] = checkpoint_bytes(setting, setting.arguments("baseline", 1), model, trained, watch)
    sample = sample_batches(dataset, arguments)
    watch("eigenbasis", enter_eigenbasis, model, sample, arguments.max_basis_dim)
    importance = watch("importance", fisher_information, model, sample)
    responsibility = fisher_information(model, sample_batches(dataset, later))
    state = {"model": model.state_dict(), "importance": importance, "responsibility": responsibility}
    torch.save(state, setting.first_stage)
    if not measures:
        return {}
    watch("summing importance", add_importance, importance, responsibility)
    watch("evaluation in the eigenbasis", evaluate, model, [dataset], arguments)
    rehearsal = begin_rehearsal(model, written, setting.tokenizer, later)
    watch("rewriting rehearsed text", rehearsal.rewrite, model, 1)
    rewritings = sum(map(rehearsal.is_due, range(1, later.max_steps + 1)))
    sizes["k1"] = checkpoint_bytes(setting, arguments, model, trained, watch, importance)
    return {"seconds": watch.seconds, "checkpoint_bytes": sizes, "rewritings": rewritings}


def checkpoint_bytes(
    setting: Setting,
    arguments: Arguments,
    model: PreTrainedModel,
    trained: dict,
    watch: Stopwatch,
    importance: Tensors | None = None,
) -> int:
    """The size of the checkpoint of a first stage, which is left in the folder of `setting`.

    `trained` has the `evaluation` and `history` of the stage and the text that it has `written`.
    """
    path = setting.checkpoint(arguments.method)
    scores = trained["evaluation"]

    def save() -> None:
        checkpoint = stage_checkpoint(
            model, setting.tokenizer, setting.dataset, arguments,
            untrained=scores, before=scores, after=scores, history=trained["history"], importance=importance,
            written=trained["written"],
        )  # fmt: skip
        save_checkpoint(path, checkpoint)

    watch(f"checkpoint of {arguments.method}", save)
    return path.stat().st_size


def stage_seconds(seconds: dict[str, float], rewritings: int, step: dict[str, float], steps: tuple[int, ...]) -> dict:
    """Seconds of the first two stages of both methods: `training`, `rewriting`, and `boundaries` by kind.

    `seconds` and `rewritings` are those of `first_stage`, `step` the seconds of a
    step of the baseline, of K-1's first stage (`k1_first`) and of its later ones (`k1_later`).
    """
    plain, folded = seconds["evaluation"], seconds["evaluation in the eigenbasis"]
    test = seconds["evaluation on test text"]
    saved = {method: seconds[f"checkpoint of {method}"] for method in ("k1", "baseline")}
    return {
        "K-1, stage 1": {
            "training": steps[0] * step["k1_first"],
            "rewriting": 0.0,
            "boundaries": {
                "evaluation": test + folded, "eigenbasis": seconds["eigenbasis"], "importance": seconds["importance"],
                "rehearsed text": seconds["writing rehearsed text"], "checkpoint": saved["k1"],
            },
        },
        "K-1, stage 2": {
            "training": steps[1] * step["k1_later"],
            "rewriting": rewritings * seconds["rewriting rehearsed text"],
            # Untrained and before the stage on test text alone, and after it on both datasets.
            "boundaries": {
                "evaluation": 2 * test + 2 * folded, "eigenbasis": 0.0,
                "importance": 2 * seconds["importance"] + seconds["summing importance"],
                "rehearsed text": seconds["writing rehearsed text"], "checkpoint": saved["k1"],
            },
        },
        **{
            f"baseline, stage {stage}": {
                "training": steps[stage - 1] * step["baseline"],
                "rewriting": 0.0,
                "boundaries": {
                    "evaluation": stage * (test + plain), "eigenbasis": 0.0, "importance": 0.0,
                    # For the baseline with rehearsal, which goes on from the first stage.
                    "rehearsed text": seconds["writing rehearsed text"] if stage == 1 else 0.0,
                    "checkpoint": saved["baseline"],
                },
            }
            for stage in (1, 2)
        },
    }  # fmt: skip
