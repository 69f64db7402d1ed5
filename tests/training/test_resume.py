"""A training that is stopped, at any step and in any way, resumes and ends with the same bits."""

import copy
import os
import resource
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch

from k1.checkpoints import ResumeFile
from k1.config import settings_of
from k1.data.loader import TokenizedDataset
from k1.data.tokenizer import END_OF_DOCUMENT
from k1.errors import K1Error
from k1.files import lock
from k1.training.rehearsal import begin_rehearsal, write_rehearsal
from k1.training.trainer import StageTrainer
from tests.conftest import assert_one_clear_line, run_script, start_script, train

TOKENIZER = SimpleNamespace(get_vocab={END_OF_DOCUMENT: 0}.copy, post_processor=None)


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


class KilledAfter(ResumeFile):
    """Ends the training right after the resume file of a step has been written."""

    def __init__(self, output, step):
        super().__init__(output, save_steps=step)

    def save(self, state):
        super().save(state)
        raise Killed


def dataset_of(blocks: int, seed: int = 0) -> TokenizedDataset:
    ids = torch.randint(0, 37, (blocks, 8), generator=torch.Generator().manual_seed(seed))
    table = datasets.Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    return TokenizedDataset(
        "letters", "local", f"fingerprint {seed}", {}, {"train": table}, {"train": 8 * blocks}, [], 1
    )


def arguments_of(stage=1, method="k1", **settings):
    arguments = settings_of(method, "smoke", seq_length=8, batch_size=4, threads=1)
    return replace(arguments, **{"stage": stage, "max_steps": 13, "warmup_steps": 2, **settings})


def trained_parameters(model, arguments, resume_file=None):
    """The parameters and the losses after training `model`, with rehearsal if `arguments` has it."""
    written = write_rehearsal(model, dataset_of(7), TOKENIZER, arguments)
    rehearsal = begin_rehearsal(model, written, TOKENIZER, arguments)
    history = StageTrainer(model, dataset_of(10), arguments, rehearsal).run(resume_file)
    return dict(model.named_parameters()), [(entry["step"], entry["loss"]) for entry in history]


@pytest.mark.parametrize("step", [6, 13])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "baseline"},
        {"gradient_accumulation_steps": 2},
        {"policy": "error_feedback"},
        {"policy": "stage"},
        {"stage": 2, "rehearsal": 0.5, "rehearsal_interval": 4, "forgetting_budget": 0.01},
    ],
    ids=["baseline", "windows", "error_feedback", "stage", "rehearsal"],
)
def test_a_stopped_training_ends_with_the_same_bits(tiny_model, tmp_path, settings, step):
    arguments = arguments_of(**settings)
    initial = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    expected, losses = trained_parameters(copy.deepcopy(tiny_model), arguments)
    output = tmp_path / "k1_dataset1.pt"
    with pytest.raises(Killed):
        trained_parameters(copy.deepcopy(tiny_model), arguments, KilledAfter(output, step))
    assert torch.load(output.with_suffix(".resume.pt"), weights_only=True)["step"] == step
    found, losses_found = trained_parameters(copy.deepcopy(tiny_model), arguments, ResumeFile(output))
    assert losses_found == losses
    for name, parameter in expected.items():
        assert torch.equal(parameter, found[name]), name
    assert any(not torch.equal(value, initial[name]) for name, value in found.items() if name in initial)


def test_a_trainer_is_stepped_from_outside_and_hands_its_state_to_another(tiny_model):
    """With the same bits as one that runs, whose state was moved through memory between two steps."""
    arguments = arguments_of(stage=2, rehearsal=0.5, rehearsal_interval=4)
    expected, losses = trained_parameters(copy.deepcopy(tiny_model), arguments)

    def trainer_of(model):
        written = write_rehearsal(tiny_model, dataset_of(7), TOKENIZER, arguments)
        rehearsal = begin_rehearsal(tiny_model, written, TOKENIZER, arguments)
        return StageTrainer(model, dataset_of(10), arguments, rehearsal)

    first = trainer_of(copy.deepcopy(tiny_model))
    found = [first.step() for _ in range(6)]
    second = trainer_of(copy.deepcopy(tiny_model))
    second.load_state_dict(first.state_dict())
    first.step()
    found += [second.step() for _ in range(arguments.max_steps - second.done)]
    assert [(step, loss) for step, (loss, _) in enumerate(found, start=1)] == losses
    assert all(map(torch.equal, expected.values(), second.model.parameters()))


