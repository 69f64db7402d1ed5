"""What each fault of the hub ends in and after how long, with the time-outs of k1.data.hub as they are.

`python3 -m tests.data.hub_faults` prints fault, where it is, dataset, seconds and outcome; about four minutes.
"""

import sys
import tempfile

from tests.data.hub import FAULTS, PLACES, hub_server, run_child, token

NAMES = ("wikitext", "code", "science", "stories")


def main() -> None:
    cases = [
        (fault, place, name)
        for fault in FAULTS
        for place in (PLACES[:3] if fault.isdigit() or fault == "hang" else ("files",))
        for name in NAMES
    ]
    loads = [
        {"token": token(fault, place), "home": f"{fault}-{place}-{name}", "loads": [[name, "auto"]]}
        for fault, place, name in cases
    ]
    with hub_server() as endpoint, tempfile.TemporaryDirectory() as home:
        [results] = run_child(home, endpoint, [loads])
    print("| Fault | Where | Dataset | Seconds | Outcome of --data_source auto |\n|---|---|---|---:|---|")
    for (fault, place, name), result in zip(cases, results):
        [load] = result["loads"]
        outcome = (result["printed"] or "error: " + load["error"]).strip().replace("a" * 40, "...")
        print(f"| {fault} | {place} | {name} | {load['seconds']:.1f} | {outcome.replace(endpoint, 'http://hub')} |")
    sys.exit(any(result["loads"][0]["seconds"] > 60 for result in results))


if __name__ == "__main__":
    main()
