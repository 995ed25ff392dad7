"""Figures that others published for the same controls, beside those of an evaluation.

Published figures stand here with their source and table; ours come from results only.
"""

from __future__ import annotations

from pathlib import Path

from ctrlgen.evaluation.figures import Row
from ctrlgen.evaluation.report.card import provenance
from ctrlgen.evaluation.report.tables import (
    Cell,
    Line,
    Table,
    card_table,
    markdown_table,
    notes,
    percent,
    share,
)
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.systems import HUMAN
from ctrlgen.files import write_text

SEMANTIC, POS, TREE, SPAN, LENGTH = "semantic content", "parts of speech", "syntax tree", "syntax spans", "length"
TASKS = (SEMANTIC, POS, TREE, SPAN, LENGTH)
COMPOSITIONS = (TREE, POS)  # each with semantic content

# Success in percent, and the perplexity of a GPT-2 fine-tuned on the domain where one is given for the task.
# Li et al. 2022, Table 2; Chen et al. 2023, Table 1; Kim and Do 2025, Table 2.
SINGLE: dict[str, dict[str, tuple[float, float | None]]] = {
    "PPLM": {SEMANTIC: (9.9, 5.32)},
    "FUDGE": {SEMANTIC: (69.9, 2.83), POS: (27.0, 7.96), TREE: (17.9, 3.39), SPAN: (54.2, 4.03), LENGTH: (46.9, 3.11)},
    "Diffusion-LM": {
        SEMANTIC: (81.2, 2.55), POS: (90.0, 5.16), TREE: (86.0, 3.71), SPAN: (93.8, 2.53), LENGTH: (99.9, 2.16),
    },
    "fine-tuned, sampled": {
        SEMANTIC: (72.5, 2.87), POS: (89.5, 4.72), TREE: (64.8, 5.72), SPAN: (26.3, 2.88), LENGTH: (98.1, 3.84),
    },
    "fine-tuned, beam search": {
        SEMANTIC: (89.9, 1.78), POS: (93.0, 3.31), TREE: (76.4, 3.24), SPAN: (54.4, 2.19), LENGTH: (100.0, 1.83),
    },
    "Masked-Diffuse LM": {
        SEMANTIC: (81.9, 2.35), POS: (91.6, 5.03), TREE: (86.6, 3.66), SPAN: (94.7, 2.48), LENGTH: (99.9, 2.13),
    },
    "Masked-Diffuse LM + BERT": {
        SEMANTIC: (82.9, 2.30), POS: (92.9, 4.78), TREE: (89.7, 3.44), SPAN: (95.8, 2.33), LENGTH: (100.0, 2.08),
    },
    "TTA-Diffusion": {TREE: (93.1, None), SPAN: (92.3, None), LENGTH: (100.0, None)},
}  # fmt: skip
# Li et al. 2022, Table 4: success in both controls of a composition.
COMPOSED: dict[str, dict[str, tuple[float, float]]] = {
    "FUDGE": {TREE: (61.7, 15.4), POS: (64.5, 24.1)},
    "Diffusion-LM": {TREE: (69.8, 74.8), POS: (63.7, 69.1)},
    "fine-tuned, product of experts": {TREE: (61.7, 29.2), POS: (29.4, 10.5)},
}

TEMPLATE = """\
# Results beside published ones

Written by `ctrlgen eval --results`; the figures of this project come from that evaluation alone.

## One control

Success in percent, measured as Diffusion-LM does: the value stands in the text (semantic content), words with the right
tag (parts of speech), labelled F1 (syntax tree), spans that are there (syntax spans), at most two words off (length).
Behind the stroke, for published rows, the perplexity of their judge.

{single}
Published rows: Li et al. 2022, *Diffusion-LM Improves Controllable Text Generation*, arXiv 2205.14217, Table 2;
Masked-Diffuse LM from Chen et al. 2023, *A Cheaper and Better Diffusion Language Model with Soft-Masked Noise*,
arXiv 2304.04746, Table 1; TTA-Diffusion from Kim and Do 2025, *Don't Let It Fade: Preserving Edits in Diffusion
Language Models via Token Timestep Allocation*, arXiv 2510.26200, Table 2.
`human` is human text of our targets under our oracles: what success can be expected to reach.

## Two controls at once

Success in semantic content, then in syntax.

{composed}
Published rows: Li et al. 2022, Table 4.

## What may be compared

* **The targets differ.** {targets}
  Of Diffusion-LM's 200 published targets of parts of speech and of spans, 197 are sentences of its training set, and
  their sentences end in a newline token, which no text here has.
* **The oracles of syntax differ.** Our trees are silver: a public PCFG parser's, and the parser that judges learnt from
  them. Theirs are benepar's. Parts of speech are spaCy's in both, by different versions.
* **Fluency cannot be compared.** Their figure is the perplexity of a GPT-2 fine-tuned on the domain, on their targets;
  TTA-Diffusion gives one mean over its tasks, 111.4 by an untuned GPT-2 Large, where it has Diffusion-LM at 248.6.
  Ours is what a text costs above human text of the same targets, in the last table.
* **The means differ.** Diffusion-LM and Masked-Diffuse LM have 80 M parameters and take 200 and 500 steps;
  TTA-Diffusion builds on TESS, a diffusion over the simplex of words, and takes 200; the other methods build on GPT-2.
* Success in length and in semantic content is an exact rule in all; only the targets differ.

## The whole evaluation

{whole}
{notes}{provenance}{command}"""


