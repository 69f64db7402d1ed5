"""python3 -m k1.study.readme: write the figures of the Markdown pages from what results/ records.

A page is written by hand but for its blocks, each between two lines

    <!-- begin NAME -->
    <!-- end NAME -->

which are replaced by `BLOCKS[NAME]`, with the figures of the recorded reports in it, or
by the file results/NAME.md. The same results give the same pages, however often.
"""

import json
import re
import textwrap
from pathlib import Path

from k1.config import PRESETS
from k1.errors import K1Error, command, module_parser
from k1.experiment import ARMS, FILES
from k1.files import write_text
from k1.report.metrics import mean_and_interval, mean_matrix, own_and_end
from k1.report.tables import format_table, labels_of
from k1.study.seeds import load_reports

PAGES = ("README.md", "results/README.md", "k1/README.md", "k1/training/README.md")
BLOCK = re.compile(r"(?P<begin>^<!-- begin (?P<name>\w+) -->\n).*?(?P<end>^<!-- end (?P=name) -->$)", re.M | re.S)
CORES = 2
BLOCKS = {
    "answer": (
        "Next-token accuracy on test text in %, after the dataset's own stage -> after all three, and how much of it "
        "is forgotten, mean of the first two datasets with its 95% interval; {seeds} seeds:\n\n{answer}"
    ),
    "time": (
        "At the speed of the recorded run, training takes about {minutes:.0f} minutes on {cores} CPU cores; "
        "tokenizing, evaluation and the report come on top."
    ),
    "model": (
        "Preset `{preset}`, the recorded run: a Llama-style transformer with {parameters:,} parameters "
        "({settings.layers} layers, width {settings.hidden_size}, vocabulary {settings.vocabulary_size:,}, sequences "
        "of {settings.seq_length} tokens). It takes steps of {step:,} tokens: {stages}.\n\n{texts}"
    ),
    "limits": (
        "- Small models on small text: {parameters:,} parameters, {seeds} seeds. The figures show the method, not a "
        "law. Repeat it with other seeds, larger presets and your data.\n"
        "- The test text of dataset 1 is small ({first:,} predicted tokens; the others have {others}).\n"
        "- The bundled code is the standard library of the Python that runs it, so other Python versions give other "
        "numbers; the fingerprint in the report tells. The recorded run used Python {versions[python]}."
    ),
}


def answer_table(reports: list[dict]) -> str:
    """The table of the first screen: accuracy and forgetting, arm by dataset, means over the seeds."""
    rows = [["", *labels_of(reports[0]), "Forgotten, %"]]
    for arm, label in ARMS.items():
        models = [report["models"][arm] for report in reports]
        own, end = 100 * own_and_end(mean_matrix([model["accuracy_matrix"] for model in models]))
        cells = [f"{before:.1f} -> {after:.1f}" for before, after in zip(own, end)]
        forgotten = mean_and_interval([model["average_forgetting_percent"] for model in models], 1)
        # Nothing follows the last dataset.
        rows.append([label, *cells[:-1], f"{end[-1]:.1f}", forgotten])
    return format_table(rows)


def figures(report: dict, seeds: list[dict]) -> dict:
    """What `BLOCKS` name, of the recorded run `report` and of all `seeds`."""
    preset, tokens = PRESETS[report["preset"]], [own["tokens"] for own in report["models"]["k1"]["own"].values()]
    step = preset.batch_size * preset.gradient_accumulation_steps * preset.seq_length
    seconds = sum(
        # Two arms share each first stage.
        sum(preset.max_steps[0 if arm in FILES else 1 :]) * step / model["tokens_per_second"]
        for arm, model in report["models"].items()
    )
    texts = [["Dataset", "Source", "Training tokens", "Test tokens"]]
    for label, dataset in zip(labels_of(report), report["datasets"]):
        texts.append([label, dataset["source"], *(f"{dataset['tokens'][split]:,}" for split in ("train", "test"))])
    return report | {
        "answer": answer_table(seeds), "texts": format_table(texts), "settings": preset, "seeds": len(seeds),
        "minutes": seconds / 60 / CORES, "cores": CORES, "step": step,
        "stages": ", ".join(f"{count:,} on dataset {stage}" for stage, count in enumerate(preset.max_steps, start=1)),
        "first": tokens[0], "others": " and ".join(f"{count:,}" for count in dict.fromkeys(tokens[1:])),
    }  # fmt: skip


def wrapped(line: str) -> str:
    """`line` in lines of at most 100 characters, unless it is of a table; those of a list are indented."""
    indent = "  " * line.startswith("- ")
    return line if line.startswith("|") else textwrap.fill(line, 100, subsequent_indent=indent, break_on_hyphens=False)


def render(root: Path) -> dict[str, str]:
    """Every page below `root` as it should read, from `root`/results; raises `K1Error` if a record is missing."""
    folder = root / "results"

    def block(found: re.Match) -> str:
        if found["name"] in BLOCKS:
            text = "\n".join(map(wrapped, BLOCKS[found["name"]].format(**known).splitlines()))
        else:
            text = (folder / f"{found['name']}.md").read_text(encoding="utf-8").strip()
        return f"{found['begin']}{text}\n{found['end']}"

    try:
        report = json.loads((folder / "report.json").read_text())
        known = figures(report, load_reports(sorted(folder.glob("seed*.json"))))
        return {name: BLOCK.sub(block, (root / name).read_text(encoding="utf-8")) for name in PAGES}
    except OSError as error:
        raise K1Error(f"{error.filename} cannot be read ({error.strerror}); make record writes the results")


@command
def main() -> None:
    module_parser("k1.study.readme", __doc__).parse_args()
    for name, text in render(Path(".")).items():
        write_text(Path(name), text)


if __name__ == "__main__":
    main()