def stopped(tiny_model, tmp_path) -> ResumeFile:
    output = tmp_path / "k1_dataset1.pt"
    with pytest.raises(Killed):
        trained_parameters(copy.deepcopy(tiny_model), arguments_of(), KilledAfter(output, 5))
    return ResumeFile(output)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"max_steps": 14}, "max_steps 13, not 14"),
        ({"stage": 2}, "stage 1, not 2"),
        ("text", "fingerprint fingerprint 0, not fingerprint 1"),
        ("weights", "starting state"),
        ("libraries", "torch .*, not 9.9"),
    ],
)
def test_a_resume_file_of_another_training_is_refused_or_replaced(
    tiny_model, tmp_path, monkeypatch, change, difference
):
    resume_file = stopped(tiny_model, tmp_path)
    if change == "weights":
        torch.nn.init.ones_(tiny_model.lm_head.weight)
    if change == "libraries":
        monkeypatch.setattr("k1.checkpoints.library_versions", lambda: {"torch": "9.9"})
    arguments = arguments_of(**change) if isinstance(change, dict) else arguments_of()
    trainer = StageTrainer(tiny_model, dataset_of(10, seed=int(change == "text")), arguments)
    with pytest.raises(K1Error, match=f"begun training with {difference}.*; add --overwrite"):
        trainer.run(resume_file)
    trainer.run(ResumeFile(tmp_path / "k1_dataset1.pt", overwrite=True))
    assert trainer.history[0]["step"] == 1


def test_a_damaged_resume_file_is_refused_unless_overwrite(tiny_model, tmp_path):
    path = stopped(tiny_model, tmp_path).path
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(K1Error, match="damaged or is not a resume file; add --overwrite"):
        ResumeFile(tmp_path / "k1_dataset1.pt")
    assert ResumeFile(tmp_path / "k1_dataset1.pt", overwrite=True).take(arguments_of().as_dict()) is None


def test_a_finished_training_takes_its_own_resume_file_along_and_no_other(tiny_model, tmp_path):
    resume_file = stopped(tiny_model, tmp_path)
    resume_file.remove(arguments_of(max_steps=14))
    assert resume_file.path.exists()
    resume_file.remove(arguments_of())
    assert not resume_file.path.exists()


def test_saves_are_due_by_steps_or_by_time(tmp_path, monkeypatch):
    by_steps, by_time = ResumeFile(tmp_path / "a.pt", save_steps=3), ResumeFile(tmp_path / "a.pt")
    assert [step for step in range(1, 10) if by_steps.is_due(step)] == [3, 6, 9]
    assert not by_time.is_due(1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert by_time.is_due(1)


def test_a_full_disk_is_a_warning_while_training(tiny_model, tmp_path, monkeypatch, capsys):
    def full_disk(content, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    trained_parameters(tiny_model, arguments_of(), ResumeFile(tmp_path / "k1_dataset1.pt", save_steps=2))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert warnings and "No space left on device" in warnings[0]
    assert os.listdir(tmp_path) == []


def test_a_file_that_another_process_writes_is_not_written_twice(tmp_path):
    path = tmp_path / "k1_dataset1.pt"
    lock(path)
    flags = ("train_k1_dataset1.py", "--preset", "smoke", "--data_source", "bundled", "--models_dir", tmp_path)
    assert_one_clear_line(run_script(*flags), 1, f"another process is writing {path}")


def start_and_heed(script: str, flags: list[object], stdout: Path, stderr: Path) -> BaseProcess:
    """Start a script that can be interrupted, also if the tests run in the background; returns when it is to begin."""
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = start_script(script, flags, stdout, stderr, prepare=heed)
    wait_for(stderr.exists)
    return process


def wait_for(condition, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.slow
def test_a_write_quota_keeps_the_old_checkpoint_and_the_script_says_so(trained, tmp_path):
    (tmp_path / "models").mkdir()
    old = trained.models_dir / "baseline_dataset1.pt"
    shutil.copy(old, tmp_path / "models")
    assert old.stat().st_size > 200_000
    run = "train_baseline_all.py", tmp_path / "models", trained.corpora, "--max_steps", 3, "--overwrite"
    finished = train(*run, prepare=limit_file_size)
    assert_one_clear_line(finished, 1, "cannot write", "File too large")
    left = [name for name in os.listdir(tmp_path / "models") if not name.endswith(".lock")]
    assert left == ["baseline_dataset1.pt"]
    assert (tmp_path / "models" / "baseline_dataset1.pt").read_bytes() == old.read_bytes()
