"""What people see: progress on a terminal, and tables of samples with their verdicts. All of it through Rich."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ctrlgen.cli.telling import LONG, Forecast, duration, tell_log, waiting
from ctrlgen.text.joining import Written, detokenize

if TYPE_CHECKING:
    from ctrlgen.evaluation.evaluation import Progress as EvaluationProgress
    from ctrlgen.generation.edits import Edited
    from ctrlgen.generation.request import ControlResult, Sample, Step
    from ctrlgen.generation.writing import WrittenText
    from ctrlgen.text.alignment import Change
    from ctrlgen.training.fit import Progress as TrainingProgress

PLAIN_WIDTH = 120  # where output goes to a file or a pipe
MARKS = {True: Text("✓", "green"), False: Text("✗", "red"), None: Text("?", "yellow")}
SLIPPED = Text("~", "yellow")  # in place of a tick
ABOUT_SLIPS = "~ obeys, but hardly anybody would write such a word there"


def console(file: TextIO) -> Console:
    """A console that is as wide as the terminal, or PLAIN_WIDTH and without colour elsewhere."""
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(file=file, width=PLAIN_WIDTH, highlight=False)


def marked_text(sample: Sample, new: Set[int] = frozenset()) -> Text:
    """The sample's text: words that failed a control in red, others that are new in bold, the costliest underlined."""
    text, failed = Text(), sample.failed
    costliest = sample.costliest_word.position if sample.costliest_word is not None else None
    for position, (space, word) in enumerate(sample.written.words()):
        text.append(space)
        style = "bold red" if position in failed else "bold cyan" if position in new else ""
        text.append(word, style=f"{style} underline".strip() if position == costliest else style)
    return text


def html_text(written: Written, failed: Set[int] = frozenset()) -> str:
    """A text as HTML, with the words that failed marked."""
    return "".join(
        escape(space) + (f"<mark>{escape(word)}</mark>" if position in failed else escape(word))
        for position, (space, word) in enumerate(written.words())
    )


def mark(success: bool | None, slip: bool | None) -> Text:
    """A tick, a cross or a question mark; a text with a slip gets no tick."""
    return SLIPPED if success and slip else MARKS[success]


def html_mark(success: bool | None, slip: bool | None) -> str:
    """The same, of class pass, fail or open."""
    name = "open" if success and slip else {True: "pass", False: "fail", None: "open"}[success]
    return f"<span class={name}>{mark(success, slip).plain}</span>"


def reasons(result: ControlResult) -> list[str]:
    """Why a control failed: as explained where that was asked for, else in the oracle's words."""
    if result.explanation:
        return [str(part) for part in result.explanation]
    return [result.verdict.detail] if result.verdict.detail else []


def slip_of(sample: Sample) -> list[str]:
    """The word that is a slip, where a tick would stand but for it."""
    word = sample.costliest_word
    ticked = any(result.verdict.success for result in sample.controls)
    return [f"~ {word.word!r} at position {word.position + 1}"] if sample.slip and ticked and word is not None else []


def heading(result: ControlResult) -> str:
    """What a control's column is called."""
    said = result.control.statement
    return f"not {said.name}" if said.negated else said.name


def said_change(words: Sequence[str], change: Change) -> str:
    """What was changed in a source of these words: `riverside → city centre`, `+ cheap`, `- cheap`."""
    before, after = detokenize(words[change.start : change.end]), detokenize(change.words)
    return f"{before} → {after}" if before and after else f"+ {after}" if after else f"- {before}"


def show_edits(edits: Sequence[Edited], file: TextIO) -> None:
    """A table of the new texts: verdicts, the share of the words that were kept, and what was changed."""
    more = {
        "kept": [f"{edited.kept:.0%}" for edited in edits],
        "changes": ["; ".join(said_change(e.source.words, c) for c in e.changes) or "none" for e in edits],
    }
    show_samples(
        [edited.sample for edited in edits], file, [marked_text(edited.sample, edited.new) for edited in edits], more
    )


