"""Events for TensorBoard: what the history says, each step once, and no bit of a model depends on them."""

import copy
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from k1.checkpoints import ResumeFile, load_checkpoint
from k1.config import parse_training_flags
from k1.training.event_log import EventLog
from k1.training.trainer import StageTrainer
from tests.conftest import assert_one_clear_line, run_script, train
from tests.training.test_resume import Killed, arguments_of, dataset_of

STEPS = 13


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch):
    """Number the event files of a test from 0: those of one second are read in the order of names, "10" before "9"."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def points(folder) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of all events that TensorBoard shows of a run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


class KilledAtStep(ResumeFile):
    """Saves every 6 steps, and ends the training at a step between two savings."""

    def __init__(self, output, step):
        super().__init__(output, save_steps=6)
        self.step = step

    def is_due(self, step):
        if step == self.step:
            raise Killed
        return super().is_due(step)


def trained(tiny_model, log, resume_file=None):
    """History and weights of a model that begins as `tiny_model` does."""
    model = copy.deepcopy(tiny_model)
    history = StageTrainer(model, dataset_of(10), arguments_of(max_steps=STEPS)).run(resume_file, log)
    return history, model.state_dict()


def assert_shows(folder, history):
    found = points(folder)
    assert len(found) == 5 and [entry["step"] for entry in history] == list(range(1, STEPS + 1))
    for tag, shown in found.items():
        expected = [(entry["step"], entry[tag.removeprefix("training/")]) for entry in history]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_the_events_are_the_history_and_change_no_bit_and_a_new_beginning_replaces_them(tiny_model, tmp_path):
    expected, weights = trained(tiny_model, None)
    for _ in range(2):
        history, found = trained(tiny_model, EventLog(tmp_path))
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        assert [entry["loss"] for entry in history] == [entry["loss"] for entry in expected]
        assert_shows(tmp_path, history)


@pytest.mark.parametrize("step", [2, 9])
def test_a_stopped_training_continues_its_log_without_double_points(tiny_model, tmp_path, step):
    output, folder = tmp_path / "k1_dataset1.pt", tmp_path / "runs"
    with pytest.raises(Killed):
        trained(tiny_model, EventLog(folder), KilledAtStep(output, step))
    assert len(points(folder)["training/loss"]) == step
    history, _ = trained(tiny_model, EventLog(folder), ResumeFile(output))
    assert_shows(folder, history)


def test_flags_of_logs_are_no_arguments():
    plain, logged = (
        parse_training_flags("", "k1", flags)
        for flags in ([], ["--report_to", "tensorboard", "--logging_dir", "elsewhere"])
    )
    assert logged.resolve(1) == plain.resolve(1)


def hide_tensorboard():
    sys.modules["tensorboard"] = None


def test_a_missing_package_is_named_before_anything_is_read(tmp_path):
    flags = ["--report_to", "tensorboard", "--models_dir", tmp_path / "models"]
    finished = run_script("train_k1_dataset1.py", *flags, prepare=hide_tensorboard)
    assert_one_clear_line(finished, 1, "needs a package that is missing; run: pip install tensorboard")


@pytest.mark.slow
def test_a_script_logs_training_and_evaluations_beside_its_checkpoints(tmp_path, corpora):
    flags = ["--max_steps", 3, "--report_to", "tensorboard"]
    finished = train("train_baseline_all.py", tmp_path, corpora, *flags)
    assert finished.returncode == 0, finished.stderr
    checkpoint, folder = load_checkpoint(tmp_path / "baseline_dataset2.pt"), tmp_path / "runs" / "baseline_dataset2"
    losses = [pytest.approx(entry["loss"], rel=1e-6) for entry in checkpoint.history]
    assert points(folder)["training/loss"] == list(enumerate(losses, start=1))
    found = points(folder / "evaluation")
    before, after = (pytest.approx(row[str(corpora[1])]["test"]["accuracy"]) for row in checkpoint.evaluations)
    assert found[f"accuracy/test/{corpora[1].name}"] == [(0, before), (3, after)]
    old = checkpoint.evaluations[-1][str(corpora[0])]["validation"]["loss"]
    assert found["loss/validation/rivers.jsonl"] == [(3, pytest.approx(old, rel=1e-6))]
