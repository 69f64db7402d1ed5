"""python3 -m k1.study.readme: write the figures of the Markdown pages from what results/ records.

A page is written by hand but for its blocks, each between two lines

    <!-- begin NAME -->
    <!-- end NAME -->

which are replaced by what the function `BLOCKS[NAME]` makes of the recorded reports, or
by the file results/NAME.md. The same results give the same pages, however often.
"""

import json
import re
import textwrap
from functools import partial
from pathlib import Path

from k1.config import PRESETS
from k1.errors import K1Error, command, module_parser
from k1.experiment import ARMS, FILES
from k1.files import write_text
from k1.report.metrics import mean, mean_and_interval
from k1.report.tables import dataset_label, format_table
from k1.report.text import labels_of
from k1.study.seeds import load_reports

PAGES = ("README.md", "results/README.md", "k1/README.md", "k1/training/README.md")
BLOCK = re.compile(r"(?P<begin>^<!-- begin (?P<name>\w+) -->\n).*?(?P<end>^<!-- end (?P=name) -->$)", re.M | re.S)
CORES = 2


def paragraph(text: str, indent: str = "") -> str:
    """Prose wrapped as on the pages, at 100 characters, with `indent` before every line but the first."""
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def format_answer(report: dict, seeds: list[dict]) -> str:
    """The table of the first screen: accuracy and forgetting, arm by dataset, means over the seeds."""
    rows = [["", *labels_of(report), "Forgotten, %"]]
    for arm, label in ARMS.items():
        models = [found["models"][arm] for found in seeds]
        *earlier, last = (
            [f"{100 * mean([model[when][name]['accuracy'] for model in models]):.1f}" for when in ("own", "final")]
            for name in models[0]["own"]
        )
        forgotten = mean_and_interval([model["average_forgetting_percent"] for model in models], 1)
        # Nothing follows the last dataset.
        rows.append([label, *map(" -> ".join, earlier), last[1], forgotten])
    caption = (
        "Next-token accuracy on test text in %, after the dataset's own stage -> after all three, and how much of it "
        f"is forgotten, mean of the first two datasets with its 95% interval; {len(seeds)} seeds:"
    )
    return f"{paragraph(caption)}\n\n{format_table(rows)}"


def format_model(report: dict, seeds: list[dict]) -> str:
    """Size of the model, steps and text of the recorded run."""
    rows = [["Dataset", "Source", "Training tokens", "Test tokens"]]
    for dataset in report["datasets"]:
        counts = [f"{dataset['tokens'][split]:,}" for split in ("train", "test")]
        rows.append([dataset_label(dataset["name"]), dataset["source"], *counts])
    return f"{format_prose(MODEL, report, seeds)}\n\n{format_table(rows)}"


def format_prose(text: str, report: dict, seeds: list[dict]) -> str:
    """`text`, with the figures of the recorded run in it, wrapped; it may be a list."""
    preset, tokens = PRESETS[report["preset"]], [own["tokens"] for own in report["models"]["k1"]["own"].values()]
    step = preset.batch_size * preset.gradient_accumulation_steps * preset.seq_length
    seconds = sum(
        # Two arms share each first stage.
        sum(preset.max_steps[0 if arm in FILES else 1 :]) * step / model["tokens_per_second"]
        for arm, model in report["models"].items()
    )
    found = text.format(
        **report, preset_=preset, seeds=len(seeds), minutes=seconds / 60 / CORES, cores=CORES, step=step,
        stages=", ".join(f"{count:,} on dataset {stage}" for stage, count in enumerate(preset.max_steps, start=1)),
        first=tokens[0], others=" and ".join(f"{count:,}" for count in dict.fromkeys(tokens[1:])),
    )  # fmt: skip
    return "\n".join(paragraph(line, "  " * line.startswith("- ")) for line in found.splitlines())


TIME = (
    "At the speed of the recorded run, training takes about {minutes:.0f} minutes on {cores} CPU cores; tokenizing, "
    "evaluation and the report come on top."
)
MODEL = (
    "Preset `{preset}`, the recorded run: a Llama-style transformer with {parameters:,} parameters ({preset_.layers} "
    "layers, width {preset_.hidden_size}, vocabulary {preset_.vocabulary_size:,}, sequences of {preset_.seq_length} "
    "tokens). It takes steps of {step:,} tokens: {stages}."
)
LIMITS = (
    "- Small models on small text: {parameters:,} parameters, {seeds} seeds. The figures show the method, not a law. "
    "Repeat it with other seeds, larger presets and your data.\n"
    "- The test text of dataset 1 is small ({first:,} predicted tokens; the others have {others}).\n"
    "- The bundled code is the standard library of the Python that runs it, so other Python versions give other "
    "numbers; the fingerprint in the report tells. The recorded run used Python {versions[python]}."
)
BLOCKS = {
    "answer": format_answer,
    "model": format_model,
    "time": partial(format_prose, TIME),
    "limits": partial(format_prose, LIMITS),
}


def render(root: Path) -> dict[str, str]:
    """Every page below `root` as it should read, from `root`/results; raises `K1Error` if a record is missing."""
    folder = root / "results"

    def block(found: re.Match) -> str:
        if found["name"] in BLOCKS:
            text = BLOCKS[found["name"]](report, seeds)
        else:
            text = (folder / f"{found['name']}.md").read_text(encoding="utf-8").strip()
        return f"{found['begin']}{text}\n{found['end']}"

    try:
        report = json.loads((folder / "report.json").read_text())
        seeds = load_reports(sorted(folder.glob("seed*.json")))
        return {name: BLOCK.sub(block, (root / name).read_text(encoding="utf-8")) for name in PAGES}
    except OSError as error:
        raise K1Error(f"{error.filename} cannot be read ({error.strerror}); make record writes the results")


@command
def main() -> None:
    parser = module_parser("k1.study.readme", __doc__)
    parser.add_argument("--root", type=Path, default=Path("."), help="folder of README.md (default: this one)")
    root = parser.parse_args().root
    for name, text in render(root).items():
        write_text(root / name, text)


if __name__ == "__main__":
    main()