def show_samples(
    samples: Iterable[Sample],
    file: TextIO,
    texts: Sequence[Text] | None = None,
    more: Mapping[str, Sequence[str]] = MappingProxyType({}),
    costs: bool = False,
) -> None:
    """A table of texts; with controls, a tick or a cross for each and what failed; `more` columns by their titles.

    Without controls there are texts alone, but for their `costs` where these are asked for. Controls that would take
    more than half of the width share a column. Costs are in nats a word.
    """
    samples, out = list(samples), console(file)
    texts = [marked_text(sample) for sample in samples] if texts is None else texts
    if not costs and not any(sample.controls for sample in samples):
        for sample in samples:
            if file.isatty():
                out.print(marked_text(sample), soft_wrap=True)
            else:  # Rich would make a given tab spaces
                print(marked_text(sample).plain, file=file)
        return
    results = [result for sample in samples for result in sample.controls]
    names = list(dict.fromkeys(heading(result) for result in results))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("text", ratio=1)
    crowded = sum(len(name) + 2 for name in names) > out.width // 2
    for name in ["controls"] if crowded else names:
        table.add_column(Text(name), justify="left" if crowded else "center")
    if any(sample.cost is not None for sample in samples):
        more = {"cost": ["" if s.cost is None else f"{s.cost:.2f}" for s in samples], **more}
    for title in more:
        table.add_column(title, overflow="fold")
    unchecked = dict.fromkeys(r.verdict.detail for r in results if r.verdict.success is None and r.verdict.detail)
    details = [
        [said for r in sample.controls if r.verdict.detail not in unchecked for said in reasons(r)] + slip_of(sample)
        for sample in samples
    ]
    redrawn = any(sample.attempts > 1 for sample in samples)
    if redrawn:
        table.add_column("draws", justify="right")
    if any(details):
        table.add_column("why", style="dim", ratio=1)
    for row, (sample, why) in enumerate(zip(samples, details, strict=True)):
        marks = []
        for name in names:
            verdicts = [r.verdict.success for r in sample.controls if heading(r) == name]
            marks.append(Text(" ").join(mark(verdict, sample.slip) for verdict in verdicts))
        if crowded:
            named = (Text.assemble(shown, f" {name}") for shown, name in zip(marks, names, strict=True) if shown)
            marks = [Text("\n").join(named)]
        draws = [str(sample.attempts)] if redrawn else []
        cells = [column[row] for column in more.values()]
        table.add_row(texts[row], *marks, *map(Text, cells), *draws, *(["; ".join(why)] if any(details) else []))
    out.print(table)
    doubtful = {result.control.statement.name: result.doubtful for result in results if result.doubtful is not None}
    for name, accuracy in doubtful.items():
        out.print(Text(f"the oracle of {name} is right about {accuracy:.0%} of texts held out", "dim"), soft_wrap=True)
    if any(map(slip_of, samples)):
        out.print(Text(ABOUT_SLIPS, "dim"), soft_wrap=True)
    for hint in unchecked:  # the same for every sample, so it is said once
        out.print(Text(f"? {hint}", "dim"), soft_wrap=True)


