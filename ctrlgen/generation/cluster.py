"""A batch shared among the processors of a Ray cluster. A text depends on its seed alone: it is the same anywhere."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ctrlgen.checkpoint import bundled_models
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request
from ctrlgen.settings import Settings

try:
    import ray
    from ray.util import ActorPool
except ImportError:
    raise UsageError('--ray needs ray: pip install "ctrlgen[ray]"') from None

SHARD = 32  # requests answered at a time by one worker
CONNECT_SECONDS = 5.0


class Worker:
    """A generator in a process of its own."""

    def __init__(self, model: str, settings: Settings):
        self.generator, self.settings = Generator(model), settings

    def answer(self, written: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Requests as `Generator.request` takes them -> their samples, as JSON says them."""
        requests = [self.generator.request(**request) for request in written]
        return [sample.as_json() for sample in self.generator.generate(requests, self.settings)]


def generate_on_cluster(
    model: str, requests: Sequence[Request], settings: Settings, workers: int | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The samples of all requests in order, some requests' at a time, each as `Sample.as_json` has it.

    Uses the cluster that RAY_ADDRESS names, else this machine, with a worker of one thread for each processor.
    `model` is a bundled name, a hub id, or a directory that every machine sees.
    Raises CtrlgenError where the cluster cannot be reached or a worker is lost.
    """
    shards = [[written(request) for request in requests[i : i + SHARD]] for i in range(0, len(requests), SHARD)]
    if model not in bundled_models() and Path(model).is_dir():
        model = str(Path(model).resolve())  # workers run elsewhere
    try:
        refuse_unreachable(os.environ.get("RAY_ADDRESS", ""))
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
        most = int(ray.cluster_resources().get("CPU", 1)) if workers is None else workers
        worker = ray.remote(num_cpus=1)(Worker)
        pool = ActorPool([worker.remote(model, settings) for _ in range(min(most, len(shards)))])
        yield from pool.map(lambda actor, shard: actor.answer.remote(shard), shards)
    except (OSError, ray.exceptions.RayError) as error:
        # of a worker's error its traceback, the error itself last
        said = [type(error).__name__, *str(error).strip().splitlines()]
        raise CtrlgenError(f"ray: {re.sub(r'^[.A-Za-z]+Error: ', '', said[-1])}") from error
    finally:
        ray.shutdown()


def refuse_unreachable(address: str) -> None:
    """Raises OSError where nobody listens at host:port. Ray itself would try for minutes, without a word."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def written(request: Request) -> dict[str, Any]:
    """A request in words, to be parsed again where it is answered."""
    return {
        "controls": [control.text for control in request.controls],
        "n": request.n,
        "seed": request.seed,
        "id": request.id,
        "template": request.template.text if request.template is not None else None,
    }
