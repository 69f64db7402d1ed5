"""K-1 on a model of one's own: the code on the page runs, and prevents the forgetting that plain AdamW causes."""

import ast
import copy
import functools
import re

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

import k1
from k1.teacher import casts_kept
from tests.conftest import ROOT

END, VOCABULARY, LENGTH, ROWS = 0, 40, 32, 16
LEARNING_RATE = 5e-3
PAGE = (ROOT / "k1" / "training" / "README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (.*?) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def language(words: range, seed: int, batches: int) -> list[dict]:
    """Batches of a language in which two of `words` can follow each word, in documents of some 50 of them."""
    generator = torch.Generator().manual_seed(seed)
    following = torch.randint(words.start, words.stop, (VOCABULARY, 2), generator=generator)
    state = torch.zeros(ROWS, dtype=torch.long)
    text = []
    for _ in range(batches * LENGTH):
        which = (torch.rand(ROWS, generator=generator) < 0.3).long()
        ends = torch.rand(ROWS, generator=generator) < 0.02
        state = torch.where(ends, END, following[state, which])
        text.append(state)
    return [{"input_ids": ids} for ids in torch.stack(text, dim=1).split(LENGTH, dim=1)]


OLD, NEW = language(range(1, 22), seed=1, batches=160), language(range(16, 40), seed=2, batches=110)
HELD_OUT = {"old": OLD[-10:], "new": NEW[-10:]}


def fresh_model(kind: str):
    torch.manual_seed(0)
    of_kind = {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "llama": {"intermediate_size": 64, "tie_word_embeddings": False},
    }
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=END, eos_token_id=END, **of_kind[kind],
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def plain_loop(model, batches, optimizer):
    model.train()
    for batch in batches:
        model(**batch, labels=batch["input_ids"]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def loss_on(model, text: str) -> float:
    """Nats per token on held-out text."""
    model.eval()
    return sum(float(model(**batch, labels=batch["input_ids"]).loss) for batch in HELD_OUT[text]) / 10


@functools.cache
def learned_model(kind: str):
    """A model that knows the old language, and nothing of the new one."""
    model = fresh_model(kind)
    plain_loop(model, OLD[:-10], torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE))
    assert loss_on(model, "old") < 1.1 and loss_on(model, "new") > 3
    return model


@pytest.fixture(params=["gpt2", "llama"])
def learned(request):
    """`learned_model`, which tests share and so leave as it is."""
    return learned_model(request.param)


def own_loop(model, example: str | None, *_):
    if example is None:
        plain_loop(model, NEW[:-10], torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE))
        return
    names = {"model": model, "old": OLD[:20], "new": NEW[:-10], "learning_rate": LEARNING_RATE, "torch": torch}
    exec(example, names)


def with_trainer(model, example: str | None, folder, capsys):
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=ROWS, num_train_epochs=1, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        logging_strategy="no", seed=0,
    )  # fmt: skip
    ids = torch.cat([batch["input_ids"] for batch in NEW[:-10]]).tolist()
    dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
    if example is None:
        Trainer(model, arguments, train_dataset=dataset).train()
        return
    names = {"model": model, "old": OLD[:20], "arguments": arguments, "new": dataset, "tokenizer": None}
    names |= {"Trainer": Trainer, "folder": folder / "k1", "learned": NEW[:20]}
    exec(example, names)
    assert "| | before | after |\n|---|---:|---:|\n| loss on known text | " in capsys.readouterr().out
    exec(EXAMPLES["next task"], names)
    Trainer(model, arguments, train_dataset=dataset, callbacks=[names["following"]])
    assert [len(text) for text in names["following"].rehearsal.written] == [128, 128]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "use", "title"), [("llama", own_loop, "own loop"), ("gpt2", with_trainer, "Trainer")])
def test_the_code_on_the_page_prevents_forgetting(tmp_path, capsys, kind, use, title):
    learned = learned_model(kind)
    before = loss_on(learned, "old")
    plain, kept_model = copy.deepcopy(learned), copy.deepcopy(learned)
    use(plain, None, tmp_path, capsys)
    use(kept_model, EXAMPLES[title], tmp_path, capsys)
    forgotten, kept = (loss_on(model, "old") - before for model in (plain, kept_model))
    found, wanted = loss_on(kept_model, "new"), loss_on(plain, "new")
    print(f"{title}: old {before:.3f}, forgotten {forgotten:.3f} and {kept:.3f}; new {wanted:.3f} and {found:.3f}")
    assert forgotten > 1
    assert kept < 0.15 * forgotten
    assert found < wanted + 0.2

    kept_model.save_pretrained(tmp_path / "model")
    opened = type(kept_model).from_pretrained(tmp_path / "model")
    assert loss_on(opened, "old") == pytest.approx(loss_on(kept_model, "old"), abs=1e-4)


