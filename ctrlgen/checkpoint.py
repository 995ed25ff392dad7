"""Models on disk: config.json, model.safetensors (float16), tokenizer.json, README.md (the model card).

A model's classifiers lie beside it in classifiers/<name>/. Nothing is pickled, and a file appears under its
final name only when it is whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from platformdirs import user_data_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.diffusion.schedule import DiscreteSchedule, Schedule, make_schedule
from ctrlgen.diffusion.words import NO_ROW
from ctrlgen.errors import CtrlgenError, did_you_mean, first_line, shown
from ctrlgen.files import atomic_file, from_json, is_path, make_directory, write_text
from ctrlgen.keys import Key
from ctrlgen.settings import MAX_TEMPERATURE, MIN_TEMPERATURE, Settings
from ctrlgen.text.tokenizer import WordTokenizer

if TYPE_CHECKING:
    from ctrlgen.diffusion.bert import AnyDenoiser, BertDenoiserConfig

LONGEST = 65_536  # words of a text
CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
MEASURED = "measured.json"  # the success of each control, as `ctrlgen eval --update-card` found it


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise process, forth and back. `steps` is the number of discrete times of the `mse` objective."""

    schedule: Annotated[str, Key("`warp` is learned; `linear`, `cosine`, `sqrt` are fixed")] = "warp"
    min_noise: Annotated[float, Key("σ/α at the clean end, for `warp`; multiply by √(d / 16) for another d")] = 0.25
    max_noise: Annotated[float, Key("σ/α at the noisy end, for `warp`")] = 30.0
    steps: Annotated[int, Key("discrete times, for the objective `mse`", least=1)] = 2000
    temperature: Annotated[
        float, Key("at which texts are drawn unless told otherwise; lower: likelier, higher: more varied")
    ] = 1.2

    def __post_init__(self) -> None:
        if not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature = {self.temperature} must be from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}")


@dataclass
class DiffusionLM:
    """A denoiser with all that is needed to sample from it."""

    denoiser: AnyDenoiser
    schedule: Schedule
    tokenizer: WordTokenizer
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    lengths: dict[int, int] = field(default_factory=dict)  # how many training texts have each length
    directory: Path | None = None

    @property
    def config(self) -> DenoiserConfig | BertDenoiserConfig:
        return self.denoiser.config

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def fixed_length(self) -> bool:
        """Whether every sample is max_length long and ends at <end>, as in Diffusion-LM (`mse`)."""
        return self.config.objective == "mse"

    @property
    def imported(self) -> bool:
        """Whether it is a published checkpoint, with <start> in front of every text."""
        return bool(self.tokenizer.opening)

    @property
    def places(self) -> int:
        """How many places there are for a text and what closes it."""
        return self.config.max_length - len(self.tokenizer.opening)

    @property
    def longest(self) -> int:
        """The words at most of a text."""
        return self.places - len(self.tokenizer.closing) if self.fixed_length else self.config.max_length

    @property
    def context(self) -> int:
        """How many words of the sentences before a text it reads."""
        return getattr(self.config, "context", 0)

    @property
    def texts_follow(self) -> bool:
        """Whether other texts follow in a sample, instead of padding: checkpoints with the padding `block`."""
        return getattr(self.config, "padding", "pad") == "block"

    def temperature(self, settings: Settings) -> float:
        """The temperature at which it draws: its own unless another is asked for."""
        return self.diffusion.temperature if settings.temperature is None else settings.temperature

    def rows(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Texts as a model of fixed length sees them, opened, closed and filled up to max_length.

        What fills them is padding or, where texts follow, the next ones of these.
        """
        opening, closing, length = self.tokenizer.opening, self.tokenizer.closing, self.config.max_length
        if not self.texts_follow:
            return [[*opening, *self.tokenizer.filled(ids, self.places)] for ids in texts]
        framed = [[*opening, *ids, *closing] for ids in texts]
        return [
            list(islice(chain.from_iterable(framed[(i + k) % len(framed)] for k in range(length)), length))
            for i in range(len(framed))
        ]

    @property
    def opens(self) -> bool:
        """Whether words that the vocabulary lacks can be taken in, made of their spelling."""
        return isinstance(self.denoiser, Denoiser) and self.denoiser.config.output == "tied"

    def with_words(self, words: Mapping[str, str | None]) -> DiffusionLM:
        """The same model, whose vocabulary has these words as well; weights are shared. For models that `opens`.

        Each is given a known word whose vectors it takes, or None: then it is made of its spelling.
        """
        if not words:
            return self
        assert isinstance(self.denoiser, Denoiser)
        like = [NO_ROW if known is None else self.tokenizer.ids([known])[0] for known in words.values()]
        denoiser, tokenizer = self.denoiser.with_words(list(words), like), self.tokenizer.with_words(list(words))
        return dataclasses.replace(self, denoiser=denoiser, tokenizer=tokenizer)

    def to(self, device: str | torch.device) -> DiffusionLM:
        self.denoiser.to(device)
        self.schedule.to(device)
        return self


def write_weights(path: Path, state: Mapping[str, Tensor], half: bool = True) -> None:
    """Save tensors, floating ones as float16 if `half`."""
    save_tensors(path, {name: t.half() if half and t.is_floating_point() else t for name, t in state.items()})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Written by Python, so that the file has the usual permissions and a full disk is one clear error."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, as float32. Raises CtrlgenError where it is missing or truncated."""
    try:
        with path.open("rb"):  # safetensors says "no such file" of one that may not be read
            tensors = load_file(str(path))
    except FileNotFoundError as error:
        raise CtrlgenError(f"{path}: no such file") from error
    except PermissionError as error:
        raise CtrlgenError(f"{path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, OSError) as error:
        raise CtrlgenError(f"{path}: truncated or not a safetensors file") from error
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not t.float().isfinite().all()]
    if broken:
        raise CtrlgenError(f"{path}: holds numbers that are not finite, in {shown(broken[0])}")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CtrlgenError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise CtrlgenError(f"{path}: cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise CtrlgenError(f"{path}: not a JSON object")
    return config


def save_pretrained(model: DiffusionLM, directory: Path, half: bool = True) -> None:
    """Write the model's three files, its weights as float16 if `half`; the card is written by evaluation."""
    make_directory(directory)
    state = {f"denoiser.{k}": v for k, v in model.denoiser.state_dict().items()}
    state |= {f"schedule.{k}": v for k, v in model.schedule.state_dict().items()}
    write_weights(directory / WEIGHTS, state, half)
    write_text(directory / TOKENIZER, model.tokenizer.to_json())
    config = {
        "denoiser": {"vocab_size": model.config.vocab_size} | dataclasses.asdict(model.config),  # the size first
        "diffusion": dataclasses.asdict(model.diffusion),
        "lengths": {str(length): count for length, count in sorted(model.lengths.items())},
    }
    write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")


def bundled_models() -> dict[str, Path]:
    """The models that come with ctrlgen, by name."""
    root = Path(str(resources.files("ctrlgen"))) / "models"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CONFIG}"))}


def is_hub_copy(directory: Path) -> bool:
    """Whether this is the hub client's cache, which is not ours to write to: its files are shared between revisions."""
    return directory.parent.name == "snapshots" and directory.parent.parent.name.startswith("models--")


def directories_of(model: DiffusionLM, what: Literal["classifiers", "lm", "baselines"]) -> list[Path]:
    """Directories that may hold what is made for a model; new things are written to the first.

    That is the model's own directory, unless it is bundled or the hub's copy: then it is one in the user's data
    directory. None where the model was not saved.
    """
    if model.directory is None:
        return []
    own, users = model.directory / what, user_data_path("ctrlgen", appauthor=False) / what
    if model.directory in bundled_models().values():
        return [users / model.directory.name, own]
    if is_hub_copy(model.directory):
        return [users / model.directory.parent.parent.name / model.directory.name, own]
    return [own]


def find_model(name: str) -> Path:
    """The directory of a bundled model, a directory, or a hub id (downloaded)."""
    bundled = bundled_models()
    if name in bundled:
        return bundled[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") == 1 and not is_path(name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", CARD]))
        except Exception as error:  # the hub client raises many kinds, all meaning the same here
            raise CtrlgenError(f"{name}: neither a directory here nor a model on the hub") from error
    hint = did_you_mean(name, bundled)
    raise CtrlgenError(f"no model {name!r}: give a bundled name ({', '.join(bundled)}), a directory or a hub id.{hint}")


