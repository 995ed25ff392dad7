"""The language of patterns over words.

    cheap  Cheap        a word is itself, in any case
    *  ...              one word; any number of words (each standing alone)
    (a|b c)             one of several
    (very)* (a|an)? (very)+ pub{2,3}    repetition, attached to what is repeated
    rain~               any inflection of a word
    <NOUN>              a word that may have this tag
    /.*ing/             a word whose characters match this expression as a whole
    \\* \\( \\| ...        the mark itself

`*`, `?` and `+` repeat what ends in a bracket, a slash or a tilde; after a plain word they are marks of the text, as in
`Is it cheap?`. Braces repeat words as well. In a list a comma ends a pattern, unless it stands in quotes or brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ctrlgen.errors import UsageError

GAPS = ("...", "…")
REPETITIONS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
COUNT = re.compile(r"\{(?:(?P<exact>\d{1,6})|(?P<fewest>\d{0,6}),(?P<most>\d{0,6}))\}")
TAG = re.compile(r"<([^\s<>()|~]+)>")
EXPRESSION = re.compile(r"/((?:[^\s/\\]|\\\S)+)/")
QUOTED = re.compile(r'(?:[^"]|"")*+')
MARKS = re.compile(r"[\\()|~{]")
FIRST_MARKS = ("*", "/", "<", '"')  # which mean something only where an item begins
MOST_DEEP = 40  # brackets within brackets
TILDE_BEFORE = ("", " ", ",", "(", ")", "|", "*", "+", "?", "{")  # what may follow a tilde that means inflections
SHOWN = 24  # characters shown on either side of a mistake


@dataclass(frozen=True)
class Word:
    """One word, written in any case."""

    text: str
    at: int = field(compare=False, default=0)  # where it stands in the control's value

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class AnyWord:
    """One word, whichever it is."""


@dataclass(frozen=True)
class Inflected:
    """Any inflection of a word."""

    text: str
    at: int = field(compare=False, default=0)

    def __str__(self) -> str:
        return f"{self.text}~"


@dataclass(frozen=True)
class Tagged:
    """A word that may have this tag."""

    tag: str
    at: int = field(compare=False, default=0)

    def __str__(self) -> str:
        return f"<{self.tag}>"


@dataclass(frozen=True)
class Spelled:
    """A word whose characters match a regular expression as a whole."""

    expression: str
    at: int = field(compare=False, default=0)

    def __str__(self) -> str:
        return f"/{self.expression}/"


@dataclass(frozen=True)
class Chain:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`most` None is any number."""

    part: Node
    fewest: int
    most: int | None


Test = Word | AnyWord | Inflected | Tagged | Spelled
Node = Test | Chain | Choice | Repeat
GAP = Repeat(AnyWord(), 0, None)


@dataclass(frozen=True)
class Pattern:
    """A pattern with its text as written."""

    node: Node
    text: str = field(compare=False)


