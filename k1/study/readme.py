"""python3 -m k1.study.readme: write the figures of the Markdown pages from what results/ records.

A page is written by hand but for its blocks, each between two lines

    <!-- begin NAME -->
    <!-- end NAME -->

which are replaced by what the function `BLOCKS[NAME]` makes of the recorded
results. The same results give the same pages, however often.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from k1.errors import K1Error, command
from k1.files import write_text
from k1.flags import module_parser
from k1.presets import PRESETS, UPDATE_FRACTION
from k1.report.metrics import mean
from k1.report.tables import LABELS, dataset_label, format_table
from k1.report.text import format_report
from k1.study.frontier import losses, mean_and_interval, points_of
from k1.study.seeds import format_seeds, load_reports
from k1.study.shares import format_shares
from k1.study.speed import format_benchmark_page, format_speed
from k1.study.tables import equal_learning_table, paragraph, study_tables
from k1.study.tuning import (
    best_of, format_bases, format_batches, format_generated_text, format_interpolation, format_rehearsal, format_sweep,
    format_tuning,
)  # fmt: skip

PAGES = ("README.md", "results/README.md", "results/tuning.md", "k1/sparse/README.md", "k1/training/README.md")
BLOCK = re.compile(r"(?P<begin>^<!-- begin (?P<name>\w+) -->\n).*?(?P<end>^<!-- end (?P=name) -->$)", re.M | re.S)
MARKER = re.compile(r"^<!-- (?:begin|end) \w+ -->$", re.M)
# The methods that take K-1 apart, and what each of its parts is compared with.
PARTS = (
    "k1", "k1_all", "k1_fixed_mask", "k1_no_consolidation", "k1_no_rehearsal", "dense_rehearsal", "replay",
)  # fmt: skip
CORES = 2


@dataclass(frozen=True)
class Results:
    """What the folder `folder` records, read when it is asked for; raises `K1Error` where it cannot be read."""

    folder: Path

    def text(self, name: str) -> str:
        """The file `name` as text."""
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise K1Error(f"{self.folder / name} cannot be read ({error}); make record writes it")

    def json(self, name: str):
        """The file `name` as plain values."""
        try:
            return json.loads(self.text(name))
        except ValueError as error:
            raise K1Error(f"{self.folder / name} is not JSON ({error}); make record writes it")

    @cached_property
    def report(self) -> dict:
        """The report of the run that `make` made."""
        return self.json("report.json")

    @cached_property
    def seeds(self) -> list[dict]:
        """The reports of all seeds, in their order."""
        paths = list(self.folder.glob("seed*.json"))
        if not paths:
            raise K1Error(f"{self.folder} has no seed*.json; make record writes them")
        return sorted(load_reports(paths), key=lambda report: report["seed"])

    @cached_property
    def study(self) -> dict:
        """The settings and runs of the study."""
        return self.json("study.json")

    @cached_property
    def benchmark(self) -> dict | None:
        """What the benchmark measured, None where it was not recorded."""
        return self.json("benchmark.json") if (self.folder / "benchmark.json").exists() else None


def own_and_final(reports: list[dict], method: str, name: str) -> str:
    """Accuracy of a dataset in %, own -> end, means over `reports`."""
    scores = [report["models"][method] for report in reports]
    own, final = (100 * mean([score[when][name]["accuracy"] for score in scores]) for when in ("own", "final"))
    return f"{own:.1f} -> {final:.1f}"


def format_answer(results: Results) -> str:
    """The table of the first screen: accuracy and forgetting, dataset by method, means over the seeds."""
    reports = results.seeds
    names = [dataset["name"] for dataset in reports[0]["datasets"]]
    methods = list(reports[0]["models"])

    def label(method: str) -> str:
        return LABELS.get(method, method)

    def forgotten(method: str, name: str) -> str:
        return mean_and_interval([report["models"][method]["forgetting_percent"][name] for report in reports], 1)

    rows = [["Dataset", *map(label, methods)]]
    for name in names[:-1]:
        cells = [f"{own_and_final(reports, method, name)} ({forgotten(method, name)})" for method in methods]
        rows.append([dataset_label(name), *cells])
    # Nothing follows the last dataset.
    ends = [own_and_final(reports, method, names[-1]).split(" -> ")[1] for method in methods]
    rows.append([dataset_label(names[-1]), *ends])
    averages = {
        method: [report["models"][method]["average_forgetting_percent"] for report in reports] for method in methods
    }
    fewer = sum(ours < theirs for ours, theirs in zip(averages["k1"], averages["baseline"]))
    caption = (
        "Next-token accuracy on test text in %, after the dataset's own stage -> at the end, and in brackets the share "
        f"of it that is forgotten, in %; means over {len(reports)} seeds, forgetting with 95% intervals:"
    )
    values = [f"{label(method)} {mean_and_interval(values, 1)}%" for method, values in averages.items()]
    summary = (
        f"Forgetting of the first two datasets on average: {', '.join(values)}. K-1 forgets less than the baseline at "
        f"{fewer} of {len(reports)} seeds. {format_criteria(reports)}"
    )
    return f"{paragraph(caption)}\n\n{format_table(rows)}\n\n{paragraph(summary)}"


def format_criteria(reports: list[dict]) -> str:
    """At how many seeds each of the report's success criteria is met; those that all seeds meet in one sentence."""
    met = [sum(item["met"] for item in verdicts) for verdicts in zip(*(report["criteria"] for report in reports))]
    always = [str(number) for number, count in enumerate(met, start=1) if count == len(reports)]
    others = [
        f"criterion {number} at {count} of {len(reports)}"
        for number, count in enumerate(met, start=1)
        if count < len(reports)
    ]
    noun = "criteria" if len(always) > 1 else "criterion"
    sentences = [f"Met at all seeds: {noun} {', '.join(always)} of the report"] if always else []
    return "; ".join([*sentences, *others]) + "."


