"""The demo in a browser, through Gradio: controls in, a text emerging from the noise, verdicts out."""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from html import escape
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, TypeVar

from ctrlgen.cli.display import html_mark, html_text, reasons, said_change
from ctrlgen.cli.guard import Guard, Visitors
from ctrlgen.controls.language import write_statement
from ctrlgen.controls.registry import classifier_kinds
from ctrlgen.errors import MOST_SAID, CtrlgenError, UsageError
from ctrlgen.generation.editing import Editor
from ctrlgen.generation.edits import Edited
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request, Sample, Step, Watch
from ctrlgen.settings import MAX_SEED, SETTINGS, Guidance, Setting, Settings, Window, change
from ctrlgen.text.joining import write

try:
    import gradio
    from starlette.middleware import Middleware
except ImportError:
    raise UsageError('the demo needs gradio: pip install "ctrlgen[demo]"') from None

T = TypeVar("T")
MOST_TEXTS = 32
MOST_WAITING = 16  # visitors in the queue; others are told that it is full
AT_ONCE = 4  # visitors whose texts are written at the same time
SWITCH = 1e-4  # seconds after which one visitor's thread lets another's run: many short operations wait so long each
HIGHEST = {  # what one visitor may ask of the machine that serves everybody
    "steps": 100, "strength": 32, "candidates": 16, "corrections": 10, "until_success": 8, "paper_steps": 10,
    "temperature": 5, "last_temperature": 5, "paper_lr": 1, "paper_fluency": 1,
}  # fmt: skip
EMPTY = '<p class="emerging"></p>'
INTRODUCTION = """# ctrlgen
Write text under control. One control a line; a line may begin with `not` and end with a weight, `@2`. Words that failed
a control are red; the ticks come from oracles that never guide. A `~` stands
for a tick where a text obeys but has a word that hardly anybody would write there."""
SAVE = """(html) => {
    const page = new DOMParser().parseFromString(html ?? "", "text/html");
    const texts = [...page.querySelectorAll(".samples > li > p, p.emerging")].map((text) => text.textContent.trim());
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([texts.map((text) => text + "\\n").join("")], { type: "text/plain" }));
    link.download = "ctrlgen.txt";
    link.click();
}"""  # in the browser, which has the texts already
STYLE = """
.samples { padding-left: 2rem; } .samples li { padding: 0.4rem 0; } .samples p { margin: 0; font-size: 1.1rem; }
.samples ul { list-style: none; margin: 0; padding: 0; font-size: 0.85rem; opacity: 0.85; }
.samples ul li { padding: 0; }
.samples mark, .fail { color: #d33c3c; background: none; font-weight: 600; }
.pass { color: #1a8f55; } .open { color: #b07b00; }
.emerging { min-height: 1.5rem; font-size: 1.1rem; opacity: 0.6; }
"""


def writing(
    generator: Generator, request: Request, settings: Settings, pause: Callable[[], None] = lambda: None
) -> Iterator[Step | list[Sample]]:
    """The latest step whenever the caller is ready for one, then the samples. Closing the iterator ends the work.

    pause: called at every step.
    """
    return working(partial(generator.generate, [request], settings), pause)


def working(work: Callable[[Watch], list[T]], pause: Callable[[], None]) -> Iterator[Step | list[T]]:
    """The same of anything that is drawn and can be watched."""
    steps: SimpleQueue[Step | None] = SimpleQueue()
    stopped, so_far = Event(), dict[int, list[str]]()

    def watch(step: Step) -> None:
        if stopped.is_set():
            raise CancelledError
        so_far.update(step.texts)
        steps.put(replace(step, texts=dict(so_far)))
        pause()

    with ThreadPoolExecutor(1) as pool:
        samples = pool.submit(work, watch)
        samples.add_done_callback(lambda _: steps.put(None))
        try:
            while (step := latest(steps)) is not None:
                yield step
            yield samples.result()
        finally:
            stopped.set()


def latest(steps: SimpleQueue[Step | None]) -> Step | None:
    """The last of what waits in the queue, waiting for something where it is empty."""
    step = steps.get()
    try:
        while step is not None:
            step = steps.get_nowait()
    except Empty:
        pass
    return step


