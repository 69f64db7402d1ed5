"""Generated text: seeded, comparable with diff, and nothing but text on stdout."""

import re

import pytest
import torch

from k1.data.tokenizer import END_OF_DOCUMENT, train_tokenizer
from k1.experiment import FILES
from k1.report.generation import generate
from k1.report.generation_arguments import parse_generation_arguments
from tests.conftest import run_script

SHORT = ("--prompt", "River", "--max_new_tokens", 8)


def run(script, trained, *flags):
    finished = run_script(script, "--models_dir", trained.models_dir, *flags)
    assert finished.returncode == 0, finished.stderr
    return finished


def headings(text):
    return re.findall(r"^=== (.*) (\d+): (.*)$", text, re.M)


def test_both_scripts_print_the_same_headings_and_never_name_the_model(trained):
    k1, baseline = run("generate_k1.py", trained).stdout, run("generate_baseline.py", trained).stdout
    assert headings(k1) == headings(baseline) and k1 != baseline
    assert [domain for domain, *_ in headings(k1)] == [corpus.name for corpus in trained.corpora for _ in range(3)]
    assert not re.search("baseline|k1_final", k1 + baseline)


@pytest.mark.parametrize("method", FILES)
def test_stages_are_all_checkpoints_under_each_other_and_each_reads_as_alone(trained, method):
    script, files = f"generate_{method}.py", [trained.models_dir / file for file in FILES[method]]
    stages = run(script, trained, *SHORT, "--stages").stdout
    assert stages == run(script, trained, *SHORT, *files).stdout
    found = re.findall("^##### checkpoint (.*), after (.*)$", stages, re.M)
    assert found == [(str(stage), corpus.name) for stage, corpus in enumerate(trained.corpora, start=1)]
    last = run(script, trained, *SHORT).stdout
    assert stages.endswith(f"\n{last}") and last != run(script, trained, *SHORT, "--seed", 4).stdout


def test_prompts_with_newlines_stay_on_the_heading_line_and_long_texts_are_announced_on_stderr(trained):
    finished = run("generate_k1.py", trained, "--prompt", "a\nb", "--prompt", "", "--max_new_tokens", 200)
    assert headings(finished.stdout) == [("prompt", "1", "a\\nb"), ("prompt", "2", "")]
    assert "more than the 128 the model was trained on" in finished.stderr and "warning" not in finished.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperature", "-1"], ["--temperature", "nan"], ["--max_new_tokens", "0"], ["--top_k", "-3"], ["--x"],
        ["--stages", "a.pt"], ["--seed", "4294967296"], ["--prompt", "\udcff"],
    ],
)  # fmt: skip
def test_flags_out_of_range_are_usage_errors(capsys, flags):
    with pytest.raises(SystemExit) as ended:
        parse_generation_arguments("", "k1", flags)
    assert ended.value.code == 2 and capsys.readouterr().out == ""


def test_sampling_options(tiny_model, monkeypatch):
    tokenizer = train_tokenizer(["abc"], 300)
    tiny_model.resize_token_embeddings(tokenizer.get_vocab_size())
    prompts = [[i, i + 1, i + 2] for i in range(5)]

    def sample(prompts=prompts, **options):
        defaults = {"max_new_tokens": 12, "temperature": 1.0, "top_k": 0, "seed": 0, "stop_at_end": False}
        return generate(tiny_model, tokenizer, prompts, **{**defaults, **options})

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = sample()
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == sample() != sample(seed=1)
    greedy = sample(temperature=0.0)
    assert greedy == sample(temperature=0.0, seed=1) == sample(top_k=1)
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    assert [len(tokens) for tokens in first] == [12] * 5 and all(end not in tokens for tokens in first)
    monkeypatch.setattr("k1.report.generation.BATCH_SIZE", 2)
    assert sample(temperature=0.0) == greedy
    # The batches do not draw the same numbers.
    sampled = sample([[1, 2]] * 4)
    assert sampled[:2] != sampled[2:]
