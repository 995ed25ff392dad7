"""The demo in a browser, clicked as people click it. Skipped where playwright or a Chromium is missing."""

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrlgen.cli import page as demo
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request, Sample, Step, Watch
from ctrlgen.settings import Settings

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
HOST, FOREIGN = "127.0.0.1", "evil.example"
PATIENCE = 120_000  # milliseconds that a loaded machine may take for a click
SCRIPT = "<img src=x onerror=alert(1)>"

expect.set_options(timeout=PATIENCE)


class Held(Generator):
    """A generator that waits at its third step until it may go on, so that tests see texts on their way."""

    def __init__(self, model: str):
        super().__init__(model)
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def generate(self, requests: list[Request], settings: Settings, watch: Watch) -> list[Sample]:  # type: ignore[override]
        def held(step: Step) -> None:
            watch(step)
            if step.done >= 3:
                self.may_go_on.wait(PATIENCE / 1000)

        return super().generate(requests, settings, held)


@pytest.fixture(scope="module")
def generator(toy_model: Path) -> Held:
    return Held(str(toy_model))


@pytest.fixture(scope="module")
def address(generator: Held) -> Iterator[str]:
    page = demo.serve(generator, HOST, None, open_browser=False)
    yield str(page.local_url)
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = ["--no-sandbox", "--disable-dev-shm-usage", f"--host-resolver-rules=MAP {FOREIGN} {HOST}"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser: Browser, address: str) -> Iterator[Page]:
    """A visitor's page. What goes wrong in it, or a script that runs, fails the test."""
    wrong = list[str]()
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        page.get_by_role("button", name="Write").wait_for()
        yield page
    assert not wrong


@pytest.fixture
def page(browser: Browser, address: str, generator: Held) -> Iterator[Page]:
    with visit(browser, address) as page:
        yield page
        generator.may_go_on.set()


@pytest.fixture
def held(generator: Held) -> Held:
    generator.may_go_on.clear()
    return generator


@pytest.fixture
def elsewhere(address: str) -> Iterator[str]:
    """The same page for a visitor from another address of this machine."""
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with socket.create_server((HOST, 0)) as server:
        threading.Thread(target=forward, args=(server, port), daemon=True).start()
        yield f"http://{HOST}:{server.getsockname()[1]}/"


def forward(server: socket.socket, port: int) -> None:
    def pipe(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    with contextlib.suppress(OSError):  # the server is closed
        while True:
            near = server.accept()[0]
            far = socket.create_connection((HOST, port), source_address=("127.0.0.2", 0))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=pipe, args=ends, daemon=True).start()


def controls(page: Page) -> Locator:
    return page.get_by_label("Controls", exact=True)


def add(page: Page, control: str) -> None:
    """From the list of values."""
    before = controls(page).input_value()
    page.get_by_label("Add a control").click()
    page.get_by_role("option", name=control, exact=True).click()
    expect(controls(page)).to_have_value(f"{before}\n{control}".strip())


def click(page: Page, button: str) -> None:
    page.get_by_role("button", name=button).click()


def texts(page: Page) -> Locator:
    return page.locator(".samples > li > p")


def test_controls_are_added_by_clicks_and_obeyed(page: Page) -> None:
    add(page, "ends: near the river")
    add(page, "length: 10-15")
    click(page, "Write")
    expect(texts(page)).to_have_count(4)
    assert all(text.endswith("near the river.") for text in texts(page).all_inner_texts())
    expect(page.locator(".samples code", has_text="length: 10-15")).to_have_count(4)
    expect(page.locator(".samples .pass")).to_have_count(8)


def test_all_texts_are_seen_on_their_way(page: Page, held: Held) -> None:
    click(page, "Write")
    emerging = page.locator("p.emerging")
    expect(emerging).to_have_count(4)
    assert all(emerging.all_inner_texts())
    expect(texts(page)).to_have_count(0)
    held.may_go_on.set()
    expect(texts(page)).to_have_count(4)
    expect(emerging).to_have_count(0)


