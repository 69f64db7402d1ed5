"""The command line of the scripts: flags, precedence, and errors a user can act on."""

import ast
import shutil
import subprocess
import sys

import pytest

from k1.checkpoints import load_checkpoint
from k1.config import PRESETS, parse_training_flags, settings_of
from k1.errors import UsageError
from k1.experiment import ARMS
from k1.model import count_parameters, empty_model, model_config
from k1.sparse import UPDATE_FRACTION
from tests.conftest import ROOT, assert_one_clear_line, run_script

TRAINING = ["train_k1_dataset1.py", "train_k1_dataset2.py", "train_k1_dataset3.py", "train_baseline_all.py"]


@pytest.mark.parametrize("script", TRAINING)
def test_the_dataset_stands_in_the_script_where_it_can_be_edited(script):
    tree = ast.parse((ROOT / script).read_text())
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DataLoader"
    ]
    assert len(calls) == 1 and calls[0].keywords[0].arg == "dataset_name"


@pytest.mark.parametrize("script", ["train_k1_dataset2.py", "train_baseline_all.py", "generate_k1.py", "-m k1.study"])
def test_help(script):
    finished = run_script(script, "--help")
    assert finished.returncode == 0 and ("--models_dir" in finished.stdout or "--out" in finished.stdout)
    assert finished.stderr == ""


@pytest.mark.parametrize(
    ("method", "flags", "fragment"),
    [
        ("k1", "--learning-rte 1", "--learning-rte"),
        ("k1", "--update_fraction 0", "must be above 0 and at most 1, not 0"),
        ("k1", "--max_steps 0", "--max_steps must be at least 1; 0 is for stage 1 with --init_from"),
        ("k1", "--init_from a --max_steps 0 3 3", "--max_steps takes 1 number, not 3"),
        ("baseline", "--max_steps 3 3", "--max_steps takes 1 number or 3, not 2"),
        ("baseline", "--max_steps 0 3 3", "0 is for stage 1 with --init_from"),
        ("baseline", "--init_from a --max_steps 0 0 3", "0 is for stage 1 with --init_from"),
        ("k1", "--learning_rate -1", "--learning_rate/--learning-rate: must be a positive number, not -1"),
        ("k1", "--max_steps many", "--max_steps"),
        ("k1", "--threads 100000", "--threads: must be at least 1 and at most 1024, not 100000"),
        ("baseline", "--dataset_names a b", "--dataset_names/--dataset-names: expected 3 arguments"),
        ("k1", "--forgetting_budget nan", "must be at least 0"),
        ("baseline", "--update_fraction 0.5", "--update_fraction"),
        ("baseline", "--logging_dir logs", "add --report_to tensorboard, or leave it out"),
        ("k1", "--models_dir README.md/models", "is not a folder that can be written (Not a directory)"),
        ("k1", "--models_dir ~nobody-here/models", "no such home folder"),
    ],
)
def test_usage_errors(capsys, method, flags, fragment):
    with pytest.raises(SystemExit) as ended:
        parse_training_flags("", method, flags.split())
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    (line,) = printed.err.splitlines()
    assert fragment in line and line.startswith("error: ") and line.endswith("; --help explains all flags")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("update_fraction", 0.4), ("policy", "stage"), ("seed", 5), ("preset", "quick"), ("seq_length", 32)],
)
def test_a_flag_that_contradicts_the_checkpoint_is_an_error(trained, flag, value):
    previous = load_checkpoint(trained.models_dir / "k1_dataset1.pt", "k1").arguments
    flags = parse_training_flags("", "k1", [f"--{flag}", str(value)])
    with pytest.raises(UsageError, match=f"--{flag} {value} contradicts"):
        flags.resolve(stage=2, previous=previous)
    same = parse_training_flags("", "k1", [f"--{flag}", str(previous[flag])])
    assert getattr(same.resolve(stage=2, previous=previous), flag) == previous[flag]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--batch_size 8 cannot be shared evenly by 3 processes"),
        ({"batch_size": 9, "compile": True}, "--compile is for a training in one process"),
    ],
)
def test_what_several_processes_cannot_do_is_a_usage_error(monkeypatch, settings, message):
    monkeypatch.setattr("k1.config.process_count", lambda: 3)
    with pytest.raises(UsageError, match=message):
        settings_of("k1", "smoke", **settings)


