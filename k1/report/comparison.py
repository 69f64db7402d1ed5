"""K-1 and baseline side by side: all figures of the report, as plain values."""

from dataclasses import replace
from pathlib import Path

from k1.arguments import Arguments
from k1.checkpoints.contents import Checkpoint
from k1.checkpoints.storage import load_checkpoint, restore_model
from k1.data.loader import load_datasets
from k1.data.tokenizer import load_tokenizer
from k1.errors import K1Error
from k1.model import configure_torch
from k1.presets import FILES, SCRIPTS
from k1.report.criteria import judge
from k1.report.generation import continue_test_text
from k1.report.metrics import (
    accuracy_matrix,
    average_forgetting_percent,
    backward_transfer,
    distinct_2,
    forgetting_percent,
    forward_transfer,
    mean,
    selection_of,
    trigram_shares,
)


def load_run(models_dir: Path, method: str) -> list[Checkpoint]:
    """The three checkpoints of a method; raises `K1Error` where one is missing or they are not of one run."""
    run = [load_checkpoint(models_dir / file, method, stage) for stage, file in enumerate(FILES[method], start=1)]
    for stage in (1, 2):
        earlier, later = run[stage - 1], run[stage]
        known = [{name: row.get(name) for name in old} for row, old in zip(later.evaluations, earlier.evaluations)]
        if known != earlier.evaluations or later.tokenizer != earlier.tokenizer:
            raise K1Error(
                f"{models_dir / FILES[method][stage]} does not continue {models_dir / FILES[method][stage - 1]}, "
                f"which was trained again since; run {SCRIPTS[method][stage]} with --overwrite"
            )
    return run


def require_comparable(k1: list[Checkpoint], baseline: list[Checkpoint]) -> None:
    """Raise `K1Error` that names what differs where a comparison of the two runs would not be fair."""

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
        "batch size": settings("batch_size", "gradient_accumulation_steps"),
        "warm-up or clipping": settings("warmup_steps", "max_grad_norm"),
        "weight decay": lambda run: [run[0].arguments["weight_decay"]],
        "precision": settings("precision"),
        "evaluated text": settings("evaluation_tokens", "seq_length"),
    }  # fmt: skip
    different = [label for label, value in must_agree.items() if value(k1) != value(baseline)]
    if different:
        raise K1Error(
            f"K-1 and baseline cannot be compared, they differ in: {', '.join(different)}; "
            f"train both with the same settings (make does)"
        )


def generation_quality(runs: dict[str, list[Checkpoint]], device: str) -> dict:
    """How well continuations of test text fit each dataset, right after its stage and at the end.

    Returns method -> dataset -> `own` and `final` -> `trigram_share` and
    `distinct_2` (see `k1.report.metrics`). Prompts and seed are the same for both
    methods and both times.
    """
    final = runs["k1"][-1]
    tokenizer = load_tokenizer(final.tokenizer)
    datasets = load_datasets(final.datasets, tokenizer, replace(Arguments(**final.arguments), device=device))
    quality: dict = {method: {dataset.name: {} for dataset in datasets} for method in runs}
    for index, dataset in enumerate(datasets):
        continuations = {
            (method, when): continue_test_text(
                restore_model(checkpoint, device, fold=True), tokenizer, dataset, final.seed
            )
            for method, run in runs.items()
            for when, checkpoint in (("own", run[index]), ("final", run[-1]))
        }
        shares = trigram_shares(list(continuations.values()), dataset.training_text())
        for ((method, when), texts), share in zip(continuations.items(), shares):
            quality[method][dataset.name][when] = {"trigram_share": share, "distinct_2": distinct_2(texts)}
    return quality


def results_of(run: list[Checkpoint], generation: dict) -> dict:
    """All figures of one method's run, as plain values; `generation` is its part of `generation_quality`."""
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
        "selection": selection_of(run),
        "history": [
            {"stage": checkpoint.stage, "step": entry["step"], "loss": entry["loss"]}
            for checkpoint in run
            for entry in checkpoint.history
        ],
        "learning_rates": [checkpoint.arguments["learning_rate"] for checkpoint in run],
    }


def build_report(models_dir: Path, device: str) -> dict:
    """Everything the report shows, as plain values; raises `K1Error` where the runs cannot be compared."""
    runs = {method: load_run(models_dir, method) for method in FILES}
    require_comparable(runs["k1"], runs["baseline"])
    final = runs["k1"][-1]
    configure_torch(final.arguments["threads"])
    generation = generation_quality(runs, device)
    models = {method: results_of(run, generation[method]) for method, run in runs.items()}
    return {
        "models": models,
        "criteria": judge(models["k1"], models["baseline"]),
        "datasets": final.datasets,
        "seed": final.seed,
        "preset": final.arguments["preset"],
        "parameters": sum(tensor.numel() for tensor in runs["baseline"][-1].model.values()),
        "versions": final.versions,
    }