def format_time(results: Results) -> str:
    """How long the trainings of `make` take, from their recorded speed."""
    report = results.report
    preset = PRESETS[report["preset"]]
    tokens = sum(preset.max_steps) * preset.batch_size * preset.gradient_accumulation_steps * preset.seq_length
    seconds = sum(tokens / model["tokens_per_second"] for model in report["models"].values())
    return paragraph(
        f"At the speed of the recorded run, training takes about {seconds / 60 / CORES:.0f} minutes on {CORES} CPU "
        "cores; tokenizing, importance, evaluation and the report come on top."
    )


def format_error_feedback(results: Results) -> str:
    """What error feedback is worth on dataset 1."""
    sweep, reports = results.json("sweep.json"), results.seeds
    dense, gradient = (best_of(sweep, method, 1)["mean_final_loss"] for method in ("baseline", "k1"))
    name = reports[0]["datasets"][0]["name"]
    ours, theirs = (
        mean_and_interval([report["models"][method]["own"][name]["loss"] for report in reports])
        for method in ("k1", "baseline")
    )
    return paragraph(
        f"Taking the {UPDATE_FRACTION:.0%} with the largest gradients of each step instead costs "
        f"{gradient - dense:.2f} nats on dataset 1 ({gradient:.3f} against {dense:.3f} of the dense model, on "
        f"validation text, batches of 16, each at its best learning rate). With error feedback K-1 ends stage 1 at "
        f"{ours} nats on test text, the baseline at {theirs} (means over {len(reports)} seeds with 95% intervals)."
    )


def format_model(results: Results) -> str:
    """Size of the model, steps and text of the recorded run."""
    report = results.report
    preset = PRESETS[report["preset"]]
    tokens = preset.batch_size * preset.gradient_accumulation_steps * preset.seq_length
    steps = ", ".join(f"{count:,} on dataset {stage}" for stage, count in enumerate(preset.max_steps, start=1))
    rows = [["Dataset", "Source", "Training tokens", "Test tokens"]]
    for dataset in report["datasets"]:
        counts = [f"{dataset['tokens'][split]:,}" for split in ("train", "test")]
        rows.append([dataset_label(dataset["name"]), dataset["source"], *counts])
    text = (
        f"Preset `{report['preset']}`, the recorded run: a Llama-style transformer with {report['parameters']:,} "
        f"parameters ({preset.layers} layers, width {preset.hidden_size}, vocabulary {preset.vocabulary_size:,}, "
        f"sequences of {preset.seq_length} tokens). It takes steps of {tokens:,} tokens: {steps}."
    )
    return f"{paragraph(text)}\n\n{format_table(rows)}"


def format_study_size(results: Results) -> str:
    """What the study ran."""
    settings, runs = results.study["settings"], results.study["runs"]
    seeds = {record["seed"] for record in runs.values()}
    steps = ", ".join(map(str, settings["max_steps"]))
    return paragraph(
        f"`make study` compares {len(points_of(runs))} methods at preset `{settings['preset']}` "
        f"({settings['layers']} layers, width {settings['hidden_size']}; {steps} steps), over learning rates, "
        f"settings and {len(seeds)} seeds: {len(runs)} runs, one thread each."
    )


