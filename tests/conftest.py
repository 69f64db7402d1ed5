"""Fixtures: a small model, three small local corpora, and a way to run the scripts as a user does."""

import json
import os
import pickle
import random
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

# Two test processes share the cores, and a forked process cannot use threads that its parent had.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from filelock import FileLock

from k1.files import content_digest

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ("k1.report.__main__", "k1.study.__main__", "k1.study.seeds", "k1.study.unseen", "peft")

# Seconds after which a script counts as hanging; the machine may be busy with others.
PATIENCE = 900

VOCABULARIES = {
    "rivers": "river water flows north south valley bridge stream bank boat fish deep wide cold slow".split(),
    "numbers": "sum product prime factor even odd square root digit ratio proof lemma series limit bound".split(),
    "kitchen": "bread butter knife oven salt sugar spoon plate bowl onion soup stew roast bake boil".split(),
}


def write_corpus(folder: Path, name: str, words: list[str]) -> Path:
    """A .jsonl file of documents whose sentences use the `words`."""
    generator = random.Random(name)
    path = folder / f"{name}.jsonl"
    with open(path, "w") as file:
        for _ in range(60):
            sentences = [
                " ".join(generator.choices(words, k=generator.randint(4, 9))).capitalize() + "."
                for _ in range(generator.randint(6, 14))
            ]
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that at the end no process is left alone with one; what takes `trained` is slow too."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if "trained" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Keep what tests derive out of the user's cache, and the user's hub settings out of the tests."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        os.environ.pop(name, None)
    folder = tmp_path_factory.mktemp("cache")
    os.environ["K1_CACHE"] = str(folder)
    return folder


def build_once(tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> object:
    """What `build` returns, given a new folder; of several test processes one builds, and the others get it pickled."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return build(tmp_path_factory.mktemp(name))
    root = tmp_path_factory.getbasetemp().parent
    built = root / f"{name}.pickle"
    with FileLock(root / f"{name}.lock"):
        if not built.exists():
            folder = root / name
            folder.mkdir()
            built.write_bytes(pickle.dumps(build(folder)))
    return pickle.loads(built.read_bytes())


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> list[Path]:
    """Three local datasets of different domains."""
    return build_once(
        tmp_path_factory, "corpora", lambda folder: [write_corpus(folder, *named) for named in VOCABULARIES.items()]
    )


def run_script(
    script: str,
    *flags: object,
    environment: dict | None = None,
    cwd: Path = ROOT,
    prepare: Callable[[], object] | None = None,
) -> CompletedProcess[str]:
    """Run a script of the project, or `-m` and a module, in a process of its own, which first calls `prepare`.

    One that is given an `environment` imports all anew, as the libraries read it then, and has nothing to prepare.
    """
    if environment is None:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("stdout", "stderr")]
            process = start_script(script, flags, *files, cwd, prepare)
            return CompletedProcess(script, status_of(process), *(file.read_text(encoding="utf-8") for file in files))
    command = [sys.executable, *(script.split() if script.startswith("-m") else [ROOT / script]), *map(str, flags)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, cwd=cwd, env=os.environ | environment
    )


def start_script(
    script: str,
    flags: Iterable[object],
    stdout: Path,
    stderr: Path,
    cwd: Path = ROOT,
    prepare: Callable[[], object] | None = None,
) -> BaseProcess:
    """Start `script` where the libraries are imported already; see `run_script`."""
    body = partial(be_script, script, list(map(str, flags)), cwd, os.environ["K1_CACHE"], prepare)
    return start(body, stdout, stderr)


def start(body: Callable[[], object], stdout: Path, stderr: Path) -> BaseProcess:
    """Run `body`, which is pickled, in a fork of a server that has imported `PRELOADED` and done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=be_captured, args=(body, stdout, stderr))
    process.start()
    return process


def be_captured(body: Callable[[], object], stdout: Path, stderr: Path) -> None:
    """Run `body`; what it prints, also from below Python, goes to the files, which may be one."""
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    body()


