"""Start-up: seconds until a command answers, and until what a contestant needs is imported."""

import subprocess
import sys
from functools import partial

from k1.benchmark.growth import ROOT
from k1.benchmark.pacing import alternate, spread
from k1.errors import K1Error

COMMANDS = {
    "python3": ["-c", "pass"],
    "generate_k1.py --help": [str(ROOT / "generate_k1.py"), "--help"],
    "import k1": ["-c", "import k1"],
    "this project's training": ["-c", "from k1 import train"],
    "bare PyTorch loop": ["-c", "import torch, transformers; transformers.LlamaForCausalLM"],
    "Hugging Face Trainer": ["-c", "from transformers import Trainer, LlamaForCausalLM"],
    "LoRA (peft)": ["-c", "import peft; from transformers import LlamaForCausalLM"],
    "plain GPT": ["-c", "import torch"],
}


def start_up(rounds: int, without: set[str]) -> dict[str, dict[str, float]]:
    """Seconds, with quartiles, of each of `COMMANDS` in a process of its own, in turn, but those in `without`."""

    def run(name: str) -> None:
        finished = subprocess.run([sys.executable, *COMMANDS[name]], capture_output=True, text=True, cwd=ROOT)
        if finished.returncode:
            raise K1Error(f"{name} does not start: {finished.stderr.strip()[-200:]}")

    runs = {name: partial(run, name) for name in COMMANDS if name not in without}
    seconds = alternate(runs, rounds, warm_up=0)
    return {name: spread(values) for name, values in seconds.items()}