def format_parts(results: Results) -> str:
    """What K-1's parts are worth: forgetting at equal learning."""
    runs = results.study["runs"]
    points = points_of(runs)
    labels = [dataset_label(name) for name in losses(points["dense"][0].records[0], "test")[-1]]
    seeds = {record["seed"] for record in runs.values()}
    text = (
        "Forgetting in nats as a share of what the dense model forgets at the same loss on the new datasets; below 1 "
        f"is better than dense fine-tuning. `make study`, {len(seeds)} seeds, each method at its best setting, means "
        "with 95% intervals."
    )
    return f"{paragraph(text)}\n\n{equal_learning_table(points, labels, PARTS)}"


def format_limits(results: Results) -> str:
    """What the recorded figures rest on, the first of the limits."""
    report, runs = results.report, results.study["runs"]
    scores = report["models"]["k1"]["own"]
    first, *others = (scores[dataset["name"]]["tokens"] for dataset in report["datasets"])
    seeds = {record["seed"] for record in runs.values()}
    rest = " and ".join(f"{count:,}" for count in dict.fromkeys(others))
    limits = [
        f"Small models on small text: {report['parameters']:,} parameters, {len(results.seeds)} seeds of the "
        f"experiment, {len(seeds)} of the study. The figures show the method, not a law. Repeat it with other seeds, "
        "larger presets and your data.",
        f"The test text of dataset 1 is small ({first:,} predicted tokens; the others have {rest}).",
        "The bundled code is the standard library of the Python that runs it, so other Python versions give other "
        "numbers; the fingerprint in the report tells. The recorded run used Python "
        f"{report['versions']['python']}.",
    ]
    return "\n".join(paragraph(f"- {limit}", indent="  ") for limit in limits)


BLOCKS: dict[str, Callable[[Results], str]] = {
    "answer": format_answer,
    "time": format_time,
    "parts": format_parts,
    "limits": format_limits,
    "report": lambda results: format_report(results.report),
    "seeds": lambda results: format_seeds(results.seeds),
    "unseen": lambda results: results.text("unseen.md").strip(),
    "stream": lambda results: results.text("stream.md").strip(),
    "pretrained": lambda results: results.text("pretrained.md").strip(),
    "study_size": format_study_size,
    "study": lambda results: study_tables(results.study["runs"]),
    "shares": lambda results: format_shares(results.study["runs"]),
    "sweep": lambda results: format_sweep(results.json("sweep.json")),
    "tuning": lambda results: format_tuning(results.json("tuning.json"), results.json("sweep.json")),
    "rehearsal": lambda results: format_rehearsal(results.json("rehearsal.json")),
    "generated_text": lambda results: format_generated_text(results.json("generated_text.json")),
    "batches": lambda results: format_batches(results.json("batches.json")),
    "bases": lambda results: format_bases(results.json("bases.json")),
    "interpolation": lambda results: format_interpolation(results.json("interpolation.json")),
    "error_feedback": format_error_feedback,
    "model": format_model,
    "speed": lambda results: format_speed(results.benchmark) if results.benchmark else "",
    "benchmark": lambda results: format_benchmark_page(results.benchmark) if results.benchmark else "",
}


def fill(page: str, results: Results) -> str:
    """The text `page` with every block written anew; raises `K1Error` for a marker without its partner or block."""
    if len(MARKER.findall(page)) != 2 * len(BLOCK.findall(page)):
        raise K1Error("a marker <!-- begin NAME --> has no <!-- end NAME --> after it, or the other way round")

    def block(found: re.Match) -> str:
        if found["name"] not in BLOCKS:
            raise K1Error(f"block '{found['name']}' is unknown; known are: {', '.join(BLOCKS)}")
        return f"{found['begin']}{BLOCKS[found['name']](results)}\n{found['end']}"

    return BLOCK.sub(block, page)


def render(root: Path) -> dict[str, str]:
    """Every page below `root` as it should read, from `root`/results."""
    results = Results(root / "results")
    pages = {}
    for name in PAGES:
        try:
            pages[name] = fill((root / name).read_text(encoding="utf-8"), results)
        except (OSError, K1Error) as error:
            raise K1Error(f"{root / name}: {error}")
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