def make_denoiser(config: Mapping[str, Any], schedule: Schedule) -> AnyDenoiser:
    """An untrained denoiser as config.json describes it. Raises ValueError or TypeError where it describes none."""
    if config.get("architecture") != "bert":
        return Denoiser(DenoiserConfig(**config))
    from ctrlgen.diffusion.bert import BertDenoiser, BertDenoiserConfig  # transformers takes a while to import

    if not isinstance(schedule, DiscreteSchedule):
        raise ValueError("a bert denoiser needs a discrete schedule")
    return BertDenoiser(BertDenoiserConfig(**config), schedule)


def refuse_other_sizes(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError for sizes that the weights do not have, before a network of these sizes takes the memory."""
    dimensions = {size for tensor in state.values() for size in tensor.shape}
    for key, value in config.items():
        if not isinstance(value, int):
            continue
        limit = {"layers": len(state), "max_length": LONGEST}.get(key, max(dimensions, default=0))
        if value > limit or (key in ("width", "intermediate") and value not in dimensions):
            raise ValueError(f"{key} {value} is not that of {WEIGHTS}")


def from_pretrained(name: str, device: str | torch.device = "cpu") -> DiffusionLM:
    """Load a model by bundled name (`e2e`), directory or hub id, ready for sampling.

    Raises CtrlgenError in one line where anything is missing, truncated or does not fit together.
    """
    directory = find_model(name)
    config = read_config(directory / CONFIG)
    tokenizer = WordTokenizer.load(directory / TOKENIZER)
    state = read_weights(directory / WEIGHTS)
    try:
        refuse_other_sizes(config["denoiser"], state)
        diffusion = DiffusionConfig(**config["diffusion"])
        lengths = {int(length): int(count) for length, count in config["lengths"].items()}
        if any(length < 1 or count < 0 for length, count in lengths.items()):
            raise ValueError("`lengths` must count texts of one word or more")
        schedule = make_schedule(diffusion.schedule, diffusion.min_noise, diffusion.max_noise, diffusion.steps)
        denoiser = make_denoiser(config["denoiser"], schedule)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CtrlgenError(f"{directory / CONFIG}: not a ctrlgen model: {first_line(error)}") from error
    if len(tokenizer) != denoiser.config.vocab_size:
        count = denoiser.config.vocab_size
        raise CtrlgenError(f"{directory / TOKENIZER}: has {len(tokenizer)} words, {CONFIG} says {count}")
    try:
        denoiser.load_state_dict({k.removeprefix("denoiser."): v for k, v in state.items() if k.startswith("d")})
        schedule.load_state_dict({k.removeprefix("schedule."): v for k, v in state.items() if k.startswith("s")})
    except RuntimeError as error:
        raise CtrlgenError(f"{directory / WEIGHTS}: does not fit {CONFIG}") from error
    denoiser.eval().requires_grad_(False)
    return DiffusionLM(denoiser, schedule, tokenizer, diffusion, lengths, directory).to(device)
