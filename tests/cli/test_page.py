"""The demo: the page answers as the library does, shows the text on its way, and stops when nobody waits."""

import json
import math
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from ctrlgen.cli import main
from ctrlgen.cli import page as demo
from ctrlgen.cli.guard import Guard
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


def answers(client: Client, controls: str, template: str = "", n: int = 2, source: str = "") -> list[str]:
    """All that the page shows, one after the other."""
    given = [one.default for one in SETTINGS.values()]
    given[list(SETTINGS).index("steps")] = 8
    given[list(SETTINGS).index("strength")] = 8.0
    given[list(SETTINGS).index("temperature")] = 1.2
    given[list(SETTINGS).index("window")] = given[list(SETTINGS).index("backward")] = "0:1"
    job = client.submit(controls, template, n, 5, *given, source, api_name="/write")
    job.result(timeout=120)
    return [str(output) for output in job.outputs()]


def test_the_page_answers_as_the_library_does(client: Client, generator: Generator) -> None:
    shown = answers(client, "length: 5\n\nwords: dog")
    request = generator.request(["length: 5", "words: dog"], n=2, seed=5)
    samples = generator.generate([request], Settings(steps=8))
    assert shown[-1] == demo.listing(samples)
    assert all(text.startswith('<p class="emerging">') for text in shown[:-1])
    assert shown[-1].count("<code>words: dog</code>") == 2
    assert shown[-2].count('<p class="emerging">') == 2  # all texts are shown while they are written


@pytest.fixture
def address(client: Client) -> str:
    return str(client.src).rstrip("/")


@pytest.mark.parametrize("route", ["/gradio_api/upload", "/upload", "/gradio_api/upload?upload_id=1"])
def test_nobody_can_upload(address: str, route: str) -> None:
    files = {"files": ("a.txt", b"hello")}
    assert httpx.post(f"{address}{route}", files=files).status_code == 404


@pytest.mark.parametrize(("host", "status"), [("evil.example", 421), ("evil.example:80", 421), ("localhost:7860", 200)])
def test_a_foreign_host_is_refused(address: str, host: str, status: int) -> None:
    assert httpx.get(address, headers={"host": host}).status_code == status


def test_large_requests_are_refused(address: str) -> None:
    assert httpx.post(f"{address}/gradio_api/call/write", content=b"a" * 300_000).status_code == 413


def test_requests_without_a_length_are_refused(address: str) -> None:
    body = (b"a" * 1000 for _ in range(300))
    assert httpx.post(f"{address}/gradio_api/call/write", content=body).status_code == 411


FILE = {"path": "http://example.org/a", "url": "http://example.org/a", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("value", [None, math.nan, 10**400, "many", True, [1], {}, FILE, "missing", "all", "window"])
def test_k11_odd_values_are_told_without_a_traceback(
    address: str, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    defaults = [one.default for one in SETTINGS.values()]
    given = {"missing": [], "all": [None] * (len(SETTINGS) + 5)}
    given["window"] = ["words: dog", "", 1, 1, *defaults, ""]  # whose windows are pairs of numbers, no texts
    data = given.get(str(value), ["words: dog", "", value, 1, *defaults, ""])
    body = json.dumps({"data": data})
    posted = httpx.post(f"{address}/gradio_api/call/write", content=body, headers={"content-type": "application/json"})
    answer = httpx.get(f"{address}/gradio_api/call/write/{posted.json()['event_id']}", timeout=120).text
    assert "event: error" in answer
    assert "null" not in answer.rsplit("data: ", 1)[1][:40]  # it says why
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("listens", "host", "own"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True), ("127.0.0.1", "localhost", True), ("127.0.0.1", "10.0.0.1", False),
        ("0.0.0.0", "10.0.0.1:7860", True), ("0.0.0.0", "evil.example", False), ("::", "[::1]:7860", True),
        ("example.org", "example.org:80", True), ("example.org", "", False),
    ],
)  # fmt: skip
def test_which_hosts_are_this_machine(listens: str, host: str, own: bool) -> None:
    async def app(*_: object) -> None: ...

    assert Guard(app, listens).is_own(host) is own


@pytest.mark.parametrize("n", [None, float("nan"), 0, 33, 1e9, "many"])
def test_a_number_that_is_none_is_told(n: object) -> None:
    with pytest.raises(UsageError, match="the number of texts must be between 1 and 32"):
        demo.whole(n, "the number of texts", 1, demo.MOST_TEXTS)


def test_a_click_adds_a_control(generator: Generator) -> None:
    assert demo.added("", "length: 5") == ("length: 5", None)
    assert demo.added("length: 5\n", "words: dog") == ("length: 5\nwords: dog", None)
    assert demo.added("length: 5", None) == ("length: 5", None)
    for control in demo.known_controls(generator):
        generator.request([control])


def test_the_texts_can_be_saved(generator: Generator) -> None:
    saving = [one for one in demo.build(generator).config["dependencies"] if one["js"]]
    assert len(saving) == 1
    assert "link.download" in saving[0]["js"]
    assert not saving[0]["backend_fn"]  # the browser has the texts already


def test_a_stopped_text_is_marked() -> None:
    assert demo.stopped_text("<p>The dog</p>").startswith("<p>The dog</p><p")
    assert "Stopped" in demo.stopped_text(None)


def test_blanks_are_filled(client: Client) -> None:
    assert "the dog" in answers(client, "", "the dog ___ .")[-1]


def test_a_text_is_edited(client: Client) -> None:
    shown = answers(client, "not words: dog", source="the dog sees a cat .", n=1)[-1]
    assert "dog</p>" not in shown
    assert "kept: " in shown
    assert "nothing was changed" in answers(client, "words: dog", source="the dog sees a cat .", n=1)[-1]
    with pytest.raises(AppError, match="leave one of them empty"):
        answers(client, "words: dog", "the ___", source="the dog .")
    with pytest.raises(AppError, match="give a control"):
        answers(client, "", source="the dog .")


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


def test_a_host_that_is_none_is_told(generator: Generator) -> None:
    with pytest.raises(UsageError, match=r"cannot listen at 999\.1\.1\.1"):
        demo.serve(generator, "999.1.1.1", None, open_browser=False)


def test_what_to_install_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "ctrlgen.cli.page")
    with pytest.raises(SystemExit) as stopped:
        main(["demo"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == 'ctrlgen: the demo needs gradio: pip install "ctrlgen[demo]"\n'
