"""The command line of the scripts: flags, precedence, and errors a user can act on."""

import ast
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from k1.arguments import parse_training_flags
from k1.checkpoints.storage import load_checkpoint
from k1.errors import UsageError
from k1.model import build_model, count_parameters, model_config
from k1.presets import PRESETS, UPDATE_FRACTION
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
    assert finished.status == 0 and ("--models_dir" in finished.stdout or "--out" in finished.stdout)
    assert finished.stderr == ""


@pytest.mark.parametrize(
    ("method", "flags", "fragment"),
    [
        ("k1", ["--learning-rte", "1"], "--learning-rte"),
        ("k1", ["--update_fraction", "0"], "--update_fraction must be above 0"),
        ("k1", ["--update_fraction", "nan"], "--update_fraction"),
        ("k1", ["--max_steps", "0"], "--max_steps must be at least 1 and at most"),
        ("k1", ["--learning_rate", "-1"], "--learning_rate must be a positive number"),
        ("k1", ["--weight_decay", "nan"], "--weight_decay"),
        ("k1", ["--preset", "huge"], "--preset"),
        ("k1", ["--max_steps", "many"], "--max_steps"),
        ("k1", ["extra"], "extra"),
        ("baseline", ["--dataset_names", "a", "b"], "takes 3 names, not 2"),
        ("k1", ["--selection", "best"], "--selection"),
        ("k1", ["--consolidation", "-1"], "--consolidation must be at least 0"),
        ("k1", ["--gain_floor", "nan"], "--gain_floor must be at least 0"),
        ("k1", ["--importance_batches", "0"], "--importance_batches must be at least 1"),
        ("k1", ["--max_basis_dim", "-1"], "--max_basis_dim must be at least 0"),
        ("k1", ["--interpolation", "0"], "--interpolation must be above 0"),
        ("baseline", ["--update_fraction", "0.5"], "--update_fraction"),
        ("baseline", ["--consolidation", "1"], "--consolidation"),
    ],
)
def test_usage_errors(capsys, method, flags, fragment):
    with pytest.raises(SystemExit) as ended:
        parse_training_flags("", method, flags)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert fragment in printed.err.splitlines()[-1]


def test_a_usage_error_ends_the_script_with_status_2(tmp_path):
    finished = run_script("train_k1_dataset1.py", "--max_steps", "0", "--models_dir", tmp_path / "models")
    assert_one_clear_line(finished, 2, "--max_steps must be at least 1 and at most")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("update_fraction", 0.4), ("max_basis_dim", 16), ("seed", 5), ("preset", "quick"), ("seq_length", 32)],
)
def test_a_flag_that_contradicts_the_checkpoint_is_an_error(trained, flag, value):
    previous = load_checkpoint(trained.models_dir / "k1_dataset1.pt", "k1").arguments
    flags = parse_training_flags("", "k1", [f"--{flag}", str(value)])
    with pytest.raises(UsageError, match=f"--{flag} {value} contradicts"):
        flags.resolve(stage=2, previous=previous)
    same = parse_training_flags("", "k1", [f"--{flag}", str(previous[flag])])
    assert getattr(same.resolve(stage=2, previous=previous), flag) == previous[flag]


def resolve_stages(method, *flags_of_stages):
    """The arguments of stage after stage, each given its own flags and the arguments before it."""
    resolved, previous = [], None
    for stage, flags in enumerate(flags_of_stages, start=1):
        resolved.append(parse_training_flags("", method, flags).resolve(stage, previous))
        previous = resolved[-1].as_dict()
    return resolved


@pytest.mark.parametrize(
    ("flags", "selections"),
    [
        ([[], [], []], ["error_feedback", "error_feedback", "error_feedback"]),
        ([["--selection", "random"], [], []], ["random", "random", "random"]),
        ([["--selection", "all"], [], []], ["all", "all", "all"]),
        ([[], ["--selection", "momentum"], []], ["error_feedback", "momentum", "momentum"]),
        ([[], ["--selection", "gain"], []], ["error_feedback", "gain", "gain"]),
        ([["--selection", "gradient"], ["--selection", "gain"], []], ["gradient", "gain", "gain"]),
        ([["--selection", "random"], [], ["--selection", "gain"]], ["random", "random", "gain"]),
    ],
)
def test_a_selection_other_than_the_default_is_carried_on(flags, selections):
    stages = resolve_stages("k1", *flags)
    assert [arguments.selection for arguments in stages] == selections
    fraction = 1.0 if selections[0] == "all" else UPDATE_FRACTION
    assert {arguments.update_fraction for arguments in stages} == {fraction}


