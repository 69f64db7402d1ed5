"""python3 -m k1.study.readme: write the figures of the Markdown pages from what results/ records.

A page is written by hand but for its blocks, each between two lines

    <!-- begin NAME -->
    <!-- end NAME -->

which are replaced by what the function `BLOCKS[NAME]` makes of the recorded
results. The same results give the same pages, however often.
"""

import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from k1.benchmark.summary import format_benchmark
from k1.config import PRESETS
from k1.errors import K1Error, command, module_parser
from k1.experiment import ARMS, FILES
from k1.files import write_text
from k1.report.metrics import mean, mean_and_interval
from k1.report.tables import dataset_label, format_table
from k1.report.text import format_report, labels_of
from k1.study.seeds import format_seeds, load_reports

PAGES = ("README.md", "results/README.md", "k1/README.md", "k1/training/README.md")
BLOCK = re.compile(r"(?P<begin>^<!-- begin (?P<name>\w+) -->\n).*?(?P<end>^<!-- end (?P=name) -->$)", re.M | re.S)
# Tables that other commands write, shown as they are.
TABLES = ("pretrained60", "pretrained240", "unseen", "unseen2", "stream", "study", "map")
MARKER = re.compile(r"^<!-- (?:begin|end) \w+ -->$", re.M)
CORES = 2


@dataclass(frozen=True)
class Results:
    """What the folder `folder` records, read when it is asked for."""

    folder: Path

    @cached_property
    def report(self) -> dict:
        """The report of the run that `make` made."""
        return json.loads((self.folder / "report.json").read_text())

    @cached_property
    def seeds(self) -> list[dict]:
        """The reports of all seeds, in their order."""
        return sorted(load_reports(list(self.folder.glob("seed*.json"))), key=lambda report: report["seed"])

    @cached_property
    def tokens_per_step(self) -> int:
        """Tokens of a step of the recorded run."""
        preset = PRESETS[self.report["preset"]]
        return preset.batch_size * preset.gradient_accumulation_steps * preset.seq_length


def paragraph(text: str, indent: str = "") -> str:
    """Prose wrapped as on the pages, at 100 characters, with `indent` before every line but the first."""
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def format_answer(results: Results) -> str:
    """The table of the first screen: accuracy and forgetting, arm by dataset, means over the seeds."""
    reports = results.seeds
    rows = [["", *labels_of(reports[0]), "Forgotten, %"]]
    for arm in reports[0]["models"]:
        models = [report["models"][arm] for report in reports]
        *earlier, last = (
            [f"{100 * mean([model[when][name]['accuracy'] for model in models]):.1f}" for when in ("own", "final")]
            for name in models[0]["own"]
        )
        forgotten = mean_and_interval([model["average_forgetting_percent"] for model in models], 1)
        # Nothing follows the last dataset.
        rows.append([ARMS[arm], *map(" -> ".join, earlier), last[1], forgotten])
    caption = (
        "Next-token accuracy on test text in %, after the dataset's own stage -> after all three, and how much of it "
        f"is forgotten, mean of the first two datasets with its 95% interval; {len(reports)} seeds:"
    )
    return f"{paragraph(caption)}\n\n{format_table(rows)}"


def format_time(results: Results) -> str:
    """How long the trainings of `make` take, from their recorded speed."""
    max_steps, seconds = PRESETS[results.report["preset"]].max_steps, 0.0
    for arm, model in results.report["models"].items():
        # Two arms share each first stage.
        steps = max_steps if arm in FILES else max_steps[1:]
        seconds += sum(steps) * results.tokens_per_step / model["tokens_per_second"]
    return paragraph(
        f"At the speed of the recorded run, training takes about {seconds / 60 / CORES:.0f} minutes on {CORES} CPU "
        "cores; tokenizing, evaluation and the report come on top."
    )


