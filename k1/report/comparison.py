"""K-1 and the baselines side by side: all figures of the report and the four success criteria, as plain values."""

from pathlib import Path

from k1.checkpoints import Checkpoint, load_checkpoint
from k1.config import SETTINGS, Arguments
from k1.data.loader import TokenizedDataset, load_datasets
from k1.data.sources import dataset_labels
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error
from k1.experiment import ARM_FILES, ARM_KINDS, ARMS, FILES, SCRIPTS
from k1.model import count_parameters, empty_model
from k1.report.metrics import (
    MIN_QUALITY_KEPT,
    accuracy_matrix,
    average_forgetting_percent,
    backward_transfer,
    final_loss,
    forgetting_percent,
    forward_transfer,
    keeps_quality,
    mean,
)
from k1.report.quality import GenerationTest
from k1.report.tables import SCORES

MAX_FORGETTING_PERCENT = 25.0
# Settings in which arms may differ; all others must agree in every stage. Those of updates and of rehearsal must
# agree with K-1's for the arm that shares them.
FREE = {"method", "preset", "dataset_name", "data_source", "max_documents", "learning_rate", "device", "threads"}
SHARED = {
    "sparse": {"update_fraction", "policy"},
    "baseline_rehearsal": {"forgetting_budget", *(name for name in SETTINGS if name.startswith("rehearsal"))},
}


def load_run(models_dir: Path, arm: str) -> list[Checkpoint]:
    """The checkpoints of an arm, by stage; raises `K1Error` if one is missing or they are not of one run."""
    files, scripts = ARM_FILES[arm], SCRIPTS[arm]
    method, _ = ARM_KINDS[arm]
    run = [load_checkpoint(models_dir / file, method, stage) for stage, file in enumerate(files, start=1)]
    for stage in range(1, len(run)):
        earlier, later = run[stage - 1], run[stage]
        known = [{name: row.get(name) for name in old} for row, old in zip(later.evaluations, earlier.evaluations)]
        if known != earlier.evaluations or later.tokenizer != earlier.tokenizer:
            raise K1Error(
                f"{models_dir / files[stage]} does not continue {models_dir / files[stage - 1]}, "
                f"which was trained again since; run {scripts[stage]} with --overwrite"
            )
    return run


def require_comparable(k1: list[Checkpoint], other: list[Checkpoint], arm: str) -> None:
    """Raise `K1Error` that names what differs if a comparison of K-1's run with the other, of `arm`, is not fair."""
    free = FREE.union(*(names for shared_by, names in SHARED.items() if shared_by != arm))

    def traits(run: list[Checkpoint]) -> dict[str, object]:
        final, stages = run[-1], [checkpoint.arguments for checkpoint in run]
        return {
            "data": [(dataset["name"], dataset["fingerprint"]) for dataset in final.datasets],
            "tokenizer": final.tokenizer,
            "architecture": final.model_config,
            "pretrained model": [checkpoint.start and checkpoint.start["sha256"] for checkpoint in run],
            "tokens a step": [Arguments(**stage).tokens_per_step for stage in stages],
            **{name: [stage[name] for stage in stages] for name in stages[0] if name not in free},
        }

    ours, theirs = traits(k1), traits(other)
    if different := [label for label in ours if ours[label] != theirs[label]]:
        raise K1Error(
            f"K-1 and {ARMS[arm]} cannot be compared, they differ in: {', '.join(different)}; "
            f"train both with the same settings (make does)"
        )


def load_runs(models_dir: Path) -> dict[str, list[Checkpoint]]:
    """The checkpoints of the baseline, of K-1, and of the two other arms if they were trained.

    Raises `K1Error` if the runs cannot be compared.
    """
    arms = [arm for arm in ARMS if arm in FILES or (models_dir / ARM_FILES[arm][-1]).exists()]
    runs = {arm: load_run(models_dir, arm) for arm in arms}
    for arm, run in runs.items():
        require_comparable(runs["k1"], run, arm)
    return runs


