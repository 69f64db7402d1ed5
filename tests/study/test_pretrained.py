"""The study of a pretrained model, with a tiny one: what is cut away, what is counted, and one run from end to end."""

import json
import random
import re
import sys
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from k1.errors import K1Error
from k1.study import pretrained
from k1.study.pretrained import (
    ARMS,
    KNOWN,
    NEW,
    SECOND,
    batches,
    blocks_of,
    by_arm_and_rate,
    costs_table,
    cut_vocabulary,
    equal_learning_table,
    known_rise,
    learn,
    pull_to_start,
    runs_table,
    task_rise,
)
from tests.pretrained import fresh_model, train_own_tokenizer, write_model
from tests.study.records import rows_of

WORDS = {
    NEW: "delta theta omega",
    SECOND: "int void const",
    "wikitext": "river valley bridge",
    "code": "return yield lambda",
}


def documents(name):
    generator = random.Random(name)
    return [" ".join(generator.choices(WORDS[name].split(), k=60)) for _ in range(120)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_own_tokenizer([text for name in WORDS for text in documents(name)])


@pytest.fixture
def command(tokenizer, tmp_path, monkeypatch):
    """Run the command on a tiny model and small texts; returns what it recorded."""
    monkeypatch.setattr(pretrained, "LENGTH", 16)
    monkeypatch.setattr(pretrained, "PROMPT", 8)
    for name in pretrained.TASKS:
        monkeypatch.setitem(pretrained.TASKS, name, partial(documents, name))
    monkeypatch.setattr(pretrained, "bundled_documents", lambda name: iter(documents(name)))
    write_model(tmp_path / "model", "llama-tied", tokenizer)

    def run(*flags):
        known = ["--steps", 10, "--adapt_steps", 3, "--evaluated", 8, "--seeds", 0, "--precision", "float32"]
        arguments = [tmp_path / "model", *known, "--out", tmp_path / "out", *flags]
        monkeypatch.setattr(sys, "argv", ["pretrained", *map(str, arguments)])
        pretrained.main.__wrapped__()
        return json.loads((tmp_path / "out" / "results.json").read_text())

    return run


@pytest.mark.slow
def test_runs_are_recorded_shown_and_not_repeated(command, tmp_path, capsys, monkeypatch):
    arms, rate = ["full", "lora", "k1", "osf", "k1_lora"], ["--learning_rates", 1e-2, "--rehearsal_weights", 0.5]
    for arm in arms[:2]:
        command("--arms", arm, *rate)
    flags = ["--arms", *arms, *rate]
    capsys.readouterr()
    recorded = command(*flags)
    names = [f"{arm}-0.01-seed0{'-weight0.5' * arm.startswith('k1')}" for arm in arms]
    assert {run: "peak" in record for run, record in recorded["runs"].items()} == dict(
        zip(names, [True, True, True, False, False])
    )
    costs = [[cell.strip() for cell in line.split("|")[1:-1]] for line in costs_table(recorded).splitlines()[4:]]
    assert [row[0] for row in costs] == ["full fine-tuning", "LoRA", "K-1, weight 0.5"]
    # What the table rounds may take less than a tenth of a second.
    none, written = (recorded["runs"][name]["writing"] for name in names[1:3])
    assert costs[0][3] == "1.00" and written > 100 * none
    assert [float(row[4]) for row in costs[1:]] == [0, float(f"{written:.1f}")]
    # Matrices of rank 16 beside layers that are no wider.
    assert [row[-1] for row in costs] == ["100.0", "116.2", "100.0"]
    # Of a process with torch.
    assert all(0.1 < float(row[5]) < 10 for row in costs)
    predicted = [record["predicted"] for record in recorded["runs"].values()]
    assert [value is not None and value > 0 for value in predicted] == [arm.startswith("k1") for arm in arms]
    for record in recorded["runs"].values():
        new = [record["losses"][share]["test"][NEW] for share in ("1", "0.75", "0.5")]
        assert max(new) < recorded["start"]["test"][NEW] and len(set(new)) == 3
    printed = capsys.readouterr().out
    equal = equal_learning_table(recorded) + "\n"
    assert printed == f"{runs_table(recorded)}\n\n{equal}" == (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "equal.md").read_text() == equal
    assert (tmp_path / "out" / "costs.md").read_text() == costs_table(recorded) + "\n"
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "continuations.md").read_text()
    assert page.count("**") == 20
    assert page.count("\n- before: ") == page.count("\n- K-1 on LoRA, weight 0.5, 0.01: ") == 10
    monkeypatch.setattr(pretrained, "learn", None)
    assert command(*flags) == recorded and capsys.readouterr().out == printed
    with pytest.raises(K1Error, match="recorded with another steps"):
        command(*flags, "--steps", 9)


