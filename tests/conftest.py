"""What the tests share: tiny untrained models, with and without random weights everywhere, and a small trained one."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reads the network
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has a core

import pytest
import torch
from command_line import Outcome, Run, exit_code
from hypothesis import settings
from toy_grammar import write_toy_data

from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.generation.generator import Generator

settings.register_profile("ctrlgen", deadline=None, max_examples=60, database=None, derandomize=True)
settings.load_profile("ctrlgen")

TOY_DIRECTORY = Path(__file__).parent / "toy_model"
TINY = {"vocab_size": 11, "embedding_dim": 4, "width": 16, "layers": 2, "heads": 2, "max_length": 12}


def importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


SLOW = (
    "test_baselines", "test_bundled", "test_cli", "test_cluster", "test_evaluation", "test_explain", "test_generator",
    "test_hostile", "test_importing", "test_interrupted", "test_kills", "test_label", "test_language_model",
    "test_making", "test_means", "test_oracles_words", "test_page", "test_published", "test_readme",
    "test_training", "test_tree", "test_augmenting", "test_browser", "test_from_text", "test_memory",
    "test_classifiers",
)  # fmt: skip


# Of what is not installed nothing is collected.
NEEDS = {
    "gradio": ["cli/test_page.py", "cli/test_hostile.py", "cli/test_browser.py"],
    "ray": ["generation/test_cluster.py"],
}
collect_ignore = [file for package, files in NEEDS.items() if not importable(package) for file in files]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=0, help="how many requests, or damaged models, fuzzing tries")
    parser.addoption("--kills", type=int, default=0, help="how often running commands are killed, in all")
    parser.addoption("--timed", action="store_true", help="also hold how long things take, on a machine left alone")
    parser.addoption("--requests", type=int, default=0, help="how many requests one process answers")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Slow files import much, which the fast part need not wait for."""
    return True if config.option.markexpr == "not slow" and collection_path.stem in SLOW else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests train models, or start processes, are slow."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def ctrlgen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process."""
    monkeypatch.setattr("ctrlgen.cli.configure_libraries", lambda: None)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = exit_code(*arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are in the same order as in one of a generator's workers, or in a process that a test starts."""
    yield from threads(1)


@pytest.fixture
def four_threads() -> Iterator[None]:
    """Threads that add to one row in whatever order they come would show."""
    yield from threads(4)


def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model() -> Callable[..., Denoiser]:
    """A tiny denoiser in evaluation mode. `perturbed` fills every weight, also those that start at zero."""

    def make(perturbed: bool = False, **config: int | float | str) -> Denoiser:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Denoiser(DenoiserConfig(**{**TINY, **config})).eval()  # type: ignore[arg-type]
            if perturbed:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A JSON Lines file of toy sentences with a `tags` column. The cache of `datasets` is the tests' own."""
    import datasets

    directory = tmp_path_factory.mktemp("data")
    path = write_toy_data(directory / "toy.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", directory / "cache")
        patch.setenv("HF_DATASETS_CACHE", str(directory / "cache"))
        yield path


@pytest.fixture(scope="session")
def toy_model(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the model that make_toy_model.py trained on the toy sentences, with a POS head. Not to be changed."""
    return Path(shutil.copytree(TOY_DIRECTORY, tmp_path_factory.mktemp("models") / "toy"))


@pytest.fixture(scope="session")
def generator(toy_model: Path) -> Generator:
    return Generator(str(toy_model))


@pytest.fixture
def model_copy(toy_model: Path, tmp_path: Path) -> Path:
    """A copy of the toy model that a test may damage."""
    return Path(shutil.copytree(toy_model, tmp_path / "copy"))


class NoSpacy(MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] == "spacy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def no_spacy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if spaCy were not installed."""
    from ctrlgen_classifiers import tagging

    tagging.stop()
    for name in [name for name in sys.modules if name.partition(".")[0] == "spacy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoSpacy(), *sys.meta_path])
    tagging.tagger.cache_clear()
    yield
    tagging.tagger.cache_clear()
