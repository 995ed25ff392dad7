"""Controls that no text can obey together are refused before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from ctrlgen.automata.automaton import Automaton, TooLargeError, product
from ctrlgen.controls.filling import Fills
from ctrlgen.controls.language import Control
from ctrlgen.controls.template import Template
from ctrlgen.errors import UsageError


def refuse_contradictions(controls: Sequence[Control], template: Template | None = None) -> None:
    """Raises UsageError naming the first two controls that contradict each other whatever the length.

    A template's own words may contradict a control as well.
    """
    if template is not None:
        for control in controls:
            if not control.complement and not control.classifier.allows_parts(control.target, template.parts):
                raise UsageError(
                    f"{template.text!r} and {control.text!r} contradict each other, whatever fills the blanks"
                )
    for one, other in combinations(controls, 2):
        reason = contradiction(one, other)
        if reason is not None:
            raise UsageError(f"{one.text!r} and {other.text!r} contradict each other: {reason}")


def contradiction(one: Control, other: Control) -> str | None:
    """Why no text can have both, or None."""
    if one.complement != other.complement:
        same = one.classifier.group == other.classifier.group and one.target == other.target
        return "one asks for what the other avoids" if same else None
    if one.complement:
        return None
    return one.classifier.contradiction(one.target, other.classifier, other.target) or other.classifier.contradiction(
        other.target, one.classifier, one.target
    )


def common_automaton(controls: Sequence[Control]) -> Automaton | None:
    """The automaton of the texts that have all those controls that have one, None where no control has.

    Raises UsageError where it would be too large.
    """
    asked = [control for control in controls if not control.complement]
    found = [control.classifier.automaton(control.target) for control in asked]
    automata = tuple(automaton for automaton in found if automaton is not None)
    try:
        return product(automata) if automata else None
    except TooLargeError as error:
        names = ", ".join(repr(c.text) for c, automaton in zip(asked, found, strict=True) if automaton is not None)
        raise UsageError(f"{names} are too much together: their automaton would have {error}") from None


def automata_of(controls: Sequence[Control]) -> tuple[Automaton, ...] | None:
    """The automaton of each control, None where one has none."""
    found = [None if c.complement else c.classifier.automaton(c.target) for c in controls]
    automata = tuple(automaton for automaton in found if automaton is not None)
    return automata if len(automata) == len(controls) else None


def is_impossible(control: Control) -> bool:
    automata = automata_of([control])
    return automata is not None and automata[0].is_empty


def refuse_impossible(controls: Sequence[Control], longest: int, template: Template | None = None) -> None:
    """Raises UsageError naming what no text up to `longest` words can have together."""
    lengths = common_lengths(controls, longest, template)
    refuse_contradictions(controls, template)
    if not accepted_lengths(controls, lengths, template):
        what = ", ".join(repr(c.text) for c in controls) + (f" and {template.text!r}" if template else "")
        raise UsageError(f"no text of {words_between(lengths[0], lengths[-1])} has all of {what}")


def common_lengths(controls: Sequence[Control], longest: int, template: Template | None = None) -> list[int]:
    """The lengths up to `longest` that all controls and the template allow, each for itself.

    Raises UsageError naming those that contradict each other.
    """
    allowed = [(control, lengths_allowed_by(control, longest)) for control in controls]
    for control, lengths in allowed:
        if not lengths and is_impossible(control):
            raise UsageError(f"no text has {control.text!r}")
        if not lengths:
            raise UsageError(f"{control.text!r} asks for a length beyond this model, which writes 1 to {longest} words")
    for (one, of_one), (other, of_other) in combinations(allowed, 2):
        if not of_one & of_other:
            raise UsageError(f"{one.text!r} and {other.text!r} contradict each other: they allow no common length")
    common = set(range(1, longest + 1)).intersection(*(lengths for _, lengths in allowed))
    if not common:
        raise UsageError(f"{', '.join(repr(c.text) for c in controls)} allow no common length")
    if template is not None:
        fitting = template.lengths(longest)
        if common.isdisjoint(fitting):
            raise UsageError(
                f"{template.text!r} takes {words_between(fitting[0], fitting[-1])}, "
                f"which {', '.join(repr(c.text) for c in controls)} does not allow"
            )
        common.intersection_update(fitting)
    return sorted(common)


def accepted_lengths(
    controls: Sequence[Control], lengths: Sequence[int], template: Template | None = None
) -> list[int]:
    """Those of the lengths of which some text is accepted by all automata of the controls and fits the template."""
    automaton = common_automaton(controls)
    if automaton is None:
        return list(lengths)
    fills = Fills(template, automaton) if template is not None else None
    return [n for n in lengths if (fills.count(n) if fills is not None else automaton.accepts_length(n))]


def lengths_allowed_by(control: Control, longest: int) -> set[int]:
    """Lengths up to `longest` that one control allows. A negated one forbids lengths only if it is about length."""
    if control.complement and not control.classifier.structural:
        return set(range(1, longest + 1))
    return {
        n for n in range(1, longest + 1)
        if control.classifier.allows_length(control.target, n) != control.complement
    }  # fmt: skip


def words_between(least: int, most: int) -> str:
    return f"{least} words" if least == most else f"{least} to {most} words"
