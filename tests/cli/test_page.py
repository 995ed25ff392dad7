"""The demo: the page answers as the library does, shows the text on its way, and stops when nobody waits."""

import socket
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from ctrlgen.cli import main
from ctrlgen.cli import page as demo
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Step
from ctrlgen.settings import SETTINGS, Settings

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def client(generator: Generator) -> Iterator[Client]:
    page = demo.serve(generator, HOST, None, open_browser=False)
    yield Client(page.local_url, verbose=False)
    page.close()


def answers(client: Client, controls: str, template: str = "", n: int = 2) -> list[str]:
    """All that the page shows, one after the other."""
    given = [one.default for one in SETTINGS.values()]
    given[list(SETTINGS).index("steps")] = 8
    given[list(SETTINGS).index("strength")] = 8.0
    given[list(SETTINGS).index("window")] = "0:1"
    job = client.submit(controls, template, n, 5, *given, api_name="/write")
    job.result(timeout=120)
    return [str(output) for output in job.outputs()]


def test_the_page_answers_as_the_library_does(client: Client, generator: Generator) -> None:
    shown = answers(client, "length: 5\n\nwords: dog")
    request = generator.request(["length: 5", "words: dog"], n=2, seed=5)
    samples = generator.generate([request], Settings(steps=8))
    assert shown[-1] == demo.listing(samples)
    assert all(text.startswith('<p class="emerging">') for text in shown[:-1])
    assert shown[-1].count("<code>words: dog</code>") == 2


def test_blanks_are_filled(client: Client) -> None:
    assert "the dog" in answers(client, "", "the dog ___ .")[-1]


@pytest.mark.parametrize(("controls", "said"), [("colour: red", "colour"), ("length: 0", "length")])
def test_a_control_that_cannot_be_is_told(client: Client, controls: str, said: str) -> None:
    with pytest.raises(AppError, match=said):
        answers(client, controls)


def test_what_is_written_is_escaped(generator: Generator) -> None:
    (sample,) = generator.generate([generator.request(["length: 3"])], Settings(steps=2))
    sample = replace(sample, tokens=["the", "<b>", "."], text="the <b>.", offsets=())
    assert "&lt;b&gt;" in demo.listing([sample])
    assert "<b>" not in demo.listing([sample])


def test_nothing_is_drawn_when_nobody_waits(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    generate = generator.generate

    def counted(requests, settings, watch):  # type: ignore[no-untyped-def]
        def count(step: Step) -> None:
            nonlocal steps
            steps += 1
            watch(step)

        return generate(requests, settings, count)

    monkeypatch.setattr(generator, "generate", counted)
    events = demo.writing(generator, generator.request(["length: 5"]), Settings(steps=2000))
    assert isinstance(next(events), Step)
    events.close()  # type: ignore[attr-defined]
    assert steps < 2000


def test_the_examples_are_those_that_the_model_understands(generator: Generator) -> None:
    found = demo.examples(generator)
    assert "length: 10-15" in found
    assert "words: cheap, city centre" not in found
    assert not any(example.startswith("tree") for example in found)


def test_a_port_that_is_taken_is_told(generator: Generator) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}"):
            demo.serve(generator, HOST, port, open_browser=False)


def test_what_to_install_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "ctrlgen.cli.page")
    with pytest.raises(SystemExit) as stopped:
        main(["demo"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == 'ctrlgen: the demo needs gradio: pip install "ctrlgen[demo]"\n'
