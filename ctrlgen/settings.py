"""How to sample: every setting with its default, its bounds and its help, once.

The command line, sweeps, the demo and Python take them from here. Nothing here needs torch, so that a bad value is
refused before torch is imported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from ctrlgen.errors import UsageError, did_you_mean, shown

SamplerName = Literal["ancestral", "ddim", "dpm"]
GuidanceMethod = Literal["gradient", "exact", "paper", "published"]
Infilling = Literal["conditioned", "replaced"]
Selection = Literal["score", "mbr"]
Window = tuple[float, float]
Scorer = Callable[[Sequence[str]], Sequence[float]]  # texts to numbers, of which more is better

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1000.0
MOST_SAMPLES = 1_000_000  # of one request
REDRAWS_OF_EQUALS = 10  # of a text that an earlier one of its request equals
MAX_SEED = 2**62  # a greater one would leave no room for the seeds of candidates
KEEPING, STEERING, DENOISING = "Which texts to keep, and what to say of them", "How to steer", "How to denoise"
STRENGTHS = {"gradient": 8.0, "exact": 1.0, "paper": 1.0, "published": 1.0}  # of guidance, unless another is given


def setting(
    default: Any,
    help: str,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    name: str = "",
    measured: bool = True,
    edits: bool = True,
    rejects: str = "",
    heading: str = DENOISING,
) -> Any:
    """A field that is a setting. `name` is what users call it, if not as the field. Not `measured`: no part of `eval`,
    since an oracle would choose the texts that it judges, or since it changes no text. `edits`: whether edits know it.
    `rejects`: what the texts are that it leaves out, in words. `heading`: where a list of all shows it;
    what is of guidance stands under STEERING.
    """
    extra = {"help": help, "least": least, "most": most, "name": name, "measured": measured, "edits": edits}
    return field(default=default, metadata=extra | {"rejects": rejects, "heading": heading})


@dataclass(frozen=True)
class Guidance:
    """How strongly and by which method to steer.

    gradient: Tweedie's formula (see `generation/guidance.py`). exact: the conditional posterior mean in closed form,
    where a classifier has one. paper: Adagrad steps on x_{t-1} (Li et al. 2022, section 5.1). published: the same as
    the original's code has it.
    """

    method: GuidanceMethod = setting(
        "gradient", "How to steer; paper is Diffusion-LM's, published that of its code.", name="guidance"
    )
    strength: float | None = setting(
        None, "How hard controls pull; 0 is unguided. By default 8 for gradient, else 1.", 0.0, 1000.0
    )
    window: Window = setting((0.0, 1.0), "FROM:TO, the noise levels at which controls act: 0 is noise, 1 text.")
    backward: Window = setting(
        (0.0, 1.0),
        "FROM:TO, the noise levels at which the gradient runs through the whole denoiser; elsewhere through what x_t "
        "alone says of each word, without a backward pass.",
    )
    paper_steps: int = setting(3, "Of the paper's guidance: Adagrad steps a draw.", 1, 1000)
    paper_lr: float = setting(0.1, "Of the paper's guidance: Adagrad's learning rate.", 0.0, 100.0)
    paper_fluency: float = setting(0.01, "Of the paper's guidance: the weight of fluency, its lambda.", 0.0, 1000.0)

    def __post_init__(self) -> None:
        check(self)

    @property
    def moves_draws(self) -> bool:
        """Whether the draws of x_{t-1} are moved, as in Diffusion-LM, and not the estimates of x_0."""
        return self.method in ("paper", "published")

    @property
    def scale(self) -> float:
        """The strength given, or the method's own."""
        return STRENGTHS[self.method] if self.strength is None else self.strength