class Parser:
    """Reads one control's value, from `start` to `stop`. `split` gives the words of a text as the model's."""

    def __init__(
        self, kind: str, text: str, split: Callable[[str], Sequence[str]], start: int = 0, stop: int | None = None
    ):
        self.kind, self.text, self.split = kind, text, split
        self.at, self.stop = start, len(text) if stop is None else stop
        self.listed = self.quoted = False
        self.depth = 0  # of open brackets

    def pattern(self) -> Pattern | None:
        """The whole value as one pattern, which may stand in quotes; None where it is empty. Raises UsageError."""
        if self.text[self.at : self.stop].count('"') == 2 and self.here == self.text[self.stop - 1] == '"':
            self.at, self.stop = self.at + 1, self.stop - 1
        start = self.at
        node = self.choice()
        if self.at < self.stop:
            raise self.error(self.at, f"this bracket closes nothing; write {self.literally()} for the mark itself")
        return None if node is None else Pattern(node, self.text[start : self.stop].strip())

    def patterns(self) -> list[Pattern]:
        """The patterns of a list, separated by commas; empty ones are left out. Raises UsageError."""
        self.listed = True
        found = []
        while self.at < self.stop:
            start = self.at
            node = self.choice()
            if self.at < self.stop and self.here != ",":
                raise self.error(self.at, f"this bracket closes nothing; write {self.literally()} for the mark itself")
            if node is not None:
                found.append(Pattern(node, without_quotes(self.text[start : self.at].strip())))
            self.at += 1
        return found

    @property
    def here(self) -> str:
        return self.text[self.at] if self.at < self.stop else ""

    def literally(self) -> str:
        return f"\\{self.here}"

    def error(self, at: int, message: str) -> UsageError:
        """A mistake, in one line that points at the character."""
        text = "".join(character if character.isprintable() else " " for character in self.text)
        before, after = text[:at], text[at + 1 :]
        before = before if len(before) <= SHOWN else f"... {before[-SHOWN:]}"
        after = after if len(after) <= SHOWN else f"{after[:SHOWN]} ..."
        return UsageError(f"{self.kind}: character {at + 1}: {message}: {before}>{text[at : at + 1]}<{after}")

    def choice(self) -> Node | None:
        """Chains separated by bars. None where nothing stands."""
        options = [self.chain()]
        while self.here == "|":
            if options[-1] is None:
                raise self.error(self.at, "nothing stands before this bar; write (...)? for what may be left out")
            self.at += 1
            options.append(self.chain())
            if options[-1] is None:
                raise self.error(self.at - 1, "nothing stands after this bar; write (...)? for what may be left out")
        nodes = tuple(option for option in options if option is not None)
        return Choice(nodes) if len(nodes) > 1 else nodes[0] if nodes else None

    def chain(self) -> Node | None:
        """Items one after another, up to a bar, a closing bracket, or a comma of the list."""
        parts: list[Node] = []
        opening = self.listed and self.depth == 0 and not self.quoted
        while True:
            while self.here.isspace():
                self.at += 1
            if self.at >= self.stop or self.here in "|)" or self.ends_pattern():
                break
            parts += self.quotation() if opening and not parts and self.here == '"' else self.item()
        return None if not parts else parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def ends_pattern(self) -> bool:
        return self.here == "," and self.listed and self.depth == 0 and not self.quoted

    def quotation(self) -> list[Node]:
        """A pattern in quotes, in which a comma ends nothing and a quotation mark is doubled."""
        closing = QUOTED.match(self.text, self.at + 1, self.stop)
        assert closing is not None  # it matches nothing as well
        inner = Parser(self.kind, self.text, self.split, self.at + 1, closing.end())
        inner.listed = inner.quoted = True
        node = inner.choice()
        if inner.at < inner.stop:
            raise inner.error(inner.at, f"this bracket closes nothing; write {inner.literally()} for the mark itself")
        self.at = min(closing.end() + 1, self.stop)
        return [] if node is None else [node]

    def item(self) -> list[Node]:
        """One item with its repetition, or the words of a run of plain text."""
        start = self.at
        if self.here == "(":
            return [self.repeated(self.group())]
        if self.here == "/" and self.after(1).strip():
            return [self.repeated(self.expression())]
        if tag := TAG.match(self.text, start, self.stop):
            self.at = tag.end()
            return [self.repeated(Tagged(tag[1], start))]
        for gap in GAPS:
            if self.text.startswith(gap, start, self.stop):
                if self.stands_alone(len(gap)):
                    self.at += len(gap)
                    return [GAP]
                if self.after(len(gap)) == "{":
                    message = f"{gap} is any number of words already; write *{{2,3}} for 2 to 3"
                    raise self.error(start + len(gap), message)
        if self.here == "*" and (self.stands_alone(1) or self.after(1) == "{"):
            self.at += 1
            return [self.repeated(AnyWord(), "{")]
        if self.here == "*" and self.after(1) in REPETITIONS and self.stands_alone(2):
            raise self.error(start, f"to repeat any word, write (*){self.after(1)}")
        return self.run()

    def after(self, size: int) -> str:
        """The character so many further on; nothing beyond the end."""
        return self.text[self.at + size] if self.at + size < self.stop else ""

    def stands_alone(self, size: int) -> bool:
        """Whether nothing but space, a bracket, a bar or the list's comma follows so many characters."""
        after = self.after(size)
        return after.isspace() or after in "()|" or (after == "," and self.listed and self.depth == 0)

    def group(self) -> Node:
        start = self.at
        if self.depth == MOST_DEEP:
            raise self.error(start, f"more than {MOST_DEEP} brackets within each other")
        self.at += 1
        self.depth += 1
        node = self.choice()
        if self.here != ")":
            raise self.error(start, "this bracket is not closed; write \\( for the mark itself")
        if node is None:
            raise self.error(start, "nothing stands in these brackets; write \\( and \\) for the marks themselves")
        self.depth -= 1
        self.at += 1
        return node

    def expression(self) -> Node:
        start = self.at
        found = EXPRESSION.match(self.text, start, self.stop)
        if found is None:
            raise self.error(start, "this expression has no slash at its end; write \\/ for the mark itself")
        self.at = found.end()
        return Spelled(found[1].replace("\\/", "/"), start)

    def run(self) -> list[Node]:
        """The words of plain text up to a space or an operator, the last with its inflections or its count."""
        start = self.at
        letters: list[str] = []
        while self.at < self.stop and not self.here.isspace() and self.here not in "()|" and not self.ends_pattern():
            if self.here == "{" and letters:
                break
            if self.here == "~" and letters and self.after(1) in TILDE_BEFORE:
                break
            if self.here == "\\":
                self.at += 1
                if self.at == self.stop:
                    raise self.error(self.at - 1, "nothing stands after this backslash; write it twice for itself")
            elif self.quoted and self.here == '"':
                self.at += 1
            letters.append(self.here)
            self.at += 1
        words: list[Node] = [Word(word, start) for word in self.split("".join(letters))]
        if self.here and self.here in "{~":
            if len(words) != 1:
                raise self.error(self.at, f"{''.join(letters)!r} is {len(words)} words here; put one, or brackets")
            (word,) = words
            if self.here == "{":
                return [self.repeated(word, "{")]
            self.at += 1
            assert isinstance(word, Word)
            return [self.repeated(Inflected(word.text, start))]
        return words

    def repeated(self, node: Node, marks: str = "*+?{") -> Node:
        """The node with the repetition attached to it."""
        mark = self.here
        if not mark or mark not in marks:
            return node
        if mark == "{":
            fewest, most = self.count()
        else:
            fewest, most = REPETITIONS[mark]
            self.at += 1
        if self.here and self.here in "*+?{":
            raise self.error(self.at, "a second repetition; put brackets around the first")
        return Repeat(node, fewest, most)

    def count(self) -> tuple[int, int | None]:
        start = self.at
        found = COUNT.match(self.text, start, self.stop)
        if found is None:
            raise self.error(start, "write a count as {2}, {2,3}, {2,} or {,3}, or \\{ for the mark itself")
        self.at = found.end()
        fewest = int(found["exact"] or found["fewest"] or 0)
        highest = found["exact"] or found["most"]
        most = int(highest) if highest else None
        if most is not None and not fewest <= most > 0:
            raise self.error(start, "the count must rise, to at least 1")
        return fewest, most


def escape(text: str) -> str:
    """The pattern that stands for this text and nothing else."""
    marked = (MARKS.sub(r"\\\g<0>", chunk) for chunk in text.split(" "))
    return " ".join(f"\\{chunk}" if chunk in GAPS or chunk[:1] in FIRST_MARKS else chunk for chunk in marked)


def without_quotes(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', "")
    return text[1:-1].replace('""', '"') if quoted else text