def status_of(process: BaseProcess) -> int:
    """The exit status of `process` once it has ended, negative for a signal."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"a process takes more than {PATIENCE} s")
    return process.exitcode


def run_two(body: Callable[[int, int], object], folder: Path) -> None:
    """Run `body` in two processes at once, with the rank of each and a free port; fails unless both end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [folder / f"output{rank}" for rank in (0, 1)]
    processes = [start(partial(body, rank, port), path, path) for rank, path in enumerate(files)]
    assert list(map(status_of, processes)) == [0, 0], [path.read_text() for path in files]


def be_script(script: str, flags: list[str], cwd: Path, cache: str, prepare: Callable[[], object] | None) -> None:
    """Run `script` in this process, as the command line would."""
    if prepare:
        prepare()
    os.chdir(cwd)
    os.environ["K1_CACHE"] = cache
    if script.startswith("-m"):
        sys.argv, module = [script, *flags], script.removeprefix("-m ")
        # It runs as __main__; that what it needs was imported with it is enough.
        for name in {module, f"{module}.__main__"}.intersection(PRELOADED):
            del sys.modules[name]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(ROOT / script), *flags]
        runpy.run_path(str(ROOT / script), run_name="__main__")


def assert_one_clear_line(finished: CompletedProcess[str], status: int, *fragments: str) -> None:
    """The script failed with `status`, wrote nothing to stdout, no traceback, and one error line with `fragments`."""
    assert finished.returncode == status, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    errors = [line for line in finished.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, finished.stderr
    for fragment in fragments:
        assert fragment in errors[0]


@dataclass
class TrainedRun:
    """The checkpoints of both methods after the four training scripts, and what each script printed."""

    models_dir: Path
    corpora: list[Path]
    printed: dict[str, CompletedProcess[str]]


def train(script: str, models_dir: Path, datasets: list, *flags: object, **options) -> CompletedProcess[str]:
    """Run a training script with the preset smoke and one thread on `datasets`, one or all three."""
    data = [f"--dataset_name{'s' * (len(datasets) > 1)}", *datasets]
    common = ["--preset", "smoke", "--threads", 1, "--models_dir", models_dir]
    return run_script(script, *data, *common, *flags, **options)


def train_all(models_dir: Path, corpora: list[Path], *flags: object) -> dict[str, CompletedProcess[str]]:
    """Run the four training scripts on local corpora, preset smoke."""
    printed = {}
    for stage, corpus in enumerate(corpora, start=1):
        script = f"train_k1_dataset{stage}.py"
        printed[script] = train(script, models_dir, [corpus], *flags)
    printed["train_baseline_all.py"] = train("train_baseline_all.py", models_dir, corpora, *flags)
    for script, finished in printed.items():
        assert finished.returncode == 0, (script, finished.stderr)
    return printed


@pytest.fixture(scope="session")
def trained(tmp_path_factory, corpora) -> TrainedRun:
    """Both methods trained on the local corpora; nothing may be written into its folder."""
    return build_once(
        tmp_path_factory, "trained",
        lambda folder: TrainedRun(folder, corpora, train_all(folder, corpora, "--max_steps", 20)),
    )  # fmt: skip


@pytest.fixture
def tiny_model() -> torch.nn.Module:
    """A Llama of a few thousand parameters, odd in every dimension that may be odd."""
    from k1.model import build_model

    config = {
        "model_type": "llama", "vocab_size": 37, "hidden_size": 12, "intermediate_size": 17,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 16, "tie_word_embeddings": False, "pad_token_id": None,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    return build_model(config, seed=0)


def signed(content: dict) -> dict:
    """The `content` of a checkpoint with the SHA-256 that makes it look intact."""
    unsigned = {name: value for name, value in content.items() if name != "sha256"}
    return {**unsigned, "sha256": content_digest(unsigned)}