class Page(gradio.Blocks):  # type: ignore[misc]
    """Tells a caller whose values no component takes, where Gradio would print a traceback here, or fetch a file."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *more: Any, **options: Any) -> Any:
        try:
            if any(isinstance(value, dict | list) for value in inputs):
                raise UsageError("a value is a text, a number, true, false or null")
            return await super().preprocess_data(block_fn, inputs, *more, **options)
        except Exception as error:
            why = error if isinstance(error, UsageError | gradio.Error) else "a value is missing, or of another type"
            raise gradio.Error(escape(str(why)[:MOST_SAID], quote=False), print_exception=False) from None


def build(generator: Generator) -> gradio.Blocks:
    """The page for one model."""
    visitors = Visitors()

    def write(
        visitor: gradio.Request, controls: str, template: str, n: float, seed: float, *more: Any
    ) -> Iterator[str]:
        yield EMPTY  # no earlier text stands under an error
        try:
            with visitors.turn(visitor.client.host if visitor.client else "") as pause:
                yield from written(pause, controls, template, n, seed, *more)
        except CtrlgenError as error:
            raise gradio.Error(escape(str(error), quote=False), print_exception=False) from None

    def written(
        pause: Callable[[], None], controls: str, template: str, n: float, seed: float, *more: Any
    ) -> Iterator[str]:
        *values, source = more
        settings = change(Settings(), dict(zip(SETTINGS, map(value_of, SETTINGS.values(), values), strict=True)))
        lines = [line for line in str(controls or "").splitlines() if line.strip()]
        given = str(template or "").strip() or None
        count = whole(n, "the number of texts", 1, MOST_TEXTS)
        first = whole(seed or 0, "the seed", -MAX_SEED, MAX_SEED)
        if str(source or "").strip():
            if given is not None:
                raise UsageError("a text with blanks is filled, another is edited: leave one of them empty")
            if not lines:
                raise UsageError("say what to change: give a control")
            editor = Editor(generator)
            asked = editor.source(str(source), lines, n=count, seed=first)
            for found in working(partial(editor.edit, [asked], settings), pause):
                yield emerging(found) if isinstance(found, Step) else edits(found)
            return
        request = generator.request(lines, count, first, template=given)
        for event in writing(generator, request, settings, pause):
            yield emerging(event) if isinstance(event, Step) else listing(event)

    with Page(title="ctrlgen") as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            with gradio.Column():
                controls = gradio.Textbox(label="Controls", lines=3, placeholder="pos: DET NOUN AUX ADJ PUNCT")
                more = gradio.Dropdown(known_controls(generator), value=None, label="Add a control")
                more.input(added, [controls, more], [controls, more], api_visibility="private")
                template = gradio.Textbox(label="Text with blanks (may be left empty)", placeholder="The Vaults ___ .")
                source = gradio.Textbox("", label="Text to change as little as the controls ask (may be left empty)")
                with gradio.Row():
                    n = gradio.Slider(1, MOST_TEXTS, 4, step=1, label="Texts")
                    seed = gradio.Number(0, precision=0, label="Seed")
                with gradio.Accordion("How to sample", open=False):
                    usual = {"strength": Guidance().scale, "temperature": generator.model.temperature(Settings())}
                    fields = [field_of(one, usual.get(one.name, one.default)) for one in SETTINGS.values()]
            with gradio.Column():
                with gradio.Row():
                    start = gradio.Button("Write", variant="primary")
                    stop = gradio.Button("Stop")
                    save = gradio.Button("Save the texts")
                texts = gradio.HTML(label="Texts")
        asked = [controls, template, n, seed, *fields, source]
        run = gradio.on(
            [start.click, template.submit, source.submit], write, asked, texts,
            api_name="write", show_progress="hidden", concurrency_limit=AT_ONCE,
        )  # fmt: skip
        stop.click(stopped_text, texts, texts, cancels=[run], api_visibility="private")
        save.click(None, texts, None, js=SAVE, api_visibility="private")
    return page


def field_of(one: Setting, usual: Any) -> Any:
    """The component in which a setting is given, with its usual value."""
    label: dict[str, Any] = {"label": one.name.replace("_", " ").capitalize(), "info": one.help}
    if one.type is bool:
        return gradio.Checkbox(usual, **label)
    if one.choices:
        return gradio.Dropdown(list(one.choices), value=usual, **label)
    if one.type == Window:
        return gradio.Textbox("{:g}:{:g}".format(*usual), **label)
    if usual is None:
        return gradio.Number(None, **label)
    most = min(one.most, HIGHEST.get(one.name, one.most))
    return gradio.Slider(one.least, most, usual, step=1 if one.number is int else 0.05, **label)


def value_of(one: Setting, given: Any) -> Any:
    """A setting's value from what its component holds. Raises UsageError where it is out of the page's bounds."""
    if one.type == Window:
        return one.read(str(given))
    if one.number is None or (given is None and one.default is None):
        return given
    if not isinstance(given, int | float) or not given <= HIGHEST.get(one.name, one.most):
        raise UsageError(f"{one.name} is at most {HIGHEST.get(one.name, one.most):g} here")
    return one.number(given)


def serve(generator: Generator, host: str, port: int | None, open_browser: bool) -> gradio.Blocks:
    """Start the demo and return its page, whose `local_url` says where it is: without a port, the first free from 7860.

    Raises UsageError where it cannot listen there.
    """
    refusal = UsageError(f"cannot listen at {host}, port {port or 7860}: choose another --host or --port")
    try:
        socket.getaddrinfo(host, port)  # else the server tries for minutes
    except OSError:
        raise refusal from None
    sys.setswitchinterval(SWITCH)
    page = build(generator).queue(max_size=MOST_WAITING)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        page.launch(
            server_name=host, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, quiet=True,
            theme=theme, css=STYLE, footer_links=["api"], share=False, max_file_size=1, enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(Guard, host=host)]},
        )  # fmt: skip
    except OSError:
        raise refusal from None
    return page


def whole(given: Any, what: str, least: int, most: int) -> int:
    """A whole number within bounds. Raises UsageError where it is none: anyone may call the server as he likes."""
    if not isinstance(given, int | float) or not math.isfinite(given) or not least <= given <= most:
        raise UsageError(f"{what} must be between {least:,} and {most:,}")
    return int(given)


def added(controls: str, more: str | None) -> tuple[str, None]:
    """The controls with one more on a line of its own; the list is ready for the next."""
    return "\n".join(filter(None, [(controls or "").rstrip(), more])), None


def stopped_text(shown: str | None) -> str:
    """What had been written when somebody pressed Stop."""
    return f'{shown or EMPTY}<p class="open">Stopped: not finished, not checked.</p>'


def known_controls(generator: Generator) -> list[str]:
    """What can be added with a click: an example of each kind, and every value of those that can be listed."""
    listed = [
        write_statement(name, value)
        for name in generator.controls.names()
        for value in generator.controls.classifier(name).choices()
    ]
    return list(dict.fromkeys([*examples(generator), *listed]))


def examples(generator: Generator) -> list[str]:
    """Of each kind of control its example, where this model understands it."""
    found = []
    for classifier in classifier_kinds().values():
        with suppress(CtrlgenError):
            generator.request([classifier.example])
            found.append(classifier.example)
    return found


def emerging(step: Step) -> str:
    """All texts so far; when the last step is done, the oracles' turn has come."""
    checking = " <i>checking …</i>" if step.done >= step.total else ""
    texts = [step.texts[index] for index in sorted(step.texts)]
    return "".join(f'<p class="emerging">{html_text(write(words))}{checking}</p>' for words in texts)


