"""After how many minutes of training, from nothing, the published figures of Diffusion-LM are passed.

    python benchmarks/time_to_diffusion_lm.py --data e2e/train.jsonl --trees e2e/trees/train.jsonl \\
        --test e2e/test.jsonl --test e2e/trees/test.jsonl --judge ctrlgen/models/e2e/lm [--minutes 10,20,40,80]

For each budget a model is trained from scratch by `ctrlgen train`, as many steps as three quarters of it hold, then its
classifiers by `ctrlgen train-classifier`; `ctrlgen eval` measures it. The first budget that passes ends the run. Prints
a JSON object a line, with the minutes that training took, classifiers and oracles included, which may be more than the
budget. Passed means, on held-out targets (Li et al. 2022, Table 2):

    parts of speech 90.0% of words, syntax tree F1 86.0%, syntax spans 93.8%, semantic content (literal) 81.2%,
    at a mean cost under the domain's language model not above that of human texts of the same targets

The probe of the speed, evaluation and the language model that judges are not counted. Use two cores as
they are, nothing else running.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctrlgen.training.denoising import DataConfig, train
from ctrlgen.training.recipe import read_recipe

PUBLISHED = {"pos": 90.0, "tree": 86.0, "span": 93.8, "field": 81.2}
HEADS = {"pos": 400, "field": 400, "tree": 800}  # training steps
HEAD_SHARE = 0.25  # of the budget, kept for the classifiers
PROBE = 40  # steps that are timed before the first run
JUDGE = "domain LM"


def ctrlgen(*arguments: Any) -> str:
    """Run a command and return what it prints."""
    command = [sys.executable, "-m", "ctrlgen", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def seconds_a_step(recipe: Path, data: Path, directory: Path) -> float:
    """Of training, without the first half of the steps, which compile and warm up."""
    plan = read_recipe(recipe, {"data.train": str(data)})
    training = replace(plan.training, steps=PROBE, log_every=1, validate_every=PROBE, checkpoint_every=PROBE)
    source = DataConfig(**vars(plan.data) | {"validation": None})
    times = [time.perf_counter() for _ in train(replace(plan, training=training, data=source), directory)]
    return (times[PROBE - 2] - times[PROBE // 2 - 1]) / (PROBE - 1 - PROBE // 2)


def train_all(model: Path, options: argparse.Namespace, steps: int) -> float:
    """Train a denoiser and its classifiers; the minutes that it took."""
    started = time.perf_counter()
    held_out = options.validation or options.data  # only to follow the training by
    ctrlgen("train", options.recipe, "--data", options.data, "--validation", held_out, "--steps", steps, "--out", model)
    for kind, of_head in HEADS.items():
        data = options.trees if kind == "tree" else options.data
        labels = ["--label-column", options.meaning] if kind == "field" else []
        ctrlgen("train-classifier", kind, "--model", model, "--data", data, "--steps", of_head, *labels)
    return (time.perf_counter() - started) / 60


def measure(model: Path, options: argparse.Namespace) -> dict[str, float]:
    """Success in percent by the paper's measures, and the mean cost above human text, in nats a word."""
    tests = [part for source in options.test for part in ("--data", source)]
    suites = [part for suite in PUBLISHED for part in ("--suite", suite)]
    lines = ctrlgen("eval", "--model", model, *suites, *tests, "--limit", options.limit, "--json").splitlines()
    rows = {row["suite"]: row for row in map(json.loads, lines) if row["system"] == "ctrlgen"}
    of_suite = {
        "pos": rows["pos"]["parts"], "tree": rows["tree"]["parts"], "span": rows["span"]["success"],
        "field": rows["field"]["also"]["literal"],
    }  # fmt: skip
    found = {suite: 100 * estimate["mean"] for suite, estimate in of_suite.items()}
    return found | {f"{suite} cost above human": rows[suite]["gap"][JUDGE]["mean"] for suite in PUBLISHED}


def passed(found: dict[str, float]) -> bool:
    costs = [found[f"{suite} cost above human"] for suite in PUBLISHED]
    return all(found[suite] > least for suite, least in PUBLISHED.items()) and sum(costs) / len(costs) <= 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("examples/recipes/e2e.toml"))
    parser.add_argument("--data", type=Path, required=True, help="training texts with their meanings")
    parser.add_argument("--validation", type=Path, help="held-out texts, instead of the training texts themselves")
    parser.add_argument("--meaning", default="meaning_representation", help="the column of meanings")
    parser.add_argument("--trees", type=Path, required=True, help="training texts with trees")
    parser.add_argument("--test", type=Path, action="append", required=True, help="held-out texts; repeat for trees")
    parser.add_argument("--minutes", default="10,20,40,80", help="budgets, rising")
    parser.add_argument("--judge", type=Path, help="a language model of the same words; else one is trained")
    parser.add_argument("--limit", type=int, default=50, help="targets of each suite")
    parser.add_argument("--work", type=Path, help="where models are written; a temporary directory by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        step = seconds_a_step(options.recipe, options.data, work / "probe")
        judge: Path | None = options.judge
        for minutes in map(float, options.minutes.split(",")):
            model = work / f"minutes-{minutes:g}"
            steps = max(1, int(60 * minutes * (1 - HEAD_SHARE) / step))
            taken = train_all(model, options, steps)
            if judge is None:
                ctrlgen("train-lm", "--model", model, "--data", options.data)
                judge = model / "lm"
            else:  # the words are the same, so the judge can be
                shutil.copytree(judge, model / "lm")
            found = measure(model, options)
            success = passed(found)
            print(json.dumps({"minutes": taken, "steps": steps, **found, "passed": success}), flush=True)
            if success:
                break


if __name__ == "__main__":
    main()
