"""What the commands that train several runs share: their flags, and the folder that records the runs."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from k1.config import PRESETS
from k1.errors import K1Error, UsageError, module_parser
from k1.files import lock
from k1.report.tables import dataset_label
from k1.study.execution import load_results


def study_parser(module: str, description: str, out: str) -> argparse.ArgumentParser:
    """The command line of `module` with the flags that all of these commands have; `out` is the folder by default."""
    parser = module_parser(module, description)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--preset", choices=list(PRESETS), default="study")
    parser.add_argument("--data_source", choices=["auto", "hub", "bundled"], default="bundled")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder (default: %(default)s)")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags of this process, checked as far as all of these commands have them; ends it if one cannot be."""
    arguments = parser.parse_args()
    if arguments.jobs < 1 or min(arguments.seeds) < 0:
        parser.error("--jobs must be at least 1 and --seeds at least 0")
    return arguments


def label_of(name: str) -> str:
    """How the dataset that a user calls `name` is called in records and tables: a local one by its file name."""
    path = Path(name).expanduser()
    return dataset_label(str(path.resolve())) if path.exists() else name


def require_different(names: Sequence[str]) -> None:
    """Raise `UsageError` if two of the datasets `names` have the same name in records and tables."""
    labels = [label_of(name) for name in names]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--dataset_names has {label} twice; name different datasets, files by different names")


def recorded_settings(arguments: argparse.Namespace) -> dict:
    """What all runs of a command share, as plain values: the preset's shape, the datasets and where they come from.

    Learning rates are not in it: they belong to the runs. Raises
    `UsageError` as `require_different` does.
    """
    require_different(arguments.dataset_names)
    shape = vars(PRESETS[arguments.preset]).copy()
    del shape["learning_rate"]
    chosen = {name: getattr(arguments, name) for name in ("dataset_names", "data_source")}
    return json.loads(json.dumps({"preset": arguments.preset, **shape, **chosen}))


def open_results(out: Path, settings: dict) -> dict:
    """Make the folder `out`, keep other processes from writing there, and return what it has recorded so far.

    Raises `K1Error` if the folder cannot be made, and as `k1.study.execution.load_results` does.
    """
    results = load_results(out / "results.json", settings)
    try:
        (out / "first").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise K1Error(f"cannot write into {out} ({error.strerror}); choose another --out")
    lock(out / "results.json")
    return results