def write_comparison(results: Results, path: Path) -> None:
    """Our figures beside published ones, as Markdown. Raises CtrlgenError where the file cannot be written."""
    write_text(path, comparison(results))


def comparison(results: Results) -> str:
    command = results.configuration.get("command")
    remarks = notes(results)
    return TEMPLATE.format(
        single=markdown_table(single_table(results)),
        composed=markdown_table(composed_table(results)),
        targets=where_from(results),
        whole=markdown_table(card_table(results)),
        notes="".join(f"{note}\n" for note in remarks) + "\n" if remarks else "",
        provenance=provenance(results),
        command=f"\n    {command}\n" if command else "",
    )


def where_from(results: Results) -> str:
    """Where the targets of this evaluation come from."""
    plan = results.configuration.get("plan", {})
    if plan.get("targets"):
        return f"Ours were read from `{Path(plan['targets']).name}`."
    names = ", ".join(f"`{'/'.join(Path(source).parts[-2:])}`" for source in plan.get("data", ()))
    return f"Ours are taken from held-out texts{f' ({names})' if names else ''}."


def single_table(results: Results) -> Table:
    """A line a system, a column a task."""
    lines = [
        Line((Cell(name), *(published(of.get(task)) for task in TASKS))) for name, of in SINGLE.items()
    ] + [
        Line((Cell(name), *(as_published(task, rows.get(task)) for task in TASKS)))
        for name, rows in our_rows(results, composed=False).items()
    ]  # fmt: skip
    return Table(("system", *TASKS), tuple(lines))


def composed_table(results: Results) -> Table:
    header = tuple(f"{SEMANTIC} + {task}" for task in COMPOSITIONS)
    lines = [
        Line((Cell(name), *(Cell(f"{a:.1f} + {b:.1f}") for a, b in (of[task] for task in COMPOSITIONS))))
        for name, of in COMPOSED.items()
    ] + [
        Line((Cell(name), *(both(rows.get(task)) for task in COMPOSITIONS)))
        for name, rows in our_rows(results, composed=True).items()
    ]  # fmt: skip
    return Table(("system", *header), tuple(lines))


def our_rows(results: Results, composed: bool) -> dict[str, dict[str, Row]]:
    """Rows by method and setting, then by task: the one of the paper's that their controls ask for."""
    found: dict[str, dict[str, Row]] = {}
    for row in results.rows:
        tasks = tasks_of(results, row.suite)
        if composed and len(tasks) == 2 and SEMANTIC in tasks:
            task = next(iter(tasks - {SEMANTIC}))
        elif not composed and len(tasks) == 1:
            task = next(iter(tasks))
        else:
            continue
        name = row.system if row.system == HUMAN else f"**{row.system}** {row.setting}".strip()
        found.setdefault(name, {}).setdefault(task, row)
    return found


def tasks_of(results: Results, suite: str) -> set[str]:
    """The paper's tasks that a suite asks for; none where it asks for anything else as well."""
    tasks = {control.classifier.task for request in results.asked[suite].requests for control in request.controls}
    return {str(task) for task in tasks} if tasks <= set(TASKS) else set()


def published(figures: tuple[float, float | None] | None) -> Cell:
    if figures is None:
        return Cell()
    success, perplexity = figures
    return Cell(f"{success:.1f}" if perplexity is None else f"{success:.1f} / {perplexity:.2f}")


def as_published(task: str, row: Row | None) -> Cell:
    """Our success by the paper's measure of this task."""
    if row is None:
        return Cell()
    if task == SEMANTIC:
        return share(row.also.get("literal"))
    if task == LENGTH:
        return share(next((e for name, e in row.also.items() if name.startswith("within")), None))
    return share(row.also.get("with the newline token", row.parts))


def both(row: Row | None) -> Cell:
    if row is None or row.parts is None or "literal" not in row.also:
        return Cell()
    return Cell(f"{percent(row.also['literal'].mean)} + {percent(row.parts.mean)}")