def format_model(results: Results) -> str:
    """Size of the model, steps and text of the recorded run."""
    report, preset = results.report, PRESETS[results.report["preset"]]
    steps = ", ".join(f"{count:,} on dataset {stage}" for stage, count in enumerate(preset.max_steps, start=1))
    rows = [["Dataset", "Source", "Training tokens", "Test tokens"]]
    for dataset in report["datasets"]:
        counts = [f"{dataset['tokens'][split]:,}" for split in ("train", "test")]
        rows.append([dataset_label(dataset["name"]), dataset["source"], *counts])
    text = (
        f"Preset `{report['preset']}`, the recorded run: a Llama-style transformer with {report['parameters']:,} "
        f"parameters ({preset.layers} layers, width {preset.hidden_size}, vocabulary {preset.vocabulary_size:,}, "
        f"sequences of {preset.seq_length} tokens). It takes steps of {results.tokens_per_step:,} tokens: {steps}."
    )
    return f"{paragraph(text)}\n\n{format_table(rows)}"


def format_limits(results: Results) -> str:
    """What the recorded figures rest on, the first of the limits."""
    report = results.report
    first, *others = (scores["tokens"] for scores in report["models"]["k1"]["own"].values())
    rest = " and ".join(f"{count:,}" for count in dict.fromkeys(others))
    limits = [
        f"Small models on small text: {report['parameters']:,} parameters, {len(results.seeds)} seeds. "
        "The figures show the method, not a law. Repeat it with other seeds, "
        "larger presets and your data.",
        f"The test text of dataset 1 is small ({first:,} predicted tokens; the others have {rest}).",
        "The bundled code is the standard library of the Python that runs it, so other Python versions give other "
        "numbers; the fingerprint in the report tells. The recorded run used Python "
        f"{report['versions']['python']}.",
    ]
    return "\n".join(paragraph(f"- {limit}", indent="  ") for limit in limits)


def benchmark(results: Results) -> str:
    """What the benchmark measured, nothing if it was not recorded."""
    path = results.folder / "benchmark.json"
    return format_benchmark(json.loads(path.read_text())) if path.exists() else ""


BLOCKS: dict[str, Callable[[Results], str]] = {
    "answer": format_answer,
    "time": format_time,
    "limits": format_limits,
    "report": lambda results: format_report(results.report),
    "seeds": lambda results: format_seeds(results.seeds),
    **{name: lambda results, name=name: (results.folder / f"{name}.md").read_text().strip() for name in TABLES},
    "model": format_model,
    "benchmark": benchmark,
}


def fill(page: str, results: Results) -> str:
    """The text `page` with every block rendered again; raises `K1Error` for a marker without its partner or block."""
    if len(MARKER.findall(page)) != 2 * len(BLOCK.findall(page)):
        raise K1Error("a marker <!-- begin NAME --> has no <!-- end NAME --> after it, or the other way round")

    def block(found: re.Match) -> str:
        if found["name"] not in BLOCKS:
            raise K1Error(f"block '{found['name']}' is unknown; known are: {', '.join(BLOCKS)}")
        return f"{found['begin']}{BLOCKS[found['name']](results)}\n{found['end']}"

    return BLOCK.sub(block, page)


def render(root: Path) -> dict[str, str]:
    """Every page below `root` as it should read, from `root`/results; raises `K1Error` if a record is missing."""
    results, pages = Results(root / "results"), {}
    for name in PAGES:
        try:
            pages[name] = fill((root / name).read_text(encoding="utf-8"), results)
        except (OSError, K1Error) as error:
            raise K1Error(f"{root / name}: {error}; make record writes the results")
    return pages


@command
def main() -> None:
    parser = module_parser("k1.study.readme", __doc__)
    parser.add_argument("--root", type=Path, default=Path("."), help="folder of README.md (default: this one)")
    root = parser.parse_args().root
    for name, text in render(root).items():
        write_text(root / name, text)


if __name__ == "__main__":
    main()