@dataclass(frozen=True)
class Settings:
    """How to sample. The defaults are the ones our reported numbers use."""

    steps: int = setting(24, "Denoising steps.", 1, 100_000)
    sampler: SamplerName = setting("ancestral", "How x_t walks to x_0.")
    eta: float = setting(0.0, "Noise of ddim: 0 none, 1 as ancestral.", 0.0, 1.0)
    temperature: float | None = setting(
        None,
        "Lower: likelier words; higher: more varied texts. By default the model's own.",
        MIN_TEMPERATURE,
        MAX_TEMPERATURE,
    )
    last_temperature: float = setting(
        0.0, "At which the last step draws its words, jointly; 0 chooses the likeliest text.", 0.0, 1000.0
    )
    time_offset: float = setting(
        -1.0, "Added to the log-SNR that the denoiser is given; below 0 it writes likelier texts.", -20.0, 20.0
    )
    restart: float = setting(
        0.5,
        "The time t to which ancestral sampling goes back once, with 40% of the steps; 0 never.",
        0.0,
        1.0,
        edits=False,
    )
    corrections: int = setting(
        3, "Sweeps over the finished text that replace words the others make unlikely.", 0, 1000, edits=False
    )
    redrafts: int = setting(
        2,
        "Write a text anew where two of its words are too unlikely beside the others, at most so often; the better is "
        "kept.",
        0,
        10,
        edits=False,
    )
    infilling: Infilling = setting(
        "conditioned",
        "Given words: clean inputs of the denoiser (conditioned), or put back each step (replaced) as in Diffusion-LM.",
    )
    clamp: bool = setting(False, "Round every step's estimate to words' embeddings, as Diffusion-LM does.")
    guidance: Guidance = field(default_factory=Guidance)
    candidates: int = setting(
        1, "Write so many drafts of each text and keep the one with the best score.", 1, 10_000, heading=KEEPING
    )
    select: Selection = setting(
        "score", "How to choose among candidates: mbr is by likeness to the others.", edits=False, heading=KEEPING
    )
    scorer: Scorer | None = None  # of Python and `--scorer` alone, since it is code
    particles: int = setting(
        8, "Drafts of each text that a scorer chooses among.", 2, 10_000, measured=False, edits=False, heading=STEERING
    )
    until_success: int = setting(
        0,
        "Draw again what an oracle rejects, at most this often. The oracle then chooses the texts, so its verdicts "
        "measure nothing any more; not used in our reported numbers.",
        0,
        10_000,
        measured=False,
        heading=KEEPING,
    )
    cost: bool = setting(
        False,
        "Say what texts cost also where the model has no language model: by its bound, which takes as long as writing.",
        measured=False,
        heading=KEEPING,
    )
    max_cost: float | None = setting(
        None,
        "Leave out texts that cost more nats a word; with --until-success they are drawn again.",
        0.0,
        1000.0,
        measured=False,
        edits=False,
        rejects="too costly",
        heading=KEEPING,
    )
    no_slips: bool = setting(
        False,
        "Leave out texts with a word that hardly anybody would write there; with --until-success they are drawn again.",
        measured=False,
        edits=False,
        rejects="with a slip",
        heading=KEEPING,
    )
    distinct: bool = setting(
        False,
        "No two equal texts of a request: the later one is drawn again, or else left out.",
        measured=False,
        edits=False,
        rejects="equal to another",
        heading=KEEPING,
    )
    confidence: float | None = setting(
        None,
        "Return only texts that score so high that at least this share of them obeys, such as 0.9.",
        0.01,
        0.999,
        measured=False,
        edits=False,
        rejects="not sure enough",
        heading=KEEPING,
    )
    explain: bool = setting(
        False,
        "Say when each part that failed was lost, and to which other control.",
        measured=False,
        edits=False,
        heading=KEEPING,
    )

    def __post_init__(self) -> None:
        check(self)
        others = set(rejecting(self)) - {"confidence"}
        if self.confidence is not None and (others or self.until_success or self.scorer is not None):
            raise UsageError(
                "confidence is of texts as they are drawn: leave out until-success, max-cost, no-slips, distinct and "
                "scorers"
            )
        if self.guidance.moves_draws and self.sampler != "ancestral":
            raise UsageError("the paper's guidance moves ancestral draws: use it with --sampler ancestral")
        if self.scorer is not None and (self.sampler != "ancestral" or self.guidance.moves_draws):
            raise UsageError("a scorer chooses among ancestral draws: leave out --sampler, and the paper's guidance")
        if self.scorer is not None and (self.candidates > 1 or self.explain):
            raise UsageError("a scorer chooses among particles: leave out candidates and explanations")


