"""`ctrlgen demo`: try controls in a browser."""

from __future__ import annotations

import sys
from threading import Event
from typing import Annotated

import typer

from ctrlgen.cli.common import DeviceOption, ModelOption, find_device


def demo(
    model: ModelOption = "e2e",
    device: DeviceOption = "auto",
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="[default: the first free one from 7860]")] = None,
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = True,
) -> None:
    """Try controls in a browser.

    The page is served from this machine. Needs the extra `demo`.

    Example: ctrlgen demo --port 8000 --no-browser
    """
    from ctrlgen.cli.page import serve
    from ctrlgen.generation.generator import Generator

    page = serve(Generator(model, find_device(device)), host, port, browser)
    print(f"{page.local_url}  (Ctrl-C ends it)", file=sys.stderr)
    try:
        Event().wait()
    finally:
        page.close(verbose=False)