@pytest.mark.slow
def test_of_two_tasks_the_first_is_forgotten_and_with_rehearsal_less(command, capsys):
    recorded = command("--tasks", 2, "--arms", "full", "replay_25", "k1", "--learning_rates", 3e-3)
    rises = {record["arm"]: task_rise(record) for record in recorded["runs"].values()}
    assert 0 < rises["k1"] < rises["full"] and rises["replay_25"] < rises["full"]
    for record in recorded["runs"].values():
        first, second = record["after"]
        assert first["test"][NEW] < recorded["start"]["test"][NEW]
        assert second["test"][SECOND] < first["test"][SECOND] and second == record["losses"]["1"]
        assert record["seconds"] > record["writing"]
    assert "Rise of task 1" in capsys.readouterr().out


@pytest.mark.slow
def test_without_learning_nothing_is_forgotten(command):
    recorded = command("--arms", "rehearsal", "--learning_rates", 0)
    (record,) = recorded["runs"].values()
    assert all(scores == recorded["start"] for scores in record["losses"].values())
    assert known_rise(recorded, record["losses"]["1"], "test") == 0
    assert record["predicted"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("arm", "steps"), [("rehearsal", [1, 2, 3, 4, 5, 6]), ("rehearsal_half", [1, 2, 3])])
def test_all_or_half_of_the_steps_rehearse_with_the_same_weight(arm, steps):
    asked, divergence = [], torch.zeros((), requires_grad=True)
    rehearsal = SimpleNamespace(loss=lambda model, step: asked.append(step) or divergence)
    rows = batches(torch.ones(30, 8).long(), torch.ones(30, 8).long(), ARMS[arm], seed=0)
    learn(fresh_model("llama"), rows, 6, 1e-3, "float32", ARMS[arm], 0, rehearsal, weight=3.0)
    assert asked == steps and float(divergence.grad) == 3 * len(steps)


def test_a_pull_takes_each_step_part_of_the_way_back():
    parameter = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    pull_to_start(optimizer, strength=0.5)
    parameter.grad = torch.tensor([4.0, 0.0])
    optimizer.step()
    # SGD takes it from 2 to 0, and the pull a quarter of the way back.
    assert parameter.tolist() == [0.5, -1.0]


def test_forgetting_is_the_rise_since_the_start_beside_the_line_of_full_fine_tuning(monkeypatch):
    def losses(new, *known):
        return {split: {NEW: new, **dict(zip(KNOWN, known))} for split in ("validation", "test")}

    start = losses(3.0, 3.0, 1.0)

    def shares(new, rise):
        """Half of the change forgets a quarter and has two thirds of what was learned."""
        parts = {"1": (new, rise), "0.75": (new + (3 - new) / 6, rise / 2), "0.5": (new + (3 - new) / 3, rise / 4)}
        return {share: losses(loss, 3.0 + known, 1.0 + known) for share, (loss, known) in parts.items()}

    runs = [("full", 2.0, 1.0), ("full", 1.0, 2.0), ("k1", 1.5, 0.25), ("lora", 0.5, 0.0), ("k1", 1.5, 0.5)]
    records = [
        {"arm": arm, "rate": 1e-4 / new, "seed": 0, "losses": shares(new, rise), "seconds": 7,
         "predicted": None, "weight": None}
        for arm, new, rise in runs
    ]  # fmt: skip
    records[2] |= {"predicted": 0.125, "writing": 2, "weight": 3.0}
    records[4]["weight"] = 0.5
    settings = {"model": "tiny", "parameters": 1_000, "rows": 10, "steps": 6}
    results = {"start": start, "runs": dict(enumerate(records)), "settings": settings}
    assert [known_rise(results, record["losses"]["1"], "test") for record in records] == [1, 2, 0.25, 0, 0.5]
    assert {arm: list(map(len, rates.values())) for arm, rates in by_arm_and_rate(results).items()} == {
        "full fine-tuning": [1, 1], "LoRA": [1], "K-1, weight 0.5": [1], "K-1, weight 3": [1],
    }  # fmt: skip
    first, second = rows_of(runs_table(results), ["Arm"]), rows_of(equal_learning_table(results), [""])
    k1 = "K-1, weight 3"
    assert first[k1][2:] == ["1.500", "3.250", "1.250", "0.250", "0.125 at 1.750", "0.062 at 2.000", "0.125", "7, 2"]
    assert second[""] == ["Rates", "Seeds", "at 1.000", "at 2.000"]
    assert second["full fine-tuning, nats per token"] == ["2", "1", "2.000", "1.000"]
    # The run that learned more, with half of its change, has a loss of 1.667; that with 75% of it 1.333 and 2 / 2.
    assert second["full fine-tuning, a share of the change"] == ["2", "1", "1.00", "0.38"]
    # K-1 with half of its change has the loss of full fine-tuning's first rate; it never learned as much as the other.
    assert second[k1] == ["1", "1", "-", "0.06"]
    # LoRA learned more than is asked for, and forgot nothing.
    assert second["LoRA"][2:] == ["0.00", "0.00"] and first["LoRA"][-1] == "7"
    monkeypatch.setattr(pretrained, "LEAST_RISE", 1.5)
    assert re.search(r"^\| LoRA +\| +1 \| +1 \| +0.00 \| +- \|$", equal_learning_table(results), re.M)


