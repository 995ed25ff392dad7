"""Two visitors of the demo, one of them hostile: the other is answered meanwhile.

`pytest tests/cli/test_hostile.py -s --timed` says how long each takes, and holds that it is twice as usual at most.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from ctrlgen.cli import page as demo
from ctrlgen.cli.guard import MOST_POSTS, Guard, Visitors
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import SETTINGS

HOSTILE = "127.0.0.2"  # another address of this machine
LARGEST = {"n": 32, "steps": 100, "candidates": 16}


@pytest.fixture(scope="module")
def address(generator: Generator) -> Iterator[str]:
    page = demo.serve(generator, "127.0.0.1", None, open_browser=False)
    yield str(page.local_url).rstrip("/")
    page.close()


def visitor(address: str, source: str = "127.0.0.1") -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=source)
    return httpx.Client(base_url=f"{address}/gradio_api/call", transport=transport, timeout=300)


def asking(controls: str, n: int = 4, **settings: Any) -> dict[str, Any]:
    defaults = {name: one.default for name, one in SETTINGS.items()} | {
        "strength": 8.0,
        "temperature": 1.2,
        "window": "0:1",
        "backward": "0:1",
    }
    return {"data": [controls, "", n, 5, *(defaults | settings).values(), ""]}


def answer(client: httpx.Client, given: dict[str, Any]) -> str:
    """How a request ended: `complete`, `error`, or the status of what was refused."""
    posted = client.post("/write", json=given)
    if posted.status_code != 200:
        return str(posted.status_code)
    with client.stream("GET", f"/write/{posted.json()['event_id']}") as stream:
        for line in stream.iter_lines():
            if line in ("event: complete", "event: error"):
                return line.removeprefix("event: ")
    return "nothing"


ATTACK = """
import json, sys, threading, time
import httpx
address, source, texts, huge = json.loads(sys.stdin.readline())

def client():
    transport = httpx.HTTPTransport(local_address=source)
    return httpx.Client(base_url=f"{address}/gradio_api/call", transport=transport, timeout=300)

def largest():
    with client() as own:
        while True:
            posted = own.post("/write", json=texts)
            if posted.status_code == 200:
                own.get(f"/write/{posted.json()['event_id']}")
                print("largest", flush=True)
            time.sleep(0.2)

threading.Thread(target=largest, daemon=True).start()
time.sleep(1)
with client() as other:
    while True:
        for given in (texts, huge):
            print(other.post("/write", json=given).status_code, flush=True)
            time.sleep(0.02)
"""


@contextmanager
def attacked(address: str) -> Iterator[set[str]]:
    """All that one address can do: the largest texts one after the other, many at once, and huge requests."""
    texts = asking("length: 6-12\nwords: dog\npos: DET ...", **LARGEST)
    huge = {"data": ["\n".join(["words: " + "a" * 9000] * 15), *texts["data"][1:]]}
    given, ended = json.dumps([address, HOSTILE, texts, huge]), set[str]()
    with subprocess.Popen(
        [sys.executable, "-c", ATTACK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as attack:
        assert attack.stdin is not None
        assert attack.stdout is not None
        attack.stdin.write(given + "\n")
        attack.stdin.flush()
        while "429" not in ended:
            ended.add(attack.stdout.readline().strip())
        follow = threading.Thread(target=lambda: ended.update(map(str.strip, attack.stdout or ())), daemon=True)
        follow.start()
        yield ended
        attack.kill()


def test_a_hostile_visitor_keeps_nobody_waiting(address: str, request: pytest.FixtureRequest) -> None:
    given = asking("length: 6-9\nwords: cat")

    def seconds(client: httpx.Client) -> float:
        started = time.monotonic()
        assert answer(client, given) == "complete"
        return time.monotonic() - started

    with visitor(address) as client:
        seconds(client)  # the first takes longer
        usual = [seconds(client) for _ in range(5)]
        with attacked(address):
            meanwhile = [seconds(client) for _ in range(5)]
    print(f"\nusual {[f'{s:.2f}' for s in usual]}, beside a hostile visitor {[f'{s:.2f}' for s in meanwhile]} seconds")
    if request.config.getoption("--timed"):
        assert statistics.median(meanwhile) <= 2 * statistics.median(usual)


def test_one_text_at_a_time_for_each_visitor() -> None:
    visitors = Visitors()
    with visitors.turn("a"), visitors.turn("b"):
        with pytest.raises(UsageError, match="one request at a time"), visitors.turn("a"):
            pass
        assert set(visitors.had) == {"a", "b"}
    assert visitors.had == {}


def test_who_has_had_more_lets_others_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrlgen.cli.guard.LONGEST_WAIT", 60.0)
    visitors, order = Visitors(), list[str]()
    with visitors.turn("long") as step:
        visitors.had["long"] = 100.0
        with visitors.turn("short"):
            waiting = threading.Thread(target=lambda: (step(), order.append("long")), daemon=True)
            waiting.start()
            order.append("short")
        waiting.join()
    assert order == ["short", "long"]


def test_a_flood_is_refused_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(*_: object) -> None: ...

    guard, now = Guard(app, "127.0.0.1"), [0.0]
    monkeypatch.setattr("ctrlgen.cli.guard.time.monotonic", lambda: now[0])

    def status(client: str, method: str = "POST") -> int:
        headers = [(b"host", b"localhost")]
        refused = guard.refusal(
            {"type": "http", "path": "/", "headers": headers, "method": method, "client": (client, 1)}
        )
        return 200 if refused is None else refused[0]

    assert [status("a") for _ in range(MOST_POSTS + 2)] == [200] * MOST_POSTS + [429, 429]
    assert (status("b"), status("a", "GET")) == (200, 200)
    now[0] = 20.0
    assert status("a") == 200
