"""python3 -m k1.study.map: where updating fewer parameters could pay, over shares, rehearsal and policies.

Datasets 2 and 3 are learned from one model of dataset 1 a seed, K-1's, with every
combination of the share of parameters that a step updates, the share of rehearsed
text, and the policy that chooses the parameters, at several learning rates. A run
that is recorded in results.json below --out is not repeated. Each cell is shown at
the rate with the lowest mean loss at the end on validation text, beside 100% with the
same rehearsal. The table goes to stdout and results.md, the picture to map.png.
"""

import argparse
from itertools import product

from matplotlib.figure import Figure

from k1.config import PRESETS, SETTINGS
from k1.errors import command
from k1.flag_types import checked, positive
from k1.sparse import UPDATE_FRACTION
from k1.study.frontier import frontier_figure
from k1.study.grid import Run, execute_in_turn, open_results, recorded_settings, show, study_parser
from k1.study.methods import HELD_RATES, MAP, PLASTIC_RATES
from k1.study.points import Point, averages_table, best_point, points_of

FRACTIONS = (0.01, 0.1, UPDATE_FRACTION)
REHEARSALS = (0.0, 1 / 16, 1 / 8, 1 / 4)
ALL = "random_windows"  # under this policy the runs of 100%, which has none, are recorded

Cells = dict[tuple[float, float, str], Point]


def own_rate(rate: float, share: float, policy: str) -> float:
    """The rate of a cell beside `rate` of 100%: that at which a step is about as long, the root of the sum of squares.

    The change of random windows is taken times 1/share already, that of the other policies is not.
    """
    return float(f"{rate * share ** (0.5 if policy == ALL else -0.5):.2g}")


def runs_of(arguments: argparse.Namespace, seed: int) -> list[Run]:
    """All runs of the map with `seed`: every share and policy, and 100% once."""
    cells = [(ALL, 1.0), *product(arguments.policies, arguments.shares)]
    return [
        Run(policy, seed, own_rate(rate, share, policy), (("update_fraction", share), ("rehearsal", rehearsal)))
        for rehearsal in arguments.rehearsals
        for policy, share in dict.fromkeys(cells)
        for rate in arguments.learning_rates or (HELD_RATES if rehearsal else PLASTIC_RATES)
    ]


def cells_of(records: dict[str, dict]) -> Cells:
    """The best point of each (rehearsal, share, policy), in this order."""
    found: dict[tuple[float, float, str], list[Point]] = {}
    for policy, points in points_of(records, MAP).items():
        for point in points:
            setting = dict(point.setting)
            found.setdefault((setting["rehearsal"], setting["update_fraction"], policy), []).append(point)
    return {cell: best_point(found[cell]) for cell in sorted(found)}


def map_table(cells: Cells) -> str:
    """Every cell beside 100% with the same rehearsal, as Markdown."""
    rows = [(MAP[policy].label if share < 1 else "all", point) for (_, share, policy), point in cells.items()]
    return str(averages_table(rows, lambda point: cells.get((dict(point.setting)["rehearsal"], 1.0, ALL)), "100%"))


def map_figure(cells: Cells) -> Figure:
    """One panel a policy, one line a share over its rehearsal; 100% is in every panel."""
    panels = {}
    for policy in (policy for policy in MAP if any(found == policy for _, _, found in cells)):
        shares = sorted({share for _, share, found in cells if found == policy} | {1.0})
        panels[MAP[policy].label] = {
            f"{share:.0%}": [cells[cell] for cell in cells if cell[1:] == (share, ALL if share == 1 else policy)]
            for share in shares
        }
    return frontier_figure(panels)


@command
def main() -> None:
    parser = study_parser("k1.study.map", __doc__, "models/map")
    share = checked(float, ("above 0 and below 1", lambda value: 0 < value < 1))
    rehearsal = checked(float, SETTINGS["rehearsal"].bounds)
    parser.add_argument("--shares", nargs="+", type=share, default=FRACTIONS, help="of the parameters, besides 1")
    parser.add_argument("--rehearsals", nargs="+", type=rehearsal, default=REHEARSALS, help="shares of rehearsed text")
    parser.add_argument("--policies", nargs="+", choices=list(MAP), default=list(MAP), metavar="POLICY")
    parser.add_argument("--learning_rates", nargs="+", type=positive, help="of 100%% (default: as in the study)")
    arguments = parser.parse_args()
    results = open_results(arguments.out, recorded_settings(arguments))
    later = {run: "k1" for seed in arguments.seeds for run in runs_of(arguments, seed)}
    first_rates = {"k1": [PRESETS[arguments.preset].learning_rate["k1"][0]]}
    cells = cells_of(execute_in_turn(later, first_rates, results, arguments))
    show(arguments.out, map_table(cells), "map.png", map_figure(cells))


if __name__ == "__main__":
    main()
