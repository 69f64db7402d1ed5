"""The tables of the report, and all of it as Markdown."""

from collections.abc import Callable

from k1.data.sources import dataset_labels
from k1.experiment import ARMS
from k1.report.metrics import SHOWN, Matrix, own_to_end
from k1.report.tables import Table, dataset_label, rows_of

AT_BOTH_TIMES = "after the dataset's own stage -> at the end"


def format_report(report: dict) -> str:
    """The report as Markdown text."""
    criteria = [
        f"{item['criterion']}: {'met' if item['met'] else 'NOT MET'} ({item['figures']})" for item in report["criteria"]
    ]
    sections = [
        *result_tables(report), about_generation(report), *generation_tables(report), "\n".join(criteria),
        "\n".join(about_datasets(report)), about_run(report),
    ]  # fmt: skip
    return "\n\n".join(map(str, sections))


def about_datasets(report: dict) -> list[str]:
    """Which text each dataset is, a line each."""
    return [
        f"{label}: {dataset['source']} text, fingerprint {dataset['fingerprint'][:12]}, "
        f"{dataset['tokens']['train']:,} training tokens"
        for label, dataset in zip(labels_of(report), report["datasets"])
    ]


def about_run(report: dict) -> str:
    """The size, seed and preset of the runs, and the pretrained model that they started from, in one line."""
    run = f"{report['parameters']:,} parameters, seed {report['seed']}, preset {report['preset']}"
    if not (start := report["start"]):
        return run
    revision = f", revision {start['revision'][:12]}" if start["revision"] else ""
    return f"{run}, started from {dataset_label(start['name'])}{revision}, SHA-256 {start['sha256'][:12]}"


def labels_of(report: dict) -> list[str]:
    """The datasets as they are called in tables."""
    return dataset_labels(dataset["name"] for dataset in report["datasets"])


def at_both_times(score: str, labels: list[str]) -> list[tuple[str, Callable[[list[dict]], str]]]:
    """A column for each dataset of a table of arms, each of them a list of runs."""
    return [
        (label, lambda runs, number=number: own_to_end([run[f"{score}_matrix"] for run in runs], number, score))
        for number, label in enumerate(labels)
    ]


def result_tables(report: dict) -> list[Table]:
    """Accuracy, loss, forgetting and transfer, in this order."""

    def column(name: str, key: str, form: str, scale: float = 1) -> tuple[str, Callable[[list[dict]], str]]:
        return name, lambda runs: format(scale * runs[0][key], form)

    labels = labels_of(report)
    columns = {
        f"{SHOWN['accuracy'][0]}: {AT_BOTH_TIMES}": [
            *at_both_times("accuracy", labels), column("Forgetting %", "average_forgetting_percent", ".1f"),
        ],
        f"{SHOWN['loss'][0]}: {AT_BOTH_TIMES}": [
            *at_both_times("loss", labels), column("Mean at the end", "mean_final_loss", ".3f"),
        ],
        "Forgetting: share of the accuracy after the dataset's own stage that is lost at the end, in %": [
            *(
                (label, lambda runs, name=dataset["name"]: f"{runs[0]['forgetting_percent'][name]:.1f}")
                for label, dataset in zip(labels, report["datasets"])
            ),
            column("Average", "average_forgetting_percent", ".1f"),
        ],
        "Transfer in percentage points of accuracy, and the measured share of parameters that a step changes": [
            column("Backward transfer", "backward_transfer", "+.2f", 100),
            column("Forward transfer", "forward_transfer", "+.2f", 100),
            column("Parameters changed per step %", "updated_fraction", ".2f", 100),
        ],
    }  # fmt: skip
    models = [(ARMS[arm], [result]) for arm, result in report["models"].items()]
    return [Table(caption, rows_of("Model", models, found)) for caption, found in columns.items()]


def first_model(start: dict | None) -> str:
    """What the model is called that stage 1 started from; `start` describes a pretrained one."""
    return "pretrained" if start else "untrained"


def accuracy_rows(accuracy: Matrix, labels: list[str], start: dict | None) -> list[list[str]]:
    """The rows of a table with the accuracy of every dataset, in %, of the first model and after every stage."""
    head = ["Dataset", first_model(start), *(f"after stage {stage}" for stage in range(1, len(accuracy)))]
    shown = [
        ["not measured" if value is None else f"{100 * value:.1f}" for value in column] for column in zip(*accuracy)
    ]
    return [head, *([label, *cells] for label, cells in zip(labels, shown))]


def about_generation(report: dict) -> str:
    """What the tables of generated text are about."""
    return (
        f"Generated text, at least {min(report['judges']['continuations'].values())} continuations of test text a "
        f"dataset: {AT_BOTH_TIMES} (share that is kept, its 95% interval)"
    )


def generation_tables(report: dict) -> list[Table]:
    """A table for each score of generated text."""
    right, chance = 100 * report["judges"]["classifier_accuracy"], 100 / len(report["datasets"])
    tables = {
        "domain": (
            "Domain: share of the texts that a classifier of character n-grams assigns to the dataset, in %; it is "
            f"right about {right:.1f}% of real test text, by chance {chance:.0f}%", 100, 1,
        ),
        "fluency": (
            "Fluency: nats per token under an n-gram model of the dataset's training text; less is better", 1, 2,
        ),
        "distinct_2": (
            "Distinct-2: share of different ones among the word pairs of neighbouring texts, in %", 100, 1,
        ),
    }  # fmt: skip
    return [
        Table(caption, generation_rows(report, score, scale, digits))
        for score, (caption, scale, digits) in tables.items()
    ]


def generation_rows(report: dict, score: str, scale: float, digits: int) -> list[list[str]]:
    """A score of real text and of the text that each model generates, by dataset."""

    def number(value: float) -> str:
        return f"{scale * value:.{digits}f}"

    def cell(values: dict) -> str:
        kept, low, high = (f"{100 * share:.0f}" for share in (values["kept"], *values["interval"]))
        return f"{number(values['own'])} -> {number(values['final'])} ({kept}%, {low} to {high})"

    real = [number(scores[score]) for scores in report["judges"]["real_text"].values()]
    rows = [["Model", *labels_of(report)], ["real text", *real]]
    for arm, result in report["models"].items():
        *earlier, last = (scores[score] for scores in result["generation"].values())
        # Nothing follows the last dataset.
        rows.append([ARMS[arm], *map(cell, earlier), number(last["final"])])
    return rows