def test_a_stopped_text_is_marked_and_the_next_is_written(page: Page, held: Held) -> None:
    click(page, "Write")
    expect(page.locator("p.emerging")).to_have_count(4)
    click(page, "Stop")
    expect(page.get_by_text("Stopped: not finished, not checked.")).to_be_visible()
    expect(page.locator("p.emerging")).to_have_count(4)
    held.may_go_on.set()
    add(page, "length: 10-15")
    expect(texts(page)).to_have_count(0)
    write_when_free(page)
    expect(page.get_by_text("Stopped")).to_have_count(0)


def write_when_free(page: Page) -> None:
    """What was stopped ends at its next step; until then the same visitor is told to wait."""
    for _ in range(20):
        click(page, "Write")
        expect(texts(page).first.or_(page.get_by_text("one request at a time").first)).to_be_visible()
        if texts(page).count():
            return
        page.wait_for_timeout(500)
    raise AssertionError("the stopped text is never given up")


def test_the_texts_are_saved(page: Page, tmp_path: Path) -> None:
    click(page, "Write")
    expect(texts(page)).to_have_count(4)
    with page.expect_download() as download:
        click(page, "Save the texts")
    download.value.save_as(tmp_path / "saved.txt")
    assert download.value.suggested_filename == "ctrlgen.txt"
    assert (tmp_path / "saved.txt").read_text().splitlines() == texts(page).all_inner_texts()


def test_two_visitors_write_at_once(page: Page, browser: Browser, elsewhere: str, held: Held) -> None:
    with visit(browser, elsewhere) as other:
        controls(other).fill("words: dog")
        for one in (page, other):
            click(one, "Write")
        for one in (page, other):
            expect(one.locator("p.emerging")).to_have_count(4)  # neither is finished
        held.may_go_on.set()
        for one in (page, other):
            expect(texts(one)).to_have_count(4)
        assert all("dog" in text for text in texts(other).all_inner_texts())
        expect(page.locator(".samples code")).to_have_count(0)  # each has his own


def test_one_visitor_writes_one_text_at_a_time(page: Page, browser: Browser, address: str, held: Held) -> None:
    click(page, "Write")
    expect(page.locator("p.emerging")).to_have_count(4)
    with visit(browser, address) as second:
        click(second, "Write")
        expect(second.get_by_text("one request at a time").first).to_be_visible()
    held.may_go_on.set()
    expect(texts(page)).to_have_count(4)


def test_a_mistake_is_told_and_no_earlier_text_stands_under_it(page: Page) -> None:
    click(page, "Write")
    expect(texts(page)).to_have_count(4)
    controls(page).fill("colour: red")
    click(page, "Write")
    expect(page.get_by_text("colour").last).to_be_visible()
    expect(texts(page)).to_have_count(0)


def test_nothing_that_is_typed_runs(page: Page) -> None:
    controls(page).fill(f"{SCRIPT}: a")
    click(page, "Write")
    expect(page.get_by_test_id("toast-body")).to_be_visible()
    expect(page.get_by_test_id("toast-body")).to_contain_text(SCRIPT)
    assert page.locator("img[src=x]").count() == 0
    controls(page).fill("")
    page.get_by_label("Text with blanks").fill("the <b> ___ .")
    click(page, "Write")
    expect(texts(page)).to_have_count(4)
    assert all("<b>" in text for text in texts(page).all_inner_texts())


def test_the_temperature_can_be_set(page: Page) -> None:
    page.get_by_role("button", name="How to sample").click()
    expect(page.get_by_label("Temperature", exact=False).first).to_be_visible()


def test_there_is_nothing_to_upload_to(page: Page) -> None:
    assert page.locator("input[type=file]").count() == 0
    upload = """async (route) => {
        const form = new FormData();
        form.append("files", new Blob(["hello"]), "a.txt");
        return (await fetch(route, { method: "POST", body: form })).status;
    }"""
    for route in ("/gradio_api/upload", "/upload", "/gradio_api/upload?upload_id=1"):
        assert page.evaluate(upload, route) == 404


def test_a_name_that_was_made_to_mean_this_machine_is_refused(page: Page, address: str) -> None:
    answer = page.goto(address.replace(HOST, FOREIGN))
    assert answer is not None
    assert answer.status == 421
    assert page.locator("button").count() == 0
