"""The report as Markdown."""

from k1.report.tables import LABELS, dataset_label, format_table


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

    sections = [
        "Next-token accuracy on test text in %: after the dataset's own stage -> at the end",
        table(lambda result, name: arrow(result, name, "accuracy", 100, 1), "Forgetting %", average_forgetting),
        "Nats per token on test text: after the dataset's own stage -> at the end",
        table(lambda result, name: arrow(result, name, "loss", 1, 3), "Mean at the end", average_loss),
        "Forgetting: share of the accuracy after the dataset's own stage that is lost at the end, in %",
        table(lambda result, name: f"{result['forgetting_percent'][name]:.1f}", "Average", average_forgetting),
        "Transfer in percentage points of accuracy, and the measured share of parameters that a step changes",
        transfer_table(models),
        "Where K-1's updates go: share of each module group that a step changes, in %, and of what stage 2 changed the "
        f"share that stage 3 changed too (by chance {100 * models['k1']['selection']['overlap_by_chance']:.0f}%)",
        selection_table(models["k1"]["selection"], names),
        *generation_tables(report, names),
        "\n".join(
            f"{item['criterion']}: {'met' if item['met'] else 'NOT MET'} ({item['figures']})"
            for item in report["criteria"]
        ),
        "\n".join(
            f"{dataset_label(dataset['name'])}: {dataset['source']} text, fingerprint {dataset['fingerprint'][:12]}, "
            f"{dataset['tokens']['train']:,} training tokens"
            for dataset in report["datasets"]
        ),
        f"{report['parameters']:,} parameters, seed {report['seed']}, preset {report['preset']}" + start_text(report),
    ]
    return "\n\n".join(sections)


def start_text(report: dict) -> str:
    """Which pretrained model the runs started from, as an end of a sentence; empty for fresh weights."""
    start = report.get("start")  # recorded reports may be older
    if start is None:
        return ""
    revision = f", revision {start['revision'][:12]}" if start["revision"] else ""
    return f", started from {start['name']}{revision}, SHA-256 {start['sha256'][:12]}"


def generation_tables(report: dict, names: list[str]) -> list[str]:
    """How generated text is scored, and a table for each of its scores."""
    judges = report["judges"]
    return [
        f"Generated text, at least {min(judges['continuations'].values())} continuations of test text a dataset: after "
        "the dataset's own stage -> at the end (share that is kept, its 95% interval)",
        "Domain: share of the texts that a classifier of character n-grams assigns to the dataset, in %; it is right "
        f"about {100 * judges['classifier_accuracy']:.1f}% of real test text, by chance {100 / len(names):.0f}%",
        generation_table(report, names, "domain", scale=100, digits=1),
        "Fluency: nats per token under an n-gram model of the dataset's training text; less is better",
        generation_table(report, names, "fluency", scale=1, digits=2),
        "Distinct-2: share of different ones among the word pairs of neighbouring texts, in %",
        generation_table(report, names, "distinct_2", scale=100, digits=1),
    ]


def generation_table(report: dict, names: list[str], score: str, scale: float, digits: int) -> str:
    """A score of real text and of the text that each model generates, by dataset."""

    def number(value: float) -> str:
        return f"{scale * value:.{digits}f}"

    def cell(values: dict) -> str:
        kept, low, high = (f"{100 * share:.0f}" for share in (values["kept"], *values["interval"]))
        return f"{number(values['own'])} -> {number(values['final'])} ({kept}%, {low} to {high})"

    rows = [["Model", *map(dataset_label, names)]]
    rows.append(["real text", *(number(report["judges"]["real_text"][name][score]) for name in names)])
    for method, result in report["models"].items():
        scores = [result["generation"][name][score] for name in names]
        # Nothing follows the last dataset.
        rows.append([LABELS[method], *map(cell, scores[:-1]), number(scores[-1]["final"])])
    return format_table(rows)


def transfer_table(models: dict) -> str:
    """Backward and forward transfer, and the share of parameters that a step changes."""
    rows = [["Model", "Backward transfer", "Forward transfer", "Parameters changed per step %"]]
    for method, result in models.items():
        percent = [100 * result[name] for name in ("backward_transfer", "forward_transfer", "updated_fraction")]
        rows.append([LABELS[method], f"{percent[0]:+.2f}", f"{percent[1]:+.2f}", f"{percent[2]:.2f}"])
    return format_table(rows)


def selection_table(chosen: dict, names: list[str]) -> str:
    """Which module groups K-1 changes, by stage, and what of it stages 2 and 3 share."""
    rows = [["Module group", *map(dataset_label, names), "Of stage 2, again in 3"]]
    for group, shares in {**chosen["share"], "all": chosen["share_overall"]}.items():
        values = [*shares, chosen["overlap_overall"] if group == "all" else chosen["overlap"][group]]
        rows.append([group, *("-" if value is None else f"{100 * value:.1f}" for value in values)])
    return format_table(rows)
