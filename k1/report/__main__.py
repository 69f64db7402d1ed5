"""python3 -m k1.report: K-1 and baseline side by side, and the verdict on the four success criteria."""

import json
import sys
from pathlib import Path

from k1.config import resolve_device
from k1.errors import Parser, command, user_path
from k1.files import write_text
from k1.flag_types import file_to_write, folder_to_write
from k1.report.comparison import datasets_of, load_runs, report_of
from k1.report.page import continue_all, format_page
from k1.report.plots import FIGURES, write_figure
from k1.report.tables import format_report


@command
def main() -> None:
    parser = Parser(prog="python3 -m k1.report", description=__doc__)
    parser.add_argument("--models_dir", type=user_path, default=Path("models"), help="folder of the checkpoints")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="also write the same numbers to FILE")
    parser.add_argument(
        "--html", type=file_to_write, metavar="FILE", help="also write a page with texts and pictures to FILE"
    )
    parser.add_argument("--plots", type=folder_to_write, metavar="DIR", help="also draw the figures as PNG into DIR")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    runs = load_runs(arguments.models_dir)
    datasets = datasets_of(runs["k1"][-1])
    # Before the report sets the number of threads: with the generate scripts' own the bits are theirs.
    continuations = continue_all(runs, device) if arguments.html else []
    report = report_of(arguments.models_dir, runs, datasets, device)
    print(format_report(report), flush=True)
    if arguments.json:
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")
    for name, figure in FIGURES.items() if arguments.plots else ():
        write_figure(arguments.plots / f"{name}.png", figure(report))
    if arguments.html:
        write_text(arguments.html, format_page(report, continuations))
        print(f"the report as a page: {arguments.html}", file=sys.stderr)


if __name__ == "__main__":
    main()
