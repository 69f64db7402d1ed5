"""Runs of the study, in the same steps as the scripts; in a folder that records them, so that none is repeated."""

import json
import sys
import time
from concurrent.futures import as_completed
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from matplotlib.figure import Figure
from tqdm import tqdm

from k1.checkpoints import Evaluation, load_checkpoint, save_checkpoint
from k1.config import Arguments, settings_of
from k1.data.loader import DataLoader, TokenizedDataset
from k1.data.sources import dataset_labels
from k1.data.tokenizer import load_tokenizer
from k1.errors import Diverged, K1Error
from k1.files import lock, write_text
from k1.model import build_model, configure_torch
from k1.parallel import process_pool
from k1.report.metrics import matrix_of, mean
from k1.report.plots import write_figure
from k1.stages import Learner
from k1.study.methods import METHODS, Stage, mixture
from k1.training.evaluation import evaluate
from k1.training.trainer import StageTrainer


def open_results(out: Path, settings: dict) -> dict:
    """What the folder `out` has recorded so far; the folder is made, and locked against other processes.

    Raises `K1Error` if it was recorded with other `settings`, or the folder cannot be made.
    """
    path = out / "results.json"
    results = {"settings": settings, "runs": {}}
    try:
        if path.exists():
            results = json.loads(path.read_text())
        recorded = results["settings"]
        different = [name for name in {**settings, **recorded} if recorded.get(name) != settings.get(name)]
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, LookupError) as error:
        raise K1Error(f"{path} cannot be read or written as results of a study ({error}); choose another --out")
    if different:
        raise K1Error(f"{path} was recorded with another {', '.join(different)}; choose another --out")
    lock(path)
    return results


def write_results(results: dict, out: Path) -> None:
    """Write what is recorded so far into the folder `out`."""
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")


def show(out: Path, tables: str, picture: str, figure: Figure) -> None:
    """Write `tables` to results.md and to stdout, and `figure` to the file `picture` of the folder `out`."""
    write_text(out / "results.md", tables + "\n")
    write_figure(out / picture, figure)
    print(tables)


def name_of(run: dict) -> str:
    """How a run, a method at one `seed`, `learning_rate` and `setting`, is called."""
    setting = "".join(f"-{name}{value:g}" for name, value in run["setting"].items())
    return f"{run['method']}-seed{run['seed']}-{run['learning_rate']:g}{setting}"


def stage_arguments(script: str, stage: int, settings: dict, **flags: Any) -> Arguments:
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
    learner.learn(text.tokenize(learner.tokenizer), arguments, lambda *stage: StageTrainer(*stage).run(progress=False))
    assert learner.checkpoint
    save_checkpoint(output, learner.checkpoint)


def learn_later_datasets(run: dict, first: Path, settings: dict) -> dict:
    """Learn datasets 2, 3 and so on as the method of `run` does, from the model in the file `first`.

    Returns the record: scores of all datasets so far after each stage, as matrices (`k1.report.metrics`) of
    accuracy and loss on test text and of loss on validation text; the share of parameters that a step updated; seconds.
    """
    started = time.perf_counter()
    method, names = METHODS[run["method"]], settings["dataset_names"]
    previous = load_checkpoint(first)
    stages = [
        stage_arguments(
            method.script, stage, settings, seed=previous.seed, learning_rate=run["learning_rate"],
            rehearsal=method.rehearsal, **method.flags,
        )
        for stage in range(2, len(names) + 1)
    ]  # fmt: skip
    configure_torch(stages[0].threads)
    datasets = [tokenized(name, previous.tokenizer, settings["preset"], settings["data_source"]) for name in names]
    evaluations: list[Evaluation] = previous.evaluations[:1]
    history: list[dict] = []
    if method.joint:
        # From fresh weights, with as many tokens of each as the stages read; the model after each is that at the end.
        model = build_model(previous.model_config, previous.seed, stages[-1].device)
        steps = [previous.arguments["max_steps"], *(arguments.max_steps for arguments in stages)]
        arguments = replace(stages[-1], max_steps=sum(steps))
        joint = mixture(datasets, [count / sum(steps) for count in steps], arguments)
        history = StageTrainer(model, joint, arguments).run(progress=False)
        evaluations = [evaluate(model, datasets, arguments)] * len(datasets)
    else:
        learner = Learner.of(previous, stages[0], datasets[:1])
        stage = partial(Stage, learned=learner.learned, importance=[])
        for arguments, dataset in zip(stages, datasets[1:], strict=True):
            history += learner.train(
                dataset, arguments, lambda *trained: method.training(stage(*trained), **run["setting"]),
                is_last=arguments is stages[-1],
            )[0]  # fmt: skip
            evaluations.append(evaluate(learner.model, learner.learned, arguments))

    # Row 0 is not measured.
    matrix = partial(matrix_of, [{}, *evaluations])
    return {
        "datasets": dataset_labels(evaluations[-1]),
        "accuracy_matrix": matrix("accuracy"),
        "loss_matrix": matrix("loss"),
        "validation_loss_matrix": matrix("loss", "validation"),
        "updated_fraction": mean([entry["updated_fraction"] for entry in history]),
        "seconds": time.perf_counter() - started,
    }


def execute(run: dict, out: Path, settings: dict) -> dict:
    """The record of `run`; a training that diverges is recorded as such, any other `K1Error` names the run.

    What it continues, a model of dataset 1 at the preset's learning rate, is trained if the folder `out` lacks it.
    """
    script = METHODS[run["method"]].start
    first = out / "first" / f"{script}-seed{run['seed']}.pt"
    # Other runs continue it too.
    with FileLock(first.with_suffix(".lock")):
        if not first.exists():
            learn_first_dataset(script, run["seed"], first, settings)
    try:
        return run | learn_later_datasets(run, first, settings)
    except Diverged as error:
        return run | {"failed": str(error)}
    except K1Error as error:
        raise K1Error(f"run {name_of(run)} failed: {error}")


def execute_all(runs: list[dict], results: dict, out: Path, jobs: int) -> list[dict]:
    """Execute the `runs` that `results` lacks, `jobs` at a time, and record each as it ends.

    Returns the records of the runs that finished, and names the others on stderr; raises `K1Error` if none did.
    """
    records, names = results["runs"], list(map(name_of, runs))
    (out / "first").mkdir(exist_ok=True)
    pool = process_pool(jobs, __name__)
    try:
        futures = {
            pool.submit(execute, run, out, results["settings"]): name
            for name, run in zip(names, runs)
            if name not in records
        }
        done = len(runs) - len(futures)
        for future in tqdm(as_completed(futures), total=len(runs), initial=done, unit="run", file=sys.stderr):
            records[futures[future]] = future.result()
            write_results(results, out)
    finally:
        pool.shutdown(cancel_futures=True)
    for name in names:
        if "failed" in records[name]:
            print(f"warning: {name} is left out: {records[name]['failed']}", file=sys.stderr)
    if finished := [records[name] for name in names if "failed" not in records[name]]:
        return finished
    raise K1Error("no run finished; choose lower --learning_rates")