@dataclass(frozen=True)
class Setting:
    """One setting: what users call it, what it takes, and what it is for."""

    name: str
    field: str
    of_guidance: bool
    heading: str  # where a list of all shows it
    type: Any  # of its values
    default: Any
    help: str
    least: float
    most: float
    measured: bool
    edits: bool
    rejects: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that it accepts; empty where it takes something else."""
        return get_args(self.type) if isinstance(self.default, str) else ()

    @property
    def number(self) -> type[int] | type[float] | None:
        """What kind of number it takes, None where it takes something else."""
        if self.type is int:
            return int
        return float if self.type in (float, float | None) else None

    def read(self, text: str) -> Any:
        """A value as written. Raises UsageError where it is none of this setting's type; `check` knows the bounds."""
        if self.type == Window:
            return read_window(text)
        if self.type is bool:
            if text not in ("true", "false"):
                raise UsageError(f"{self.name} {shown(text)}: use true or false")
            return text == "true"
        if self.number is None:
            return text
        try:
            return self.number(text)
        except ValueError:
            raise UsageError(f"{self.name}: {shown(text)} is not a number") from None

    def check(self, value: Any) -> None:
        """Raises UsageError where a value is out of bounds."""
        if self.choices:
            if value not in self.choices:
                raise UsageError(f"unknown {self.name} {value!r}: use {', '.join(self.choices)}")
        elif self.type == Window:
            if not 0 <= value[0] < value[1] <= 1:
                raise UsageError(f"{self.name} {value[0]:g}:{value[1]:g}: must rise within 0 and 1")
        elif self.number is not None and value is not None and not self.least <= value <= self.most:
            raise UsageError(f"{self.name} must be between {self.least:,g} and {self.most:,g}, got {value}")


def read_window(text: str) -> Window:
    """FROM:TO, where what is left out is 0 and 1."""
    start, colon, end = text.partition(":")
    try:
        return float(start or 0), float(end or 1 if colon else "")
    except ValueError:
        raise UsageError(f"window {shown(text)}: write FROM:TO, two numbers between 0 and 1") from None


@cache
def settings_of(owner: type) -> dict[str, Setting]:
    """The settings among the fields of a class, by what users call them."""
    types = get_type_hints(owner)
    found = [
        Setting(
            of.metadata["name"] or of.name, of.name, owner is Guidance,
            STEERING if owner is Guidance else of.metadata["heading"], types[of.name], of.default,
            *(of.metadata[key] for key in ("help", "least", "most", "measured", "edits", "rejects")),
        )
        for of in dataclasses.fields(owner)
        if of.metadata
    ]  # fmt: skip
    return {one.name: one for one in found}


def check(given: Settings | Guidance) -> None:
    """Raises UsageError naming the first setting whose value is out of bounds."""
    for one in (settings_of(Settings) if isinstance(given, Settings) else settings_of(Guidance)).values():
        one.check(getattr(given, one.field))


def rejecting(settings: Settings) -> list[str]:
    """The settings, by name, because of which texts may be left out."""
    given = [one for one in settings_of(Settings).values() if one.rejects]
    return [one.name for one in given if getattr(settings, one.field) not in (None, False)]


SETTINGS = settings_of(Settings) | settings_of(Guidance)


def check_counts(n: int, seed: int) -> None:
    """Raises UsageError where no request can have so many samples, or this seed."""
    if not 1 <= n <= MOST_SAMPLES:
        raise UsageError(f"n must be between 1 and {MOST_SAMPLES}, got {n}")
    if abs(seed) > MAX_SEED:
        raise UsageError(f"the seed must be at most {MAX_SEED} in size, got {seed}")


def change(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Settings with some of them changed, by what users call them. Raises UsageError where one does not exist."""
    for name in values:
        if name not in SETTINGS:
            raise UsageError(f"unknown setting {name!r}: use {', '.join(SETTINGS)}.{did_you_mean(name, SETTINGS)}")
    named = [(SETTINGS[name], value) for name, value in values.items()]
    guidance = dataclasses.replace(settings.guidance, **{one.field: value for one, value in named if one.of_guidance})
    own = {one.field: value for one, value in named if not one.of_guidance}
    return dataclasses.replace(settings, guidance=guidance, **own)


def read_settings(settings: Settings, written: Mapping[str, str]) -> Settings:
    """The same with values as written, such as those of a sweep: only settings that evaluation may vary."""
    varied = {name: one for name, one in SETTINGS.items() if one.measured}
    for name in written:
        if name not in varied:
            raise UsageError(f"{name!r} cannot be varied: use {', '.join(varied)}.{did_you_mean(name, varied)}")
    return change(settings, {name: varied[name].read(text) for name, text in written.items()})