@pytest.mark.parametrize("preset", PRESETS)
def test_consolidation_takes_the_place_of_weight_decay_after_dataset_1(preset):
    flags = ["--preset", preset]
    first, *later = resolve_stages("k1", flags, flags, flags)
    assert (first.consolidation, first.weight_decay) == (0.0, 0.1)
    for arguments in later:
        assert arguments.consolidation == PRESETS[preset].consolidation > 0 and arguments.weight_decay == 0.0
    for arguments in resolve_stages("baseline", flags, flags, flags):
        assert (arguments.consolidation, arguments.weight_decay) == (0.0, 0.1)
    without = resolve_stages("k1", flags, [*flags, "--consolidation", "0"])[1]
    assert (without.consolidation, without.weight_decay) == (0.0, 0.1)
    chosen = resolve_stages("k1", flags, [*flags, "--consolidation", "7", "--weight_decay", "0.2"])[1]
    assert (chosen.consolidation, chosen.weight_decay) == (7.0, 0.2)


def test_selecting_by_gain_without_a_stage_before_is_a_usage_error(tmp_path):
    finished = run_script("train_k1_dataset1.py", "--selection", "gain", "--models_dir", tmp_path)
    assert_one_clear_line(finished, 2, "--selection gain", "choose another for stage 1")


def test_a_contradiction_ends_the_script_with_status_2(trained, tmp_path):
    (tmp_path / "k1_dataset1.pt").write_bytes((trained.models_dir / "k1_dataset1.pt").read_bytes())
    finished = run_script("train_k1_dataset2.py", "--models_dir", tmp_path, "--update_fraction", "0.3")
    assert_one_clear_line(finished, 2, "--update_fraction 0.3 contradicts the checkpoint")


def test_a_dataset_that_comes_twice_ends_before_training(trained, tmp_path):
    (tmp_path / "k1_dataset1.pt").write_bytes((trained.models_dir / "k1_dataset1.pt").read_bytes())
    finished = run_script("train_k1_dataset2.py", "--models_dir", tmp_path, "--dataset_name", trained.corpora[0])
    assert_one_clear_line(finished, 1, "comes twice")
    names = [trained.corpora[0], trained.corpora[1], trained.corpora[0]]
    finished = run_script("train_baseline_all.py", "--models_dir", tmp_path, "--dataset_names", *names)
    assert_one_clear_line(finished, 1, "comes twice")


def test_an_existing_checkpoint_is_not_replaced(trained):
    for script, file in (("train_k1_dataset1.py", "k1_dataset1.pt"), ("train_baseline_all.py", "baseline_dataset1.pt")):
        before = (trained.models_dir / file).read_bytes()
        finished = run_script(script, "--models_dir", trained.models_dir)
        assert_one_clear_line(finished, 1, file, "--overwrite")
        assert (trained.models_dir / file).read_bytes() == before


def test_stdout_is_the_table_and_progress_goes_to_stderr(trained):
    for finished in trained.printed.values():
        assert "step/s" in finished.stderr
        for line in finished.stdout.splitlines():
            assert line.startswith(("|", "K-1 after stage", "baseline after stage"))
    assert trained.printed["train_baseline_all.py"].stdout.count("after stage") == 3


def test_methods_differ_only_in_what_is_updated():
    k1 = parse_training_flags("", "k1", []).resolve(stage=1).as_dict()
    baseline = parse_training_flags("", "baseline", []).resolve(stage=1).as_dict()
    different = {name for name in k1 if k1[name] != baseline[name]}
    assert different <= {"method", "learning_rate", "update_fraction", "selection"}
    assert k1["update_fraction"] == UPDATE_FRACTION == 0.51 and baseline["update_fraction"] == 1.0


def test_the_default_preset_has_one_to_three_million_parameters():
    arguments = parse_training_flags("", "k1", []).resolve(stage=1)
    assert arguments.preset == "quick"
    model = build_model(model_config(arguments, arguments.vocabulary_size), 0)
    assert 1e6 <= count_parameters(model) <= 3e6


def test_the_full_preset_has_the_size_of_gpt2_small():
    full = PRESETS["full"]
    assert (full.layers, full.hidden_size, full.vocabulary_size, full.seq_length) == (12, 768, 32_000, 1_024)
    arguments = parse_training_flags("", "k1", ["--preset", "full"]).resolve(stage=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model_config(arguments, 32_000)))
    assert 124e6 <= count_parameters(model) <= 140e6


def test_selecting_everything_is_recorded_as_everything():
    arguments = parse_training_flags("", "k1", ["--selection", "all"]).resolve(stage=1)
    assert arguments.update_fraction == 1.0
    with pytest.raises(UsageError, match="leave --update_fraction out"):
        parse_training_flags("", "k1", ["--selection", "all", "--update_fraction", "0.5"]).resolve(stage=1)


def test_a_reader_that_goes_away_ends_the_script_quietly(trained):
    command = f"{sys.executable} generate_k1.py --models_dir {trained.models_dir} | head -n 1; exit ${{PIPESTATUS[0]}}"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode in (0, 141)
    assert "Traceback" not in finished.stderr and "Exception" not in finished.stderr
