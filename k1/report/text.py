"""The tables of the report, and all of it as Markdown."""

from k1.experiment import ARMS
from k1.report.tables import Table, dataset_label, format_table


def format_report(report: dict) -> str:
    """The report as Markdown text."""
    sections = [
        *captioned(result_tables(report)),
        about_generation(report),
        *captioned(generation_tables(report)),
        "\n".join(
            f"{item['criterion']}: {'met' if item['met'] else 'NOT MET'} ({item['figures']})"
            for item in report["criteria"]
        ),
        "\n".join(map(about_dataset, report["datasets"])),
        about_run(report),
    ]
    return "\n\n".join(sections)


def captioned(tables: list[Table]) -> list[str]:
    """Each caption and then its table, as Markdown."""
    return [section for table in tables for section in (table.caption, format_table(table.rows))]


def about_dataset(dataset: dict) -> str:
    """Which text a dataset is, in one line."""
    return (
        f"{dataset_label(dataset['name'])}: {dataset['source']} text, fingerprint {dataset['fingerprint'][:12]}, "
        f"{dataset['tokens']['train']:,} training tokens"
    )


def about_run(report: dict) -> str:
    """The size, seed and preset of the runs, and the pretrained model that they started from, in one line."""
    run = f"{report['parameters']:,} parameters, seed {report['seed']}, preset {report['preset']}"
    start = report.get("start")  # recorded reports may be older
    if start is None:
        return run
    revision = f", revision {start['revision'][:12]}" if start["revision"] else ""
    return f"{run}, started from {dataset_label(start['name'])}{revision}, SHA-256 {start['sha256'][:12]}"


def result_tables(report: dict) -> list[Table]:
    """Accuracy, loss, forgetting and transfer, in this order."""
    models = report["models"]
    names = [dataset["name"] for dataset in report["datasets"]]

    def arrow(result: dict, name: str, score: str, scale: float, digits: int) -> str:
        own, final = scale * result["own"][name][score], scale * result["final"][name][score]
        return f"{own:.{digits}f} -> {final:.{digits}f}"

    def rows(cell, last_column: str, last_cell) -> list[list[str]]:
        head = ["Model", *map(dataset_label, names), last_column]
        return [head] + [
            [ARMS[method], *(cell(result, name) for name in names), last_cell(result)]
            for method, result in models.items()
        ]

    def average_forgetting(result: dict) -> str:
        return f"{result['average_forgetting_percent']:.1f}"

    def average_loss(result: dict) -> str:
        return f"{result['mean_final_loss']:.3f}"

    return [
        Table(
            "Next-token accuracy on test text in %: after the dataset's own stage -> at the end",
            rows(lambda result, name: arrow(result, name, "accuracy", 100, 1), "Forgetting %", average_forgetting),
        ),
        Table(
            "Nats per token on test text: after the dataset's own stage -> at the end",
            rows(lambda result, name: arrow(result, name, "loss", 1, 3), "Mean at the end", average_loss),
        ),
        Table(
            "Forgetting: share of the accuracy after the dataset's own stage that is lost at the end, in %",
            rows(lambda result, name: f"{result['forgetting_percent'][name]:.1f}", "Average", average_forgetting),
        ),
        Table(
            "Transfer in percentage points of accuracy, and the measured share of parameters that a step changes",
            transfer_rows(models),
        ),
    ]


def about_generation(report: dict) -> str:
    """What the tables of generated text are about."""
    return (
        f"Generated text, at least {min(report['judges']['continuations'].values())} continuations of test text a "
        "dataset: after the dataset's own stage -> at the end (share that is kept, its 95% interval)"
    )


def generation_tables(report: dict) -> list[Table]:
    """A table for each score of generated text."""
    return [
        Table(
            "Domain: share of the texts that a classifier of character n-grams assigns to the dataset, in %; it is "
            f"right about {100 * report['judges']['classifier_accuracy']:.1f}% of real test text, by chance "
            f"{100 / len(report['datasets']):.0f}%",
            generation_rows(report, "domain", scale=100, digits=1),
        ),
        Table(
            "Fluency: nats per token under an n-gram model of the dataset's training text; less is better",
            generation_rows(report, "fluency", scale=1, digits=2),
        ),
        Table(
            "Distinct-2: share of different ones among the word pairs of neighbouring texts, in %",
            generation_rows(report, "distinct_2", scale=100, digits=1),
        ),
    ]


def generation_rows(report: dict, score: str, scale: float, digits: int) -> list[list[str]]:
    """A score of real text and of the text that each model generates, by dataset."""
    names = [dataset["name"] for dataset in report["datasets"]]

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
        rows.append([ARMS[method], *map(cell, scores[:-1]), number(scores[-1]["final"])])
    return rows


def transfer_rows(models: dict) -> list[list[str]]:
    """Backward and forward transfer, and the share of parameters that a step changes."""
    rows = [["Model", "Backward transfer", "Forward transfer", "Parameters changed per step %"]]
    for method, result in models.items():
        percent = [100 * result[name] for name in ("backward_transfer", "forward_transfer", "updated_fraction")]
        rows.append([ARMS[method], f"{percent[0]:+.2f}", f"{percent[1]:+.2f}", f"{percent[2]:.2f}"])
    return rows
