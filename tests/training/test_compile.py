"""`--compile`: the same training to rounding, the same bits each time, and a clear line if it cannot be."""

import os
from dataclasses import replace

import pytest
import torch

from k1.config import settings_of
from k1.data.tokenizer import train_tokenizer
from k1.model import build_model
from k1.training.rehearsal import begin_rehearsal
from k1.training.trainer import accumulate_gradients, compiled
from tests.conftest import assert_one_clear_line, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    """Compile anew, whatever an earlier run of the tests has left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield
    compiled.cache_clear()
    torch.compiler.reset()


def test_losses_and_gradients_are_the_same_to_rounding_and_repeat_to_the_bit(tiny_model):
    """Of a later step of K-1, with rehearsal."""
    # One layer compiles in half the time of two.
    tiny_model.config.num_hidden_layers = 1
    tiny_model.train().model.layers = tiny_model.model.layers[:1]
    arguments = settings_of("k1", "smoke", 2, seq_length=8, batch_size=4, rehearsal=0.5)
    generator = torch.Generator().manual_seed(0)
    rows, written = (torch.randint(0, 37, (8, length), generator=generator) for length in (8, 6))
    teacher = build_model(tiny_model.config.to_dict(), seed=1)
    rehearsal = begin_rehearsal(teacher, [written.int()], train_tokenizer(["a b"], 37), arguments)
    rehearsal.sequences = rows[4:]

    def losses_and_gradients(is_compiled):
        settings = replace(arguments, compile=is_compiled)
        tiny_model.zero_grad()
        losses = accumulate_gradients(tiny_model, iter([(rows[:2], [0, 1])]), settings, rehearsal)
        return losses, [parameter.grad.clone() for parameter in tiny_model.parameters()]

    losses, gradients = losses_and_gradients(False)
    found, again = losses_and_gradients(True), losses_and_gradients(True)
    assert found[0] == pytest.approx(losses, rel=1e-3, abs=1e-5) and losses[1] > 1e-4
    for gradient, expected in zip(found[1], gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-5)
    assert found[0] == again[0] and all(map(torch.equal, found[1], again[1]))
    assert os.listdir(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def test_without_a_compiler_it_ends_with_a_clear_line_and_no_file(corpora, tmp_path):
    environment = {"CXX": "/nowhere/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    finished = train("train_k1_dataset1.py", tmp_path, [corpora[0]], "--compile", environment=environment)
    assert_one_clear_line(finished, 1, "--compile does not work here", "/nowhere/compiler", "leave it out")
    assert not list(tmp_path.glob("*.pt"))
