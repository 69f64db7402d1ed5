"""Events for TensorBoard: what the history says, each step once, and no bit of a model depends on them."""

import sys
import threading

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from k1.checkpoints.storage import load_checkpoint
from k1.config import parse_training_flags
from k1.errors import K1Error
from k1.model import build_model
from k1.training.event_log import SCALARS, EventLog
from k1.training.resume import ResumeFile
from k1.training.trainer import StageTrainer
from tests.conftest import assert_one_clear_line, run_script
from tests.training.test_resume import Killed, arguments_of, dataset_of

STEPS = 13


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch):
    """Number the event files of a test from 0: those of one second are read in the order of names, "10" before "9"."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def flags_of(folder, *argv):
    return parse_training_flags("", "k1", ["--models_dir", str(folder), "--report_to", "tensorboard", *argv])


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
    model = build_model(tiny_model.config.to_dict(), seed=0)
    history = StageTrainer(model, dataset_of(10), arguments_of(max_steps=STEPS)).run(
        resume_file=resume_file, event_log=log
    )
    return history, model.state_dict()


def assert_shows(folder, history):
    found = points(folder)
    assert set(found) == {f"training/{name}" for name in SCALARS}
    for name in SCALARS:
        steps, values = zip(*found[f"training/{name}"])
        assert list(steps) == [entry["step"] for entry in history] == list(range(1, STEPS + 1))
        assert values == pytest.approx([entry[name] for entry in history], rel=1e-6)


def test_the_events_are_the_history_and_change_no_bit(tiny_model, tmp_path):
    expected, weights = trained(tiny_model, None)
    history, found = trained(tiny_model, EventLog(flags_of(tmp_path), tmp_path / "k1_dataset1.pt"))
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in expected]
    assert_shows(tmp_path / "runs" / "k1_dataset1", history)


@pytest.mark.parametrize("step", [2, 9])
def test_a_stopped_training_goes_on_in_its_log_without_double_points(tiny_model, tmp_path, step):
    output, flags = tmp_path / "k1_dataset1.pt", flags_of(tmp_path)
    with pytest.raises(Killed):
        trained(tiny_model, EventLog(flags, output), KilledAtStep(output, step))
    assert len(points(tmp_path / "runs" / "k1_dataset1")["training/loss"]) == step
    history, _ = trained(tiny_model, EventLog(flags, output), ResumeFile(output))
    assert_shows(tmp_path / "runs" / "k1_dataset1", history)


def test_a_log_is_not_part_of_what_a_training_is(tiny_model, tmp_path):
    """One that was begun without resumes with it, and the other way round."""
    output = tmp_path / "k1_dataset1.pt"
    with pytest.raises(Killed):
        trained(tiny_model, None, KilledAtStep(output, 7))
    with pytest.raises(Killed):
        trained(tiny_model, EventLog(flags_of(tmp_path), output), KilledAtStep(output, 11))
    found = points(tmp_path / "runs" / "k1_dataset1")["training/loss"]
    assert [step for step, _ in found] == list(range(7, 12))
    trained(tiny_model, None, ResumeFile(output))


def test_a_new_beginning_takes_the_place_of_the_old_one(tiny_model, tmp_path):
    log = EventLog(flags_of(tmp_path), tmp_path / "k1_dataset1.pt")
    trained(tiny_model, log)
    evaluation = {"a": {"test": {"loss": 2.0, "perplexity": 7.4, "accuracy": 0.25, "tokens": 9}}}
    for _ in range(2):
        log.add_evaluations(evaluation, evaluation, STEPS)
    history, _ = trained(tiny_model, EventLog(flags_of(tmp_path), tmp_path / "k1_dataset1.pt"))
    assert_shows(tmp_path / "runs" / "k1_dataset1", history)
    shown = points(tmp_path / "runs" / "k1_dataset1" / "evaluation")
    assert shown["accuracy/test/a"] == [(0, 0.25), (STEPS, 0.25)] and len(shown) == 3


def test_a_disk_that_takes_no_events_is_one_warning(tiny_model, tmp_path, monkeypatch, capsys):
    expected, weights = trained(tiny_model, None)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full_disk)
    log = EventLog(flags_of(tmp_path), tmp_path / "k1_dataset1.pt")
    history, found = trained(tiny_model, log)
    log.add_evaluations({}, {}, STEPS)
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    printed = capsys.readouterr().err
    assert printed.count("warning: cannot write events into") == 1 and "No space left on device" in printed
    assert "Traceback" not in printed


def test_without_the_flag_nothing_is_written(tiny_model, tmp_path):
    flags = parse_training_flags("", "k1", ["--models_dir", str(tmp_path / "models")])
    log = EventLog(flags, tmp_path / "models" / "k1_dataset1.pt")
    trained(tiny_model, log)
    log.add_evaluations({}, {}, STEPS)
    assert not (tmp_path / "models").exists()


def test_flags_of_logs_are_no_arguments(tmp_path):
    plain = parse_training_flags("", "k1", ["--models_dir", str(tmp_path)])
    assert flags_of(tmp_path, "--logging_dir", "elsewhere").resolve(1) == plain.resolve(1)


def hide_tensorboard():
    sys.modules["tensorboard"] = None


def test_a_missing_package_is_named_before_anything_is_read(tmp_path):
    flags = ["--report_to", "tensorboard", "--models_dir", tmp_path / "models"]
    for script in ("train_k1_dataset1.py", "train_baseline_all.py"):
        finished = run_script(script, *flags, prepare=hide_tensorboard)
        assert_one_clear_line(finished, 1, "needs a package that is missing; run: pip install tensorboard")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(K1Error, match="cannot write events into .* choose another --logging_dir"):
        EventLog(flags_of(tmp_path, "--logging_dir", str(tmp_path / "logs")), tmp_path / "k1_dataset1.pt")


@pytest.mark.slow
def test_the_scripts_log_training_and_evaluations(tmp_path, corpora):
    common = ["--preset", "smoke", "--models_dir", tmp_path, "--threads", 1, "--max_steps", 3]
    common += ["--report_to", "tensorboard", "--logging_dir", tmp_path / "logs"]
    for stage in (1, 2):
        finished = run_script(f"train_k1_dataset{stage}.py", "--dataset_name", corpora[stage - 1], *common)
        assert finished.status == 0, finished.stderr
    finished = run_script("train_baseline_all.py", "--dataset_names", *corpora, *common)
    assert finished.status == 0, finished.stderr
    for file in ("k1_dataset2", "baseline_final"):
        checkpoint = load_checkpoint(tmp_path / f"{file}.pt")
        shown = points(tmp_path / "logs" / file)
        for name in SCALARS:
            values = [entry[name] for entry in checkpoint.history]
            assert [value for _, value in shown[f"training/{name}"]] == pytest.approx(values, rel=1e-6)
        found = points(tmp_path / "logs" / file / "evaluation")
        new = corpora[checkpoint.stage - 1]
        before, after = (checkpoint.evaluations[row][str(new)]["test"]["accuracy"] for row in (-2, -1))
        assert found[f"accuracy/test/{new.name}"] == [(0, pytest.approx(before)), (3, pytest.approx(after))]
        old = checkpoint.evaluations[-1][str(corpora[0])]["validation"]["loss"]
        assert found["loss/validation/rivers.jsonl"] == [(3, pytest.approx(old, rel=1e-6))]