def results_of(run: list[Checkpoint], generation: dict) -> dict:
    """All figures of one arm's run, as plain values; `generation` is what `GenerationTest.quality` returns."""
    final, accuracy, loss = run[-1], accuracy_matrix(run[-1]), accuracy_matrix(run[-1], "loss")
    names = [dataset["name"] for dataset in final.datasets]
    entries = [(checkpoint.stage, entry) for checkpoint in run for entry in checkpoint.history]
    return {
        "own": {name: row[name]["test"] for name, row in zip(names, final.evaluations)},
        "final": {name: final.evaluations[-1][name]["test"] for name in names},
        "mean_final_loss": final_loss(loss),
        "accuracy_matrix": accuracy,
        "loss_matrix": loss,
        "forgetting_percent": dict(zip(names, forgetting_percent(accuracy).tolist())),
        "average_forgetting_percent": average_forgetting_percent(accuracy),
        "backward_transfer": backward_transfer(accuracy),
        "forward_transfer": forward_transfer(accuracy),
        "generation": generation,
        "updated_fraction": mean([entry["updated_fraction"] for _, entry in entries]),
        "tokens_per_second": mean([entry["tokens_per_second"] for _, entry in entries]),
        "predicted_forgetting": [checkpoint.predicted_forgetting for checkpoint in run],
        "history": [{"stage": stage, "step": entry["step"], "loss": entry["loss"]} for stage, entry in entries],
        "learning_rates": [checkpoint.arguments["learning_rate"] for checkpoint in run],
    }


def judge(k1: dict, baseline: dict) -> list[dict]:
    """The four success criteria, each with `criterion`, whether it is `met`, and `figures`, the values as text."""
    name = next(iter(k1["own"]))
    ours, theirs = ((arm["forgetting_percent"][name], arm["average_forgetting_percent"]) for arm in (k1, baseline))
    labels = dict(zip(k1["own"], dataset_labels(k1["own"])))
    first, threshold = labels[name], f"{MAX_FORGETTING_PERCENT:g}% of {labels[name]}"
    # Nothing follows the last dataset, of which all is kept.
    kept = {
        labels[name]: {SCORES[score][0]: values["interval"][0] for score, values in scores.items()}
        for name, scores in list(k1["generation"].items())[:-1]
    }
    found = [
        (
            f"1. K-1 keeps dataset 1: it forgets at most {threshold}",
            ours[0] <= MAX_FORGETTING_PERCENT, f"{ours[0]:.1f}%",
        ),
        (
            f"2. The baseline does not: it forgets more than {threshold}",
            theirs[0] > MAX_FORGETTING_PERCENT, f"{theirs[0]:.1f}%",
        ),
        (
            f"3. K-1's generated text stays good: at least {MIN_QUALITY_KEPT:.0%} of each score is kept, "
            "by the lower end of its 95% interval",
            keeps_quality(k1["generation"]),
            "; ".join(
                f"{label} " + ", ".join(f"{score} {share:.0%}" for score, share in shares.items())
                for label, shares in kept.items()
            ),
        ),
        (
            f"4. K-1 forgets less than the baseline, of {first} and on average",
            all(mine < other for mine, other in zip(ours, theirs)),
            f"{first} {ours[0]:.1f}% against {theirs[0]:.1f}%, average {ours[1]:.1f}% against {theirs[1]:.1f}%",
        ),
    ]  # fmt: skip
    return [dict(zip(("criterion", "met", "figures"), item)) for item in found]


def datasets_of(final: Checkpoint) -> list[TokenizedDataset]:
    """The datasets that `final` was trained on, read again; raises `K1Error` if their text is no longer the same."""
    return load_datasets(final.datasets, load_tokenizer(final.tokenizer), Arguments(**final.arguments))


def report_of(
    models_dir: Path, runs: dict[str, list[Checkpoint]], datasets: list[TokenizedDataset], device: str
) -> dict:
    """Everything the report shows of `runs`, which `load_runs` found in `models_dir`, as plain values."""
    final, files = runs["k1"][-1], {arm: [models_dir / file for file in ARM_FILES[arm]] for arm in runs}
    test = GenerationTest(datasets, load_tokenizer(final.tokenizer), final.arguments["seq_length"])
    qualities = test.qualities(files, device, final.arguments["threads"], final.seed)
    models = {arm: results_of(run, qualities[arm]) for arm, run in runs.items()}
    return {
        "models": models,
        "criteria": judge(models["k1"], models["baseline"]),
        "judges": test.describe(),
        "datasets": final.datasets,
        "seed": final.seed,
        "preset": final.arguments["preset"],
        "parameters": count_parameters(empty_model(final.model_config)),
        "start": final.start,
        "versions": final.versions,
    }
