"""Plain articles as pages of a wiki: what a dump or an export of one looks like.

Owns: the markup. What is marked, a link, a heading, a quotation, is guessed from the plain text and
drawn at random, in the style of the page; what the words are, is left as it was. So a model learns
how text goes on around markup, of which there is none in the training text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

# As wiki.txt has them: a line with the title between empty lines, then a paragraph a line.
_TITLE = re.compile(r"\n\n([^\n]{1,100})\n\n")
_NAME = re.compile(
    r"(?<=[a-z,(] )[A-Z][\w'’-]+(?: (?:(?:of|the|de|van|and|for|in) )?[A-Z][\w'’-]+){0,4}"
)
_NOUN = re.compile(r"\b(the|an?|of|in|and|by) ([a-z]{5,12}(?: [a-z]{4,10})?)(?=[ ,.;)])")
_DATE = re.compile(
    r"\b((?:January|February|March|April|May|June|July|August|September|October|November"
    r"|December) \d{1,2}|\d{1,2} (?:January|February|March|April|May|June|July|August"
    r"|September|October|November|December))(,? )(\d{4})\b"
)
_YEAR = re.compile(r"(?<=[ (])1[0-9]{3}(?=[ ,.;)–-])")
_QUOTED = re.compile(r'"([^"\n]{2,60})"')
_SENTENCE_END = re.compile(r"(?<=[a-z)]\.) (?=[A-Z])")
_LANGUAGES = [
    "cs",
    "de",
    "es",
    "fi",
    "fr",
    "he",
    "it",
    "ja",
    "nl",
    "no",
    "pl",
    "pt",
    "ru",
    "sv",
    "zh",
]
_END_HEADINGS = {"see also": "link", "external links": "site", "references": "source"}
_COMMENTS = [
    "fixed typo",
    "/* External links */",
    "/* History */",
    "copyedit",
    "added link",
    "category",
]


def marked_up(text: str, seed: int = 1) -> Iterator[str]:
    """The articles of a text, page by page."""
    rng = random.Random(seed)
    titles = list(_TITLE.finditer(text))
    last_words = (match[1].split()[-1:] for match in titles[:4000])
    people = [word for words in last_words for word in words if word.isalpha()] or ["Smith"]
    for title, behind in zip(titles, [*titles[1:], None], strict=True):
        body = text[title.end() : behind.start() if behind else len(text)]
        yield _Page(rng, title[1], people).written(body.split("\n"))


class _Page:
    def __init__(self, rng: random.Random, title: str, people: list[str]) -> None:
        self.rng, self.title, self.people = rng, title, people
        self.xml = rng.random() < 0.75
        self.since_2010 = rng.random() < 0.4  # of the dump's schema
        self.spaced = rng.random() < 0.5  # "== heading =="
        self.linked = rng.uniform(0.3, 0.9)
        self.nouns = rng.uniform(0.03, 0.25)
        self.dates = rng.choice([0.0, 0.2, 0.9])
        self.sources = rng.choice([0.0, 0.0, 0.1, 0.4])
        self.level = 2
        self.links: list[str] = []

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def written(self, paragraphs: list[str]) -> str:
        text = "\n".join(self._body(paragraphs))
        if not self.xml:
            return text + "\n\n"
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        text = text.replace('"', "&quot;")
        return self._before() + text + self._after()

    def _body(self, paragraphs: list[str]) -> Iterator[str]:
        if self.chance(0.2):
            yield from self._box()
        first, heading = True, ""
        for paragraph in filter(None, map(str.strip, paragraphs)):
            if len(paragraph) < 60 and paragraph.endswith(".") and paragraph.count(".") == 1:
                heading = paragraph[:-1]
                yield ("" if self.chance(0.7) else "\n") + self._heading(heading)
                continue
            marked = self._inline(paragraph)
            if first and marked.startswith(self.title):
                marked = f"'''{self.title}'''" + marked[len(self.title) :]
            first = False
            if len(paragraph) < 160 and heading and self.chance(0.6):
                yield f"*{' ' * self.spaced}{marked}"
            else:
                yield marked + "\n" * (not self.chance(0.03))
        yield from self._end()

    def _heading(self, text: str) -> str:
        self.level = 2 if text.lower() in _END_HEADINGS else self.rng.choice([2, 2, self.level, 3])
        space = " " * self.spaced
        return f"{'=' * self.level}{space}{text}{space}{'=' * self.level}"

    def _inline(self, text: str) -> str:
        text = _DATE.sub(self._date, text)
        text = _YEAR.sub(lambda m: f"[[{m[0]}]]" if self.chance(self.dates) else m[0], text)
        text = _NAME.sub(lambda m: self._link(m[0]) if self.chance(self.linked) else m[0], text)
        text = _NOUN.sub(
            lambda m: f"{m[1]} {self._noun(m[2])}" if self.chance(self.nouns) else m[0], text
        )
        text = _QUOTED.sub(lambda m: f"''{m[1]}''" if self.chance(0.5) else m[0], text)
        if self.sources:
            text = _SENTENCE_END.sub(lambda _: self._source(self.sources), text)
        return text

    def _date(self, match: re.Match[str]) -> str:
        if not self.chance(self.dates):
            return match[0]
        return f"[[{match[1]}]]{match[2]}[[{match[3]}]]"

    def _link(self, name: str) -> str:
        self.links.append(name)
        words = name.split()
        if len(words) == 1 and self.chance(0.2) and self.links[:-1]:
            return f"[[{self.rng.choice(self.links)}|{name}]]"
        if self.chance(0.06):
            kind = self.rng.choice(["film", "band", "city", "album", "novel", "river", "music"])
            return f"[[{name} ({kind})|{name}]]"
        return f"[[{name}]]"

    def _noun(self, noun: str) -> str:
        if noun.endswith("s") and not noun.endswith("ss") and self.chance(0.6):
            return f"[[{noun[:-1]}]]s"
        if self.chance(0.1):
            return f"[[{noun.capitalize()}|{noun}]]"
        return f"[[{noun}]]"

    def _source(self, share: float) -> str:
        if not self.chance(share):
            return " "
        what = self.rng.choice(["web", "news", "book"])
        fields = [f"title={self._words()}", f"last={self.rng.choice(self.people)}"]
        if what == "book":
            fields += [f"year={self.rng.randint(1950, 2012)}", f"page={self.rng.randint(1, 400)}"]
        else:
            fields += [f"url={self._site()}", f"accessdate={self._day(2003, 2012)}"]
        space = " " * self.spaced
        inner = f"{space}|".join(fields)
        return f"<ref>{{{{cite {what}{space}|{inner}}}}}</ref> "

    def _words(self) -> str:
        return self.rng.choice(self.links) if self.links else self.title

    def _site(self) -> str:
        name = re.sub(r"[^a-z]", "", self._words().lower())[:14] or "index"
        path = self.rng.choice(["", "", f"{self.rng.randint(1, 99999)}.html", "about/"])
        end = self.rng.choice(["com", "org", "org", "edu", "net", "co.uk"])
        return f"http://www.{name}.{end}/{path}"

    def _day(self, first: int, last: int) -> str:
        rng = self.rng
        return f"{rng.randint(first, last)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"

    def _box(self) -> Iterator[str]:
        yield f"{{{{Infobox {self.rng.choice(['settlement', 'person', 'album', 'company', 'book'])}"
        for field in self.rng.sample(["image", "country", "type", "location", "genre", "date"], 3):
            yield f"| {field:<12} = {self.rng.choice(self.people)}"
        yield f"| {'name':<12} = {self.title}"
        yield "}}"

    def _end(self) -> Iterator[str]:
        for heading, kind in _END_HEADINGS.items():
            if not self.links or not self.chance(0.4):
                continue
            yield self._heading(heading.capitalize())
            for link in dict.fromkeys(self.rng.choices(self.links, k=self.rng.randint(1, 5))):
                mark = "*" + " " * self.spaced
                if kind == "link":
                    yield f"{mark}[[{link}]]"
                elif kind == "site":
                    yield f"{mark}[{self._site()} {link}]"
                else:
                    name = self.rng.choice(self.people)
                    yield f"{mark}{name}, {name[0]}. ({self.rng.randint(1900, 2012)}). ''{link}''."
            yield ""
        for link in self.links[: self.rng.randint(0, 4)]:
            yield f"[[Category:{link}]]"
        if self.chance(0.4):
            yield ""
            for language in sorted(self.rng.sample(_LANGUAGES, self.rng.randint(1, 6))):
                yield f"[[{language}:{self.title}]]"

    def _before(self) -> str:
        rng = self.rng
        id = rng.randint(10, 30_000_000)
        parts = ["  <page>", f"    <title>{self.title.replace('&', '&amp;')}</title>"]
        parts += ["    <ns>0</ns>"] * self.since_2010
        parts += [f"    <id>{id}</id>", "    <revision>"]
        parts.append(f"      <id>{rng.randint(id, 600_000_000)}</id>")
        parts += [f"      <parentid>{rng.randint(id, 600_000_000)}</parentid>"] * self.since_2010
        day = self._day(2010, 2016) if self.since_2010 else self._day(2002, 2009)
        hour, minute, second = rng.randint(0, 23), rng.randint(0, 59), rng.randint(0, 59)
        parts.append(f"      <timestamp>{day}T{hour:02}:{minute:02}:{second:02}Z</timestamp>")
        parts.append("      <contributor>")
        if self.chance(0.25):
            address = ".".join(str(rng.randint(1, 254)) for _ in range(4))
            parts.append(f"        <ip>{address}</ip>")
        else:
            parts.append(f"        <username>{rng.choice(self.people)}</username>")
            parts.append(f"        <id>{rng.randint(1, 9_000_000)}</id>")
        parts.append("      </contributor>")
        parts += ["      <minor />"] * self.chance(0.3)
        if self.chance(0.6):
            parts.append(f"      <comment>{self._comment()}</comment>")
        if self.since_2010:
            parts += ["      <model>wikitext</model>", "      <format>text/x-wiki</format>"]
        return "\n".join([*parts, '      <text xml:space="preserve">'])

    def _comment(self) -> str:
        return self.rng.choice(_COMMENTS)

    def _after(self) -> str:
        digest = "".join(self.rng.choice("0123456789abcdefghijklmnopqrstuvwxyz") for _ in range(31))
        parts = ["</text>"] + [f"      <sha1>{digest}</sha1>"] * self.since_2010
        return "\n".join([*parts, "    </revision>", "  </page>", ""])