def listing(samples: list[Sample]) -> str:
    """All texts, each with its controls, the oracles' marks and what failed."""
    return f'<ol class="samples">{"".join(map(item, samples))}</ol>'


def edits(found: list[Edited]) -> str:
    """All edits, each with what was changed."""
    items = []
    for one in found:
        made = "; ".join(said_change(one.source.words, change) for change in one.changes) or "nothing was changed"
        items.append(item(one.sample, f"<li>{one.kept:.0%} kept: {escape(made)}</li>"))
    return f'<ol class="samples">{"".join(items)}</ol>'


def item(sample: Sample, more: str = "") -> str:
    controls = "".join(
        f"<li>{html_mark(result.verdict.success, sample.slip)} <code>{escape(result.control.text)}</code> "
        f"{escape('; '.join(reasons(result)))}</li>"
        for result in sample.controls
    )
    cost = f"<li>{sample.cost:.2f} nats a word</li>" if sample.cost is not None else ""
    if sample.slip and sample.costliest_word is not None:
        cost += f"<li class=open>hardly anybody would write “{escape(sample.costliest_word.word)}” there</li>"
    left_out = f"<li class=fail>left out: {escape(sample.rejected.why)}</li>" if sample.rejected is not None else ""
    return f"<li><p>{html_text(sample.written, sample.failed)}</p><ul>{controls}{cost}{left_out}{more}</ul></li>"
