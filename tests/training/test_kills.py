"""Training scripts that are killed at random moments and started again end with the same bits as undisturbed ones."""

import os
import random
import shutil
import signal
import time

import pytest
import torch

from k1.experiment import FILES
from k1.files import content_digest
from tests.conftest import run_script, status_of
from tests.training.test_resume import start_and_heed

pytestmark = pytest.mark.slow

# `make kills` asks for more, and of all scripts.
KILLS = int(os.environ.get("KILLS", 10))
KILLS_A_RUN = 5
STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
OUTPUTS = {
    **{f"train_k1_dataset{stage}.py": [file] for stage, file in enumerate(FILES["k1"], start=1)},
    "train_baseline_all.py": list(FILES["baseline"]),
}
SCRIPTS = list(OUTPUTS) if "KILLS" in os.environ else list(OUTPUTS)[:2]


def is_writing(models_dir):
    """Whether a checkpoint or resume file is just being written."""
    return any(file.name.startswith(".") and ".pt." in file.name for file in models_dir.iterdir())


def kill_until_it_ends(script, flags, kills, duration, models_dir, generator):
    """Kill `script` `kills` times, each at a random moment of the `duration` that it takes, then let it end.

    Returns how often it was killed, and how many starts resumed.
    """
    killed, resumed, files = 0, 0, [models_dir.with_suffix(end) for end in (".out", ".err")]
    while True:
        files[1].unlink(missing_ok=True)
        process, number = start_and_heed(script, flags, *files), None
        if killed < kills:
            number = generator.choices(list(STATUS), weights=[2, 1, 1])[0]
            waits_for_write = number == signal.SIGKILL and generator.random() < 0.5
            end = time.monotonic() + generator.uniform(0, duration)
            while process.exitcode is None and (
                time.monotonic() < end or waits_for_write and not is_writing(models_dir)
            ):
                time.sleep(0.001)
            if process.exitcode is None:
                os.kill(process.pid, number)
                killed += 1
        status, errors = status_of(process), files[1].read_text()
        resumed += "resuming from" in errors
        # Before a script's first line multiprocessing tells of a Ctrl-C, and of nothing else.
        is_unbegun = errors.startswith("Process ") and errors.endswith("KeyboardInterrupt\n")
        if number != signal.SIGINT or not is_unbegun:
            assert "Traceback" not in errors
            if status == 0:
                return killed, resumed
            assert number is not None and status in (STATUS[number], -number), errors


def content_of(file):
    """The digest of a checkpoint, but for times."""
    content = torch.load(file, weights_only=True)
    history = [{**entry, "tokens_per_second": 0} for entry in content["history"]]
    return content_digest({**content, "history": history, "sha256": ""})


def test_scripts_that_are_killed_and_started_again_end_with_the_same_bits(corpora, tmp_path):
    generator, counts, expected = random.Random(1), [], tmp_path / "undisturbed"
    for script in SCRIPTS:
        stages = [int(script[-4]) - 1] if "dataset" in script else [0, 1, 2]
        flags = ["--preset", "smoke", "--threads", 1, "--save_steps", 2]
        flags += [f"--dataset_name{'s' * (len(stages) > 1)}", *(corpora[stage] for stage in stages), "--models_dir"]
        started = time.monotonic()
        assert run_script(script, *flags, expected).returncode == 0
        duration, killed = time.monotonic() - started, 0
        while killed < KILLS // len(SCRIPTS):
            models_dir = tmp_path / f"{script}{len(counts)}"
            shutil.copytree(expected, models_dir, ignore=shutil.ignore_patterns(*OUTPUTS[script], ".*"))
            kills = min(KILLS_A_RUN, KILLS // len(SCRIPTS) - killed)
            counts.append(kill_until_it_ends(script, [*flags, models_dir], kills, duration, models_dir, generator))
            killed += counts[-1][0]
            assert not [file.name for file in models_dir.iterdir() if "resume" in file.name or ".pt." in file.name]
            for file in OUTPUTS[script]:
                assert content_of(models_dir / file) == content_of(expected / file), (script, file)
    killed, resumed = map(sum, zip(*counts))
    assert killed == KILLS // len(SCRIPTS) * len(SCRIPTS) and resumed > 0