def show_sentences(text: WrittenText, file: TextIO) -> None:
    """A table of a text's sentences: how many controls each obeys, and which it does not."""
    table = Table("", "sentence", "controls", "why", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, (planned, sample) in enumerate(zip(text.plan.sentences, text.sentences, strict=True), 1):
        obeyed = sum(result.verdict.success is True for result in sample.controls)
        failed = [result for result in sample.controls if result.verdict.success is not True]
        said = [": ".join([heading(result), *reasons(result)]) for result in failed] + slip_of(sample)
        why = "; ".join(said)
        obeys = Text.assemble(mark(sample.success, sample.slip), f" {obeyed}/{len(sample.controls)}")
        label = f"{number} {planned.speaker}" if planned.speaker else str(number)
        table.add_row(label, marked_text(sample), obeys if sample.controls else "", Text(why, "dim"))
    out = console(file)
    out.print(table)
    if any(map(slip_of, text.sentences)):
        out.print(Text(ABOUT_SLIPS, "dim"), soft_wrap=True)


@contextmanager
def sampling_progress(follow: Callable[[float], None] = lambda share: None) -> Iterator[Callable[[Step], None]]:
    """A bar with the text as it emerges from the noise, on a terminal. `follow` is given the share that is done."""
    err = Console(stderr=True, highlight=False)
    if not err.is_terminal:
        yield lambda step: follow(min(1.0, step.done / step.total))
        return
    columns = (BarColumn(bar_width=24), TimeRemainingColumn(), TextColumn("{task.fields[text]}", style="dim"))
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", text="")

        def watch(step: Step) -> None:
            follow(min(1.0, step.done / step.total))
            text = detokenize(step.tokens)
            bar.update(task, completed=step.done, total=step.total, text=Text(text).plain[: max(20, err.width - 40)])

        yield watch


@contextmanager
def evaluation_progress() -> Iterator[Callable[[EvaluationProgress], None]]:
    """A bar with what is being evaluated, on a terminal; elsewhere a line now and then."""
    err = Console(stderr=True, highlight=False)
    what = TextColumn("{task.fields[what]}", style="dim", markup=False)
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), what)
    bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    with bar, waiting("reading data and models") as tell:
        task = bar.add_task("", total=None, what="reading data and models")
        forecast: list[Forecast] = []

        def watch(progress: EvaluationProgress) -> None:
            tell_log()
            if not forecast:
                forecast.append(Forecast("the evaluation"))
            left = forecast[0].left(progress.done / max(1, progress.total))
            tell(f"{progress.done:,} of {progress.total:,} texts, {progress.what}{left}")
            bar.update(task, completed=progress.done, total=progress.total, what=progress.what)

        yield watch


def follow_training(events: Iterable[TrainingProgress], resumable: bool = False) -> None:
    """Consume a training run: a bar with loss, tokens/s and time left on a terminal, elsewhere a line now and then.

    What a long run will take is said once it is known, and, if it is `resumable`, how to go on after a stop.
    """
    err = Console(stderr=True, highlight=False)
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    beginning = "reading data, making the model, first steps"
    bar = Progress(*columns, console=err, disable=not err.is_terminal)
    with bar, waiting(beginning) as tell:
        task = bar.add_task(beginning, total=None)
        for number, event in enumerate(events):
            tell_log()
            if number == 0 and event.eta >= LONG:
                goes_on = "; if it is stopped, the same command with --resume goes on" if resumable else ""
                err.print(f"the {event.steps - event.step:,} steps left take about {duration(event.eta)} here{goes_on}")
            figures = f"loss {event.loss:.3f}  {event.tokens_per_second:,.0f} tokens/s"
            line = f"step {event.step:,} of {event.steps:,}  {figures}"
            tell(f"{line}, {duration(event.eta)} left")
            bar.update(task, completed=event.step, total=event.steps, description=line)
            if event.validation is not None:
                show_validation(err, event)


def show_validation(err: Console, event: TrainingProgress) -> None:
    """One line of figures, the accuracy by noise level, samples and notes where there are any."""
    results = event.validation or {}
    figures = "  ".join(
        f"{key.replace('_', ' ')} {value:.3f}" for key, value in results.items() if isinstance(value, float)
    )
    err.print(f"step {event.step}  loss {event.loss:.3f}  {figures}")
    for label, accuracy in results.get("accuracy_by_noise", {}).items():
        err.print(f"    noise {label:>5}  accuracy {accuracy:.3f}", style="dim")
    for sample in results.get("samples", ()):
        err.print(Text(f"    {sample}", "dim"))
    for note in results.get("notes", ()):
        err.print(Text(note, "yellow" if note.startswith("warning") else ""))
