"""How the settings were chosen: the recorded sweep of learning rates and K-1's tuning runs, as tables."""

import json
from collections.abc import Callable
from itertools import groupby

from k1.presets import PRESETS
from k1.report.metrics import mean
from k1.report.tables import dataset_label, format_table
from k1.study.tables import paragraph

PRESET = PRESETS["quick"]
SWEPT = {"baseline": "baseline", "k1": "51% by gradient"}
# What a recorded setting is called in the table; a record with another setting has no row.
VARIATIONS = {
    "basis std": "standard basis", "basis also of the embedding": "eigenbasis of the embedding too",
    "mask all": "all parameters", "wd 0.1": "weight decay 0.1",
    "mode prox": "proximal step", "f s80x8": "sampled labels", "f s640x1": "sampled labels, single sequences",
    "f d640x1": "single sequences", "pow 0.5": "Omega to the power 0.5", "pow 1.3": "Omega to the power 1.3",
    "add 0.1": "uniform part 0.1 added to Omega", "om norm": "each Omega normalised", "eps 0.0003": "epsilon 0.0003",
    "b2 0.99": "beta2 0.99",
}  # fmt: skip
COLUMNS = ("strength", "lam", "lr", "kept", "kappa")


def runs_of(sweep: dict, method: str, stage: int) -> list[dict]:
    """The recorded runs of a method on dataset 1 (`stage` 1) or on the later datasets, by learning rate."""
    runs = [
        run for run in sweep["runs"].values() if run["method"] == method and (len(run["own_loss"]) == 1) == (stage == 1)
    ]
    return sorted(runs, key=lambda run: run["learning_rate"])


def best_of(sweep: dict, method: str, stage: int) -> dict:
    """Of `runs_of`, the one with the lowest mean loss at the end."""
    return min(runs_of(sweep, method, stage), key=lambda run: run["mean_final_loss"])


def format_sweep(sweep: dict) -> str:
    """The learning rates that were tried, on dataset 1 and on the later datasets."""
    names = list(runs_of(sweep, "baseline", 2)[0]["own_loss"])
    first = [["Method", "Learning rate", "Loss"]]
    later = [["Method", "Learning rate", *map(dataset_label, names), "Mean at the end", "Forgetting %"]]
    for method, label in SWEPT.items():
        for stage, rows in ((1, first), (2, later)):
            for run in runs_of(sweep, method, stage):
                star = "*" if run == best_of(sweep, method, stage) else ""
                cells = [f"{run['mean_final_loss']:.3f}"]
                if stage == 2:
                    arrows = [f"{run['own_loss'][name]:.3f} -> {run['final_loss'][name]:.3f}" for name in names]
                    cells = [*arrows, *cells, f"{run['average_forgetting_percent']:.1f}"]
                rows.append([label, f"{run['learning_rate']:g}{star}", *cells])
    return "\n\n".join([
        f"Dataset 1 ({dataset_label(names[0])}): validation loss in nats per token",
        format_table(first),
        "Datasets 2 and 3, from the best model of dataset 1: validation loss in nats per token, after the dataset's "
        "own stage -> at the end",
        format_table(later),
    ])  # fmt: skip


def variations(settings: dict) -> list[str] | None:
    """What is special about a run, None where a setting has no name in the table."""
    found = [f"{name} {value}" for name, value in settings.items() if name not in COLUMNS]
    return [VARIATIONS[item] for item in found] if all(item in VARIATIONS for item in found) else None


def format_tuning(records: list[dict], sweep: dict) -> str:
    """K-1's tuning runs, one table for each stage, text and model that they went on from."""
    shown = [record for record in records if variations(record["settings"]) is not None]
    trainings = {
        json.dumps([record["stage"], record.get("after"), {**record["settings"], "kept": 1}], sort_keys=True)
        for record in records
    }
    tried = sum(run["method"] == "baseline" for run in sweep["runs"].values())
    sections = [
        paragraph(
            f"The tables show {len(shown)} of the {len(records)} records of tuning.json, from {len(trainings)} "
            f"trainings (several shares kept come from one); the baseline's learning rates took {tried}."
        )
    ]

    def place(record: dict) -> tuple:
        return record["stage"], record["text"] == "validation", record.get("after", "")

    for (stage, _, after), group in groupby(sorted(shown, key=place), key=place):
        found = list(group)
        names = list(found[0]["loss"])
        rows = [["Variation", "c", "lambda", "Learning rate", "Kept", "kappa", *names]]
        for record in found:
            settings = record["settings"]
            strength = f"{settings['strength']:g}" if "strength" in settings else "-"
            force = f"{settings['lam']:,.0f}" if "lam" in settings else "-"
            rows.append([
                ", ".join(variations(settings)) or "-", strength, force, f"{settings['lr']:g}",
                f"{settings.get('kept', 1):g}", f"{settings['kappa']:g}" if "kappa" in settings else "-",
                *(f"{record['loss'][name]:.3f}" for name in names),
            ])  # fmt: skip
        start = (
            f", after {after.replace('lr', 'learning rate').replace('strength', 'c').replace('lam', 'lambda')}"
            if after
            else ""
        )
        text = "validation text" if found[0]["text"] == "validation" else f"the {found[0]['text']}"
        sections += [f"Stage {stage}{start}: nats per token on {text}", format_table(rows)]
    return "\n\n".join(sections)