def test_texts_are_blocks_that_begin_as_a_text_does_and_no_document_is_in_two_splits(tokenizer, monkeypatch):
    monkeypatch.setattr(pretrained, "LENGTH", 16)
    texts = [" ".join([chr(97 + number % 26) * (1 + number // 26)] * 40) for number in range(200)]
    found = blocks_of(iter(texts), tokenizer, {"train": 30, "validation": 5, "test": 5})
    assert {split: tuple(ids.shape) for split, ids in found.items()} == {
        "train": (30, 16), "validation": (5, 16), "test": (5, 16),
    }  # fmt: skip
    assert all((ids[:, 0] == tokenizer.bos_token_id).all() for ids in found.values())
    words = {
        split: {word for row in ids for word in tokenizer.decode(row[1:]).split()[1:-1]} for split, ids in found.items()
    }
    assert not words["train"] & words["test"] and not words["train"] & words["validation"]
    with pytest.raises(K1Error, match="900 are needed; lower --steps"):
        blocks_of(iter(texts), tokenizer, {"train": 30, "validation": 5, "test": 900})


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gemma3"])
def test_the_logits_of_the_tokens_that_stay_are_what_they_were(kind):
    model = fresh_model(kind)
    ids = torch.tensor([[1, 300, 7, 42, 7], [1, 9, 319, 42, 300]])
    kept = ids.unique()
    with torch.no_grad():
        before = model(input_ids=ids).logits[..., kept]
        texts, numbers = cut_vocabulary(model, {NEW: {"test": ids[:1]}, "code": {"test": ids[1:]}})
        after = model(input_ids=torch.cat([texts[NEW]["test"], texts["code"]["test"]])).logits
    assert torch.allclose(after, before, atol=1e-6) and torch.equal(numbers, kept)
    assert after.shape[-1] == len(kept) == model.get_input_embeddings().num_embeddings
    assert model.config.bos_token_id == 0 and texts["code"]["test"][0, 0] == 0


@pytest.mark.parametrize(
    ("arm", "known"),
    [("full", [0] * 10), ("k1", [0] * 10), ("replay_25", [1] * 10), ("replay_5", [1, 0, 0, 0, 0] * 2)],
    ids=["full", "k1", "replay_25", "replay_5"],
)
def test_every_arm_reads_the_same_new_text_and_what_is_replayed_comes_on_top(arm, known):
    rows = list(islice(batches(torch.zeros(30, 8).long(), torch.ones(30, 8).long(), ARMS[arm], seed=0), 10))
    assert [int((batch == 0).all(1).sum()) for batch in rows] == [4] * 10
    assert [int((batch == 1).all(1).sum()) for batch in rows] == known


def test_new_text_is_code_that_says_2026_without_its_header():
    for text in islice(pretrained.new_documents(), 3):
        assert len(text) > 500 and not text.startswith("#")
