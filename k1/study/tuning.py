"""How the settings were chosen: the recorded sweep of learning rates and K-1's tuning runs, as tables."""

import json
from itertools import groupby

from k1.presets import PRESETS
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
    rates, kept = PRESET.learning_rates["k1"][1:], PRESET.interpolation[1:]
    sections = [
        paragraph(
            f"The tables show {len(shown)} of the {len(records)} records of tuning.json, from {len(trainings)} trainings "
            f"(several shares kept come from one); the baseline's learning rates took {tried}. The defaults are "
            f"c {PRESET.consolidation:g} with learning rates {rates[0]:g} and {rates[1]:g}, kept {kept[0]:g} and "
            f"{kept[1]:g}, kappa {PRESET.gain_floor:g}."
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
