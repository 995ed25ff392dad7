"""Single texts with their verdicts, from which every figure is computed.

They are kept in a directory if one is given, so that an evaluation that was interrupted continues, and gives the same
figures.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ctrlgen.controls.classifier import Verdict, all_of
from ctrlgen.controls.language import check
from ctrlgen.errors import UsageError
from ctrlgen.evaluation.systems import HUMAN, Draft, Given, System
from ctrlgen.evaluation.targets import Asked
from ctrlgen.files import append_line, make_directory, read_lines, write_text
from ctrlgen.generation.request import Request
from ctrlgen.text import joining
from ctrlgen.text.joining import detokenize

RECORDS = "samples.jsonl"
CHUNK = 64  # targets that are written between two saves


@dataclass(frozen=True)
class Record:
    """One text with its verdicts."""

    suite: str
    system: str
    setting: str
    seed: int
    target: int
    index: int
    tokens: list[str]
    verdicts: list[Verdict]
    scores: list[float] | None = None
    seconds: float = 0.0  # this text's share of the time, 0 where it is not known
    figures: dict[str, float] = field(default_factory=dict)  # what its suite reports beside verdicts, by name

    @property
    def group(self) -> tuple[str, str, str]:
        return self.suite, self.system, self.setting

    @property
    def success(self) -> bool | None:
        return all_of([verdict.success for verdict in self.verdicts]) if self.verdicts else None

    @property
    def checked(self) -> bool:
        """Whether every oracle could be asked. Texts of which only some could are no measure of success."""
        return bool(self.verdicts) and all(verdict.success is not None for verdict in self.verdicts)

    @property
    def text(self) -> str:
        return detokenize(self.tokens)

    def pieces(self) -> list[tuple[str, str, bool]]:
        """The text as people write it: what stands before each word, the word, and whether it failed a control."""
        failed = {position for verdict in self.verdicts for position in verdict.failed}
        words = joining.write(self.tokens).words()
        return [(space, word, position in failed) for position, (space, word) in enumerate(words)]

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Record:
        verdicts = [Verdict(**v | {"failed": tuple(v["failed"])}) for v in read["verdicts"]]
        return cls(**{**read, "verdicts": verdicts})


Key = tuple[str, str, str, int, int]  # suite, system, setting, seed, first target of the chunk


class Store:
    """Records by chunk, in memory and in a JSON Lines file that a killed run leaves whole but for its last line."""

    def __init__(self, directory: Path | None, configuration: Mapping[str, Any]):
        self.records: list[Record] = []
        self.chunks: dict[Key, list[Record]] = {}
        self.path = None if directory is None else directory / RECORDS
        if self.path is not None:
            make_directory(self.path.parent)
            self.load({key: configuration[key] for key in ("model", "plan", "asked")})

    def load(self, identity: dict[str, Any]) -> None:
        assert self.path is not None
        refuse_another(self.path.parent, identity)
        whole = whole_lines(self.path) or [identity]
        for chunk in whole[1:]:
            key = tuple(chunk["chunk"])
            self.chunks[key] = [Record.from_json(record) for record in chunk["records"]]
        write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole))

    def fill(self, key: Key, asked: Asked, work: Any, every_time: bool = False) -> list[Record]:
        """The records of a chunk: from the file if they are there, else by doing the work.

        An oracle that was missing when they were written is asked again.
        """
        if key in self.chunks and not every_time:
            self.chunks[key] = judged_again(asked.requests, self.chunks[key])
        else:
            self.chunks[key] = work()
            if self.path is not None:
                records = [asdict(record) for record in self.chunks[key]]
                append_line(self.path, json.dumps({"chunk": list(key), "records": records}, ensure_ascii=False))
        self.records += self.chunks[key]
        return self.chunks[key]


def refuse_another(directory: Path, identity: Mapping[str, Any]) -> None:
    """Raises UsageError where the directory holds an evaluation that differs in what `identity` says."""
    held = whole_lines(directory / RECORDS)[:1]
    said = json.loads(json.dumps(identity))
    if held and {key: held[0].get(key) for key in said} != said:
        raise UsageError(f"{directory}: holds another evaluation; choose another --report")


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of records up to one that was not written to its end; none where there is no file."""
    whole = []
    for line in read_lines(path) if path.exists() else []:
        try:
            whole.append(json.loads(line))
        except ValueError:
            break
    return whole


def write(system: System, key: Key, asked: Asked, seconds: float | None) -> list[Record]:
    """One chunk by one system, judged. Sampling seeds move with the evaluation's seed."""
    suite, name, setting, seed, start = key
    requests = [replace(r, seed=r.seed + seed * 1_000_003) for r in asked.requests[start : start + CHUNK]]
    started = time.monotonic()
    drafts = system.write(requests, seconds)
    share = 0.0 if isinstance(system, Given) else (time.monotonic() - started) / max(1, len(drafts))
    return [
        Record(
            suite, name, setting, seed, start + draft.request, draft.index, list(draft.words), list(verdicts),
            list(draft.scores) if draft.scores is not None else None, share,
        )
        for draft, verdicts in zip(drafts, judged(requests, drafts), strict=True)
    ]  # fmt: skip


def human_records(asked: Asked) -> list[Record]:
    """The references of every target, under the same oracles."""
    drafts = [
        Draft(number, index, words)
        for number, target in enumerate(asked.targets)
        for index, words in enumerate(target.references)
    ]
    verdicts = judged(asked.requests, drafts)
    return [
        Record(asked.suite, HUMAN, "", 0, draft.request, draft.index, list(draft.words), list(of_draft))
        for draft, of_draft in zip(drafts, verdicts, strict=True)
    ]


def judged_again(requests: Sequence[Request], records: Sequence[Record]) -> list[Record]:
    """The records, with new verdicts where an oracle could not be asked."""
    open_ones = {n: r for n, r in enumerate(records) if r.verdicts and not r.checked}
    drafts = [Draft(record.target, record.index, tuple(record.tokens)) for record in open_ones.values()]
    verdicts = dict(zip(open_ones, judged(requests, drafts), strict=True))
    return [replace(r, verdicts=list(verdicts[n])) if n in verdicts else r for n, r in enumerate(records)]


def judged(requests: Sequence[Request], drafts: Sequence[Draft]) -> list[tuple[Verdict, ...]]:
    """Every oracle's verdict on every draft; each oracle is asked once about all its texts."""
    verdicts: list[dict[int, Verdict]] = [{} for _ in drafts]
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, draft in enumerate(drafts):
        if draft.verdicts is not None:
            verdicts[number] = dict(enumerate(draft.verdicts))
            continue
        for position, control in enumerate(requests[draft.request].controls):
            groups[position, id(control.classifier)].append(number)
    for (position, _), numbers in groups.items():
        controls = [requests[drafts[number].request].controls[position] for number in numbers]
        for number, verdict in zip(numbers, check(controls, [drafts[n].words for n in numbers]), strict=True):
            verdicts[number][position] = verdict
    for number, draft in enumerate(drafts):
        template = requests[draft.request].template
        if template is not None:
            kept = template.matches(draft.words)
            verdicts[number][len(verdicts[number])] = Verdict(kept, None if kept else "the given words were changed")
    return [tuple(of_draft[position] for position in sorted(of_draft)) for of_draft in verdicts]
