"""The training text: plain text made lines or pages of a wiki, and files of Debian packages."""

from __future__ import annotations

import gzip
import io
import random
import re
import tarfile
import zipfile
from xml.etree import ElementTree

import pytest
from lmfs_tools import corpus, debian_texts
from lmfs_tools.markup import marked_up


def test_wrapped_text_has_the_same_words_in_lines_of_some_styles(tmp_path):
    rng = random.Random(2)
    words = [b"w" * length + b"." * (length == 7) for length in rng.choices(range(1, 12), k=900)]
    paragraphs = [b" ".join(words[k % 800 : k % 800 + k % 90 + 1]).title() for k in range(9000)]
    (tmp_path / "plain").write_bytes(b"\r\n\r\n".join(paragraphs))
    whole = corpus.training_text(tmp_path, "plain wrapped")
    assert whole == corpus.wrapped(corpus.training_text(tmp_path, "plain"))
    assert whole.split() == b" ".join(paragraphs).split()
    lines = whole.splitlines(keepends=True)
    widths = {len(line.rstrip()) for line in lines}
    assert 70 < max(widths) <= 79
    assert {line[len(line.rstrip(b"\r\n")) :] for line in lines} == {b"\n", b"\r\n"}
    for style in (b".  W", b"\n\n", b" \n", b"\n    W"):
        assert 0.005 < whole.count(style) / len(lines) < 0.7


ARTICLE = """\


Title {k}

Title {k} & Sons was a "great" mill in the town of Little Wharf, built by John <Doe> on May 5, 1905.
History.
It stood near the river Ouse until 1931, when the war ended. The owners sold all to Mills in York.
"""


@pytest.fixture(scope="module")
def pages() -> list[str]:
    return list(marked_up("".join(ARTICLE.replace("{k}", str(k)) for k in range(400))))


def test_pages_of_a_wiki_are_a_dump_or_plain_wikitext(pages):
    dumped = [page for page in pages if page.startswith("  <page>")]
    assert len(pages) == 400
    assert 200 < len(dumped) <= 400
    for page in dumped:
        root = ElementTree.fromstring(page)
        assert root.findtext("title", "").startswith("Title ")
        assert "built by John <Doe>" in re.sub(
            r"\[\[(?:[^]|]*\|)?|\]\]", "", root.findtext(".//text")
        )
        assert root.findtext("revision/timestamp", "")[10:11] == "T"


def test_pages_of_a_wiki_have_the_words_of_their_articles(pages):
    """In their order, once the markup is taken off again."""
    words = re.findall(r"\w+", ARTICLE.split("&")[-1])
    for page in pages[:100]:
        text = page.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">")
        text = re.sub(r"<ref>.*?</ref>", " ", text.replace("&amp;", "&"))
        text = re.sub(r"\[\[[^]|]*\|", "", text)
        rest = iter(re.findall(r"\w+", re.sub(r"\[\[|\]\]|'{2,}|=+", "", text)))
        assert all(word in rest for word in words), page


@pytest.mark.parametrize(
    "markup",
    [
        *("'''Title", "[[Little Wharf]]", "[[May 5]], [[1905]]", "==History==", "== History =="),
        *("<ref>{{cite ", "''great''", "&quot;great&quot;", "[[Category:", "{{Infobox "),
    ],
)
def test_pages_of_a_wiki_have_markup(pages, markup):
    """Each kind on some pages at least."""
    texts = [page.replace("&lt;", "<").replace("&gt;", ">") for page in pages]
    assert 4 <= sum(markup in page for page in texts) <= 400


def test_marking_up_is_the_same_every_time(pages):
    text = "".join(ARTICLE.replace("{k}", str(k)) for k in range(400))
    assert list(marked_up(text)) == pages
    assert list(marked_up(text, seed=2)) != pages


def test_files_in_archives_in_packages_are_found():
    def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return out.getvalue()

    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("z.c", "in a zip")
        archive.writestr("z.o", "no")
    inner = tar({"t.c": b"in a tar", "t.py": b"no"}, "w:xz")
    files = {
        "a.c": b"plain",
        "b.py": b"no",
        "linux.tar.xz": inner,
        "lib/src.zip": zipped.getvalue(),
    }
    files["c.el.gz"] = gzip.compress(b"zipped")
    with tarfile.open(fileobj=io.BytesIO(tar(files)), mode="r|") as archive:
        found = dict(debian_texts._members(archive, (".c", ".el.gz")))
    assert found == {"a.c": b"plain", "t.c": b"in a tar", "z.c": b"in a zip", "c.el.gz": b"zipped"}


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        *((b"int i;\n" * 9, True), (b"", False), (b"\0\n", False), (b"x" * 900, False)),
        *((b"a\n" * 150_001, False),),
    ],
)
def test_what_no_person_wrote_is_left_out(data, wanted):
    assert debian_texts._is_wanted(data) == wanted


def test_every_text_has_a_weight():
    assert set(debian_texts.KINDS) <= set(corpus.WEIGHTS)