def test_all_examples_run_here_and_are_short():
    assert set(EXAMPLES) == {"own loop", "Trainer", "next task"} and PAGE.count("```python") == len(EXAMPLES)
    for example in EXAMPLES.values():
        lines = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.stmt)]
        assert len(lines) <= 11


def test_under_autocast_every_parameter_gets_its_gradient(learned):
    """Weights that are rounded while the model writes, without gradients, are not those of training."""
    model = copy.deepcopy(learned)
    rehearsal = k1.Rehearsal(fresh_model("llama"), OLD[:1], sequences=2, length=8, rows=2, interval=1)
    with torch.autocast("cpu", torch.bfloat16):
        rehearsal.loss(model, 1).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_of_an_adapters_model_are_cast_once_while_it_writes():
    model = fresh_model("llama").requires_grad_(False)
    tokens, weight = torch.zeros(1, 4, dtype=torch.long), model.get_output_embeddings().weight
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with casts_kept(model):
            logits = model(input_ids=tokens).logits
            weight.zero_()
            assert model(input_ids=tokens).logits.equal(logits)
        assert not model(input_ids=tokens).logits.any() and not weight.requires_grad


def test_calls_are_counted_unless_the_step_is_given(learned):
    """And what DistributedDataParallel and torch.compile put around a model makes no difference."""
    losses = []
    for wrap, steps in ((lambda model: model, [1, 2, 3]), (lambda model: model, [None] * 3), (Wrapper, [None] * 3)):
        rehearsal = k1.Rehearsal(fresh_model("llama"), OLD[:1], sequences=2, length=8, interval=2)
        losses.append([float(rehearsal.loss(wrap(learned), step).detach()) for step in steps])
    assert losses[0] == losses[1] == losses[2] and len(set(losses[0])) == 3


class Wrapper(torch.nn.Module):
    """As DistributedDataParallel, which needs other processes."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_a_budget_takes_parameters_by_any_of_their_names(learned):
    """Those of before may have been copied from a model that was wrapped, or is now."""
    compiled = torch.compile(copy.deepcopy(learned))
    rehearsal = k1.Rehearsal(compiled, OLD[:1], sequences=2, length=8)
    start = {name: value.detach().clone() for name, value in compiled.named_parameters()}
    assert all(name.startswith("_orig_mod.") for name in start)
    with torch.no_grad():
        for parameter in compiled.parameters():
            parameter.mul_(2)
    assert rehearsal.keep_within(Wrapper(compiled), start, budget=0.0) == 0
    for name, value in learned.named_parameters():
        assert torch.equal(compiled.get_parameter(f"_orig_mod.{name}"), value)


def test_the_mode_and_the_gradients_of_a_model_stay_as_they_were(learned):
    model = copy.deepcopy(learned).train()
    model.get_submodule(next(name for name, part in model.named_modules() if name.endswith("0"))).eval()
    modes = [part.training for part in model.modules()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    rehearsal = k1.Rehearsal(model, OLD[:1], sequences=2, length=8)
    rehearsal.loss(model)
    rehearsal.predicted_forgetting(model)
    assert modes == [part.training for part in model.modules()] and len(set(modes)) == 2
    assert all((parameter.grad == 1).all() for parameter in model.parameters())


def test_what_fails_leaves_the_settings_of_the_model_and_the_logging_as_they_were(learned, monkeypatch):
    rehearsal = k1.Rehearsal(learned, OLD[:1], sequences=2, length=8)
    settings, verbosity = learned.generation_config, logging.get_verbosity()

    def fail(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(learned), "forward", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        rehearsal.loss(learned)
    assert learned.generation_config is settings and logging.get_verbosity() == verbosity


def test_settings_of_a_pretrained_model_do_not_shape_what_it_rehearses(learned):
    """Its generation settings would end a row at the end of a document, and pad it."""
    expected = k1.Rehearsal(learned, OLD[:1], sequences=4, length=64).written[0]
    model = copy.deepcopy(learned)
    model.generation_config.eos_token_id = list(range(1, VOCABULARY))
    model.generation_config.repetition_penalty = 9.0
    assert torch.equal(k1.Rehearsal(model, OLD[:1], sequences=4, length=64).written[0], expected)
    assert model.generation_config.repetition_penalty == 9.0
