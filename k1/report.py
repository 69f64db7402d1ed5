"""python3 -m k1.report: K-1 and baseline side by side, and the verdict on the four success criteria."""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from k1.checkpoint import FILES, SCRIPTS, Checkpoint, load_checkpoint, restore_model
from k1.config import Arguments, resolve_device
from k1.data import load_datasets
from k1.errors import K1Error, command
from k1.files import write_text
from k1.generate import continue_test_text
from k1.metrics import (
    MAX_FORGETTING_PERCENT,
    MIN_QUALITY_KEPT,
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
from k1.model import configure_torch
from k1.report_plots import plot_report
from k1.tables import LABELS, dataset_label, format_table
from k1.tokenizer import load_tokenizer


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
    `distinct_2` (see `k1.metrics`). Prompts and seed are the same for both
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


def judge(k1: dict, baseline: dict) -> list[dict]:
    """The four success criteria, each with `criterion`, `met`, `values` and `figures` (the values as text)."""
    name = next(iter(k1["own"]))
    ours, theirs = k1["forgetting_percent"][name], baseline["forgetting_percent"][name]
    first = dataset_label(name)
    kept = {name: quality_kept(scores) for name, scores in k1["generation"].items()}
    averages = k1["average_forgetting_percent"], baseline["average_forgetting_percent"]
    return [
        {
            "criterion": f"1. K-1 keeps dataset 1: it forgets at most {MAX_FORGETTING_PERCENT:g}% of {first}",
            "met": ours <= MAX_FORGETTING_PERCENT,
            "values": {"k1": ours, "threshold": MAX_FORGETTING_PERCENT},
            "figures": f"{ours:.1f}%",
        },
        {
            "criterion": f"2. The baseline does not: it forgets more than {MAX_FORGETTING_PERCENT:g}% of {first}",
            "met": theirs > MAX_FORGETTING_PERCENT,
            "values": {"baseline": theirs, "threshold": MAX_FORGETTING_PERCENT},
            "figures": f"{theirs:.1f}%",
        },
        {
            "criterion": f"3. K-1's generated text stays good: at least {MIN_QUALITY_KEPT:.0%} of each score is kept",
            "met": all(min(shares.values()) >= MIN_QUALITY_KEPT for shares in kept.values()),
            "values": {"k1": kept, "threshold": MIN_QUALITY_KEPT},
            "figures": "; ".join(
                f"{dataset_label(name)} {shares['trigram_share']:.0%} of trigram share, "
                f"{shares['distinct_2']:.0%} of distinct-2"
                for name, shares in kept.items()
            ),
        },
        {
            "criterion": f"4. K-1 forgets less than the baseline, of {first} and on average",
            "met": ours < theirs and averages[0] < averages[1],
            "values": {"k1": [ours, averages[0]], "baseline": [theirs, averages[1]]},
            "figures": f"{first} {ours:.1f}% against {theirs:.1f}%, "
            f"average {averages[0]:.1f}% against {averages[1]:.1f}%",
        },
    ]


def quality_kept(scores: dict) -> dict[str, float]:
    """Final score / score after the dataset's own stage, for each score of generated text."""
    return {score: scores["final"][score] / value if value else 1.0 for score, value in scores["own"].items()}


def format_report(report: dict) -> str:
    """The report as Markdown text."""
    models = report["models"]
    names = [dataset["name"] for dataset in report["datasets"]]

    def arrow(result: dict, name: str, score: str, scale: float, digits: int) -> str:
        own, final = scale * result["own"][name][score], scale * result["final"][name][score]
        return f"{own:.{digits}f} -> {final:.{digits}f}"

    def table(cell, last_column: str = "", last_cell=None) -> str:
        head = ["Model", *map(dataset_label, names), *([last_column] if last_cell else [])]
        rows = [
            [LABELS[method], *(cell(result, name) for name in names), *([last_cell(result)] if last_cell else [])]
            for method, result in models.items()
        ]
        return format_table([head, *rows])

    def average_forgetting(result: dict) -> str:
        return f"{result['average_forgetting_percent']:.1f}"

    def average_loss(result: dict) -> str:
        return f"{result['mean_final_loss']:.3f}"

    def generation(result: dict, name: str) -> str:
        own, final = result["generation"][name]["own"], result["generation"][name]["final"]
        return ", ".join(f"{own[score]:.3f} -> {final[score]:.3f}" for score in ("trigram_share", "distinct_2"))

    transfer = [["Model", "Backward transfer", "Forward transfer", "Parameters changed per step %"]]
    for method, result in models.items():
        percent = [100 * result[name] for name in ("backward_transfer", "forward_transfer", "updated_fraction")]
        transfer.append([LABELS[method], f"{percent[0]:+.2f}", f"{percent[1]:+.2f}", f"{percent[2]:.2f}"])

    chosen = models["k1"]["selection"]
    selection = [["Module group", *map(dataset_label, names), "Of stage 2, again in 3"]]
    for group, shares in {**chosen["share"], "all": chosen["share_overall"]}.items():
        values = [*shares, chosen["overlap_overall"] if group == "all" else chosen["overlap"][group]]
        selection.append([group, *("-" if value is None else f"{100 * value:.1f}" for value in values)])

    sections = [
        "Next-token accuracy on test text in %: after the dataset's own stage -> at the end",
        table(lambda result, name: arrow(result, name, "accuracy", 100, 1), "Forgetting %", average_forgetting),
        "Nats per token on test text: after the dataset's own stage -> at the end",
        table(lambda result, name: arrow(result, name, "loss", 1, 3), "Mean at the end", average_loss),
        "Forgetting: share of the accuracy after the dataset's own stage that is lost at the end, in %",
        table(lambda result, name: f"{result['forgetting_percent'][name]:.1f}", "Average", average_forgetting),
        "Transfer in percentage points of accuracy, and the measured share of parameters that a step changes",
        format_table(transfer),
        "Where K-1's updates go: share of each module group that a step changes, in %, and of what stage 2 changed the "
        f"share that stage 3 changed too (by chance {100 * chosen['overlap_by_chance']:.0f}%)",
        format_table(selection),
        "Generated text: share of word trigrams found in the training text, and distinct-2",
        table(generation),
        "\n".join(
            f"{item['criterion']}: {'met' if item['met'] else 'NOT MET'} ({item['figures']})"
            for item in report["criteria"]
        ),
        "\n".join(
            f"{dataset_label(dataset['name'])}: {dataset['source']} text, fingerprint {dataset['fingerprint'][:12]}, "
            f"{dataset['tokens']['train']:,} training tokens"
            for dataset in report["datasets"]
        ),
        f"{report['parameters']:,} parameters, seed {report['seed']}, preset {report['preset']}",
    ]
    return "\n\n".join(sections)


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


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m k1.report", description=__doc__, allow_abbrev=False)
    parser.add_argument("--models_dir", type=Path, default=Path("models"), help="folder of the checkpoints")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the same numbers to FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also draw the figures as PNG into DIR")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    arguments = parser.parse_args()
    if arguments.json and (arguments.json.is_dir() or not arguments.json.absolute().parent.is_dir()):
        parser.error(f"--json {arguments.json} is not a file in an existing folder")
    if arguments.plots:
        try:
            arguments.plots.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=arguments.plots):
                pass
        except OSError as error:
            parser.error(f"--plots {arguments.plots} is not a folder that can be written ({error.strerror})")
    report = build_report(arguments.models_dir, resolve_device(arguments.device))
    print(format_report(report), flush=True)
    if arguments.json:
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")
    if arguments.plots:
        plot_report(report, arguments.plots)


if __name__ == "__main__":
    main()
