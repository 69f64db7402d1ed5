"""python3 -m k1.report: K-1 and baseline side by side, and the verdict on the four success criteria."""

import argparse
import json
import tempfile
from pathlib import Path

from k1.arguments import resolve_device
from k1.errors import command
from k1.files import write_text
from k1.report.comparison import build_report
from k1.report.plots import plot_report
from k1.report.text import format_report


@command
def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m k1.report", description=__doc__, allow_abbrev=False)
    parser.add_argument("--models_dir", type=Path, default=Path("models"), help="folder of the checkpoints")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the same numbers to FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also draw the figures as PNG into DIR")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    arguments = parser.parse_args()
    if arguments.json and (arguments.json.is_dir() or not arguments.json.absolute().parent.is_dir()):
        parser.error(f"--json {arguments.json} is not a file in an existing folder")
    if arguments.plots:
        try:
            arguments.plots.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=arguments.plots):
                pass
        except OSError as error:
            parser.error(f"--plots {arguments.plots} is not a folder that can be written ({error.strerror})")
    report = build_report(arguments.models_dir, resolve_device(arguments.device))
    print(format_report(report), flush=True)
    if arguments.json:
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")
    if arguments.plots:
        plot_report(report, arguments.plots)


if __name__ == "__main__":
    main()
