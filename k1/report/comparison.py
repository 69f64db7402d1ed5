"""K-1 and the baselines side by side: all figures of the report, as plain values."""

from pathlib import Path

from k1.checkpoints.contents import Checkpoint
from k1.checkpoints.storage import load_checkpoint
from k1.config import Arguments
from k1.errors import K1Error
from k1.experiment import ARM_FILES, ARM_KINDS, ARMS, FILES, SCRIPTS
from k1.model import configure_torch, count_parameters, empty_model
from k1.report.criteria import judge
from k1.report.metrics import (
    accuracy_matrix,
    average_forgetting_percent,
    backward_transfer,
    forgetting_percent,
    forward_transfer,
    mean,
)
from k1.report.quality import generation_quality, prepare_test


def arms_in(models_dir: Path) -> list[str]:
    """The arms to report: the baseline, K-1, and of the two others those that were trained."""
    return [arm for arm in ARMS if arm in FILES or (models_dir / ARM_FILES[arm][-1]).exists()]


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
    """Raise `K1Error` that names what differs if a comparison of the two runs would not be fair."""

    def settings(*names: str):
        return lambda run: [[checkpoint.arguments[name] for name in names] for checkpoint in run]

    must_agree = {
        "data": lambda run: [(dataset["name"], dataset["fingerprint"]) for dataset in run[-1].datasets],
        "tokenizer": lambda run: run[-1].tokenizer,
        "seed": lambda run: [checkpoint.seed for checkpoint in run],
        "token budget": lambda run: [
            [Arguments(**checkpoint.arguments).tokens_per_step, checkpoint.arguments["max_steps"]]
            for checkpoint in run
        ],
        "architecture": lambda run: run[-1].model_config,
        "pretrained model": lambda run: [checkpoint.start and checkpoint.start["sha256"] for checkpoint in run],
        "batch size": settings("batch_size", "gradient_accumulation_steps"),
        "warm-up or clipping": settings("warmup_steps", "max_grad_norm"),
        "weight decay": settings("weight_decay"),
        "precision": settings("precision"),
        "compilation": settings("compile"),
        "evaluated text": settings("evaluation_tokens", "seq_length"),
    }  # fmt: skip
    if arm == "baseline_rehearsal":
        must_agree["rehearsal"] = settings(
            "rehearsal", "rehearsal_sequences", "rehearsal_interval", "rehearsal_weight", "rehearsal_on_top",
            "forgetting_budget",
        )  # fmt: skip
    if arm == "sparse":
        must_agree["sparse updates"] = settings("update_fraction", "policy")
    different = [label for label, value in must_agree.items() if value(k1) != value(other)]
    if different:
        raise K1Error(
            f"K-1 and {ARMS[arm]} cannot be compared, they differ in: {', '.join(different)}; "
            f"train both with the same settings (make does)"
        )


def results_of(run: list[Checkpoint], generation: dict) -> dict:
    """All figures of one method's run, as plain values; `generation` is what `generation_quality` returns."""
    final = run[-1]
    matrix = accuracy_matrix(final)
    names = [dataset["name"] for dataset in final.datasets]
    own = [final.evaluations[i][name]["test"] for i, name in enumerate(names)]
    end = [final.evaluations[-1][name]["test"] for name in names]
    entries = [entry for checkpoint in run for entry in checkpoint.history]
    return {
        "own": dict(zip(names, own)),
        "final": dict(zip(names, end)),
        "mean_final_loss": mean([scores["loss"] for scores in end]),
        "accuracy_matrix": matrix,
        "loss_matrix": accuracy_matrix(final, score="loss"),
        "forgetting_percent": dict(zip(names, forgetting_percent(matrix))),
        "average_forgetting_percent": average_forgetting_percent(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        "generation": generation,
        "updated_fraction": mean([entry["updated_fraction"] for entry in entries]),
        "tokens_per_second": mean([entry["tokens_per_second"] for entry in entries]),
        "predicted_forgetting": [checkpoint.predicted_forgetting for checkpoint in run],
        "history": [
            {"stage": checkpoint.stage, "step": entry["step"], "loss": entry["loss"]}
            for checkpoint in run
            for entry in checkpoint.history
        ],
        "learning_rates": [checkpoint.arguments["learning_rate"] for checkpoint in run],
    }


def load_runs(models_dir: Path) -> dict[str, list[Checkpoint]]:
    """The checkpoints of every arm; raises `K1Error` if the runs cannot be compared."""
    runs = {arm: load_run(models_dir, arm) for arm in arms_in(models_dir)}
    for arm, run in runs.items():
        require_comparable(runs["k1"], run, arm)
    return runs


def report_of(runs: dict[str, list[Checkpoint]], device: str) -> dict:
    """Everything the report shows of runs that `load_runs` has found comparable, as plain values."""
    final = runs["k1"][-1]
    configure_torch(final.arguments["threads"])
    test = prepare_test(final, device)
    models = {arm: results_of(run, generation_quality(run, test, device)) for arm, run in runs.items()}
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