@pytest.mark.parametrize(
    ("arm", "method", "flags"),
    [
        ("baseline", "baseline", ""),
        ("sparse", "k1", "--rehearsal 0"),
        ("baseline_rehearsal", "baseline", "--rehearsal 0.25"),
        ("k1", "k1", ""),
    ],
)
def test_the_settings_of_an_arm_are_those_of_its_command_line(arm, method, flags):
    flags = parse_training_flags("", method, f"--preset study --seed 3 --max_steps 9 --compile {flags}".split())
    assert flags.arm == arm
    for stage in (1, 2, 3):
        assert flags.resolve(stage) == settings_of(arm, "study", stage, seed=3, max_steps=(9,), compile=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("arm", ARMS)
def test_arms_differ_in_updates_rehearsal_and_learning_rate_alone(arm, preset, stage):
    ours, theirs = settings_of(arm, preset, stage), settings_of("k1", preset, stage).as_dict()
    different = {name for name, value in ours.as_dict().items() if value != theirs[name]}
    assert different <= {"method", "learning_rate", "update_fraction", "rehearsal"}
    assert ours.update_fraction == (UPDATE_FRACTION if arm in ("sparse", "k1") else 1)
    assert ours.rehearsal == (0.25 if arm in ("baseline_rehearsal", "k1") and stage > 1 else 0)
    assert ours.learning_rate == PRESETS[preset].learning_rate[arm][0 if stage == 1 else 1]


def test_a_dataset_that_comes_twice_ends_before_training(trained, tmp_path):
    shutil.copy(trained.models_dir / "k1_dataset1.pt", tmp_path)
    finished = run_script("train_k1_dataset2.py", "--models_dir", tmp_path, "--dataset_name", trained.corpora[0])
    assert_one_clear_line(finished, 1, "comes twice")


def train_again(trained, script, models_dir, *flags):
    """Run a training script of `trained` once more, in `models_dir`."""
    is_k1 = "dataset" in script
    datasets = (
        ["--dataset_name", trained.corpora[int(script[-4]) - 1]] if is_k1 else ["--dataset_names", *trained.corpora]
    )
    preset = [] if script[-4] in "23" else ["--preset", "smoke"]
    settings = ["--models_dir", models_dir, "--threads", 1, "--max_steps", 20]
    return run_script(script, *datasets, *preset, *settings, *flags)


@pytest.mark.parametrize(
    ("script", "overwrite"), [("train_k1_dataset2.py", []), ("train_baseline_all.py", ["--overwrite"])]
)
def test_what_is_trained_with_these_settings_is_not_trained_again_and_its_table_printed(
    trained, tmp_path, script, overwrite
):
    models_dir = shutil.copytree(trained.models_dir, tmp_path / "models")
    finished = train_again(trained, script, models_dir, *overwrite)
    assert finished.returncode == 0 and "step/s" not in finished.stderr, finished.stderr
    assert finished.stderr.count("is already trained with these settings") == (3 if "baseline" in script else 1)
    assert finished.stdout == trained.printed[script].stdout
    for path in trained.models_dir.glob("*.pt"):
        assert (models_dir / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_what_is_trained_with_other_settings_is_replaced_if_asked_for(trained, tmp_path):
    models_dir = shutil.copytree(trained.models_dir, tmp_path / "models")
    first, second = (models_dir / f"k1_dataset{stage}.pt" for stage in (1, 2))
    refused = train_again(trained, "train_k1_dataset1.py", models_dir, "--seed", 1)
    assert_one_clear_line(refused, 1, f"{first} exists already and has seed 0, not 1; add --overwrite")
    assert first.read_bytes() == (trained.models_dir / first.name).read_bytes()
    replaced = train_again(trained, "train_k1_dataset1.py", models_dir, "--learning_rate", 0.02, "--overwrite")
    assert replaced.returncode == 0
    # What continued the old stage is not what continues the new one.
    refused = train_again(trained, "train_k1_dataset2.py", models_dir)
    assert_one_clear_line(refused, 1, f"{second} exists already and has stage before", "add --overwrite")


def test_stdout_is_the_table_and_progress_goes_to_stderr(trained):
    for finished in trained.printed.values():
        assert "step/s" in finished.stderr
        for line in finished.stdout.splitlines():
            assert line.startswith(("|", "K-1 after stage", "baseline after stage"))
    assert trained.printed["train_baseline_all.py"].stdout.count("after stage") == 3


@pytest.mark.parametrize(("flags", "least", "most"), [([], 1e6, 3e6), (["--preset", "full"], 124e6, 140e6)])
def test_the_default_preset_is_small_and_full_has_the_size_of_gpt2_small(flags, least, most):
    arguments = parse_training_flags("", "k1", flags).resolve(stage=1)
    assert arguments == settings_of("k1", "full" if flags else "quick")
    assert least <= count_parameters(empty_model(model_config(arguments, arguments.vocabulary_size))) <= most


def test_a_reader_that_goes_away_ends_the_script_quietly(trained):
    command = f"{sys.executable} generate_k1.py --models_dir {trained.models_dir} | head -n 1; exit ${{PIPESTATUS[0]}}"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode in (0, 141)
    assert "Traceback" not in finished.stderr and "Exception" not in finished.stderr