def format_rehearsal(records: list[dict]) -> str:
    """The runs by which rehearsal was chosen, on validation text: one row a run, after stage 2 and at the end."""
    rates = PRESET.learning_rates
    defaults = paragraph(
        f"The defaults are share {PRESET.rehearsal:g}, weight {PRESET.rehearsal_weight:g}, "
        f"{PRESET.rehearsal_sequences} sequences, c {PRESET.consolidation:g}, learning rates {rates['k1'][1]:g} and "
        f"{rates['k1'][2]:g} (K-1), {rates['baseline_rehearsal'][1]:g} (baseline + rehearsal)."
    )
    names = max((list(record["validation"][-1]) for record in records), key=len)
    first, second, third = map(dataset_label, names)
    head = ["Model", "Learning rate", "c", "Weight", "Share", "Updated %"]
    columns = [f"{first}, stage 2", f"{second}, stage 2", *(f"{name}, end" for name in (first, second, third))]
    rows = [[*head, *columns]]
    for record in records:
        after = record["validation"]
        found = [after[0][name] for name in names[:2]] + [row[name] for row in after[1:] for name in names]
        variation = f", {record['variation']}" if record["variation"] else ""
        weight = f"{record['weight']:g}" if record["share"] else "-"
        strength = f"{record['consolidation']:g}" if record["model"] == "K-1" else "-"
        rows.append([
            f"{record['model']}{', by gain' if record['selection'] == 'gain' else ''}{variation}",
            f"{record['learning_rate']:g}", strength, weight, f"{record['share']:g}",
            f"{100 * record['update_fraction']:.0f}", *(f"{loss:.3f}" for loss in found), *["-"] * (5 - len(found)),
        ])  # fmt: skip
    return f"{defaults}\n\n{format_table(rows)}"


def format_kept(found: dict) -> str:
    """How much of a score is kept in %, and its interval, or the lower end where no more is recorded."""
    ends = found.get("interval") or [found["low"]]
    return f"{100 * found['kept']:.0f} ({' to '.join(f'{100 * end:.0f}' for end in ends)})"


def format_quality(records: list[dict], columns: dict[str, Callable[[dict], str]]) -> str:
    """A row a run: `columns`, loss at the end on validation text, and how much of scores of generated text is kept."""
    names = list(records[0]["validation"][-1])
    old = [name for name in names if name in records[0]["quality"]]
    scores = [(name, score) for name in old for score in ("domain", "fluency")]
    kept = [f"{dataset_label(name)}: {score} kept %" for name, score in scores]
    rows = [[*columns, *map(dataset_label, names), *kept]]
    for record in records:
        rows.append([
            *(cell(record) for cell in columns.values()),
            *(f"{record['validation'][-1][name]:.3f}" for name in names),
            *(format_kept(record["quality"][name][score]) for name, score in scores),
        ])  # fmt: skip
    return format_table(rows)


def format_generated_text(records: list[dict]) -> str:
    """The runs by which generated text was mended."""
    return format_quality(records, {
        "Rehearsed text": lambda record: record["rehearsed"],
        "Divergence": lambda record: record["divergence"],
        "Weight": lambda record: f"{record['weight']:g}",
        "Share": lambda record: f"{record['share']:g}",
    })  # fmt: skip


def format_bases(records: list[dict]) -> str:
    """The runs by which the sides that get a basis were chosen, on validation text: after stage 2 and at the end."""
    names = max((list(record["validation"][-1]) for record in records), key=len)
    first, second, third = map(dataset_label, names)
    columns = [f"{first}, stage 1", f"{first}, stage 2", f"{second}, stage 2"]
    columns += [*(f"{name}, end" for name in (first, second, third)), f"{first}: domain kept %"]
    rows = [["Seed", "Sides with a basis", "Importance from batches", "c", "Change kept %", *columns]]
    for record in records:
        losses = [loss for row in record["validation"] for loss in row.values()]
        cells = [f"{loss:.3f}" for loss in losses] + ["-"] * (6 - len(losses))
        kept = format_kept(record["quality"][names[0]]["domain"]) if "quality" in record else "-"
        rows.append([
            str(record["seed"]), record["sides"], str(record["importance_batches"] or "-"),
            f"{record['consolidation']:g}", f"{100 * record['interpolation']:g}", *cells, kept,
        ])  # fmt: skip
    return format_table(rows)


def format_batches(records: list[dict]) -> str:
    """The runs by which the size of a batch was chosen, and the learning rates at it, on validation text."""
    names = max((list(record["validation"][-1]) for record in records), key=len)
    first, second, third = map(dataset_label, names)
    columns = [*(f"{name}, own stage" for name in (first, second, third)), f"{first}, end", f"{second}, end"]
    settings = ["Model", "Seed", "Batch", "Steps", "Learning rates", "Weight", "Change kept %"]
    rows = [[*settings, *columns, "Mean at the end"]]
    for record in records:
        after = record["validation"]
        losses = [stage[name] for stage, name in zip(after, names)]
        if len(after) == len(names):
            losses += [*(after[-1][name] for name in names[:2]), mean(list(after[-1].values()))]
        rows.append([
            record["model"], str(record["seed"]), str(record["batch_size"]), ", ".join(map(str, record["max_steps"])),
            ", ".join(f"{rate:g}" for rate in record["learning_rates"]),
            f"{record['weight']:g}" if "weight" in record else "-",
            f"{100 * record['interpolation']:g}" if "interpolation" in record else "-",
            *(f"{loss:.3f}" for loss in losses), *["-"] * (6 - len(losses)),
        ])  # fmt: skip
    return format_table(rows)


def format_interpolation(records: list[dict]) -> str:
    """How much of the change of stages 2 and 3 is kept, at two seeds."""
    return format_quality(records, {
        "Seed": lambda record: str(record["seed"]),
        "Weight": lambda record: f"{record['weight']:g}",
        "Learning rate": lambda record: f"{record['learning_rate']:g}",
        "Change kept %": lambda record: ", ".join(f"{100 * share:g}" for share in record["interpolation"]),
    })  # fmt: skip
