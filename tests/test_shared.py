"""Frozen files whose chunks follow a text of their store: the format and its readers."""

from __future__ import annotations

import json
import random

import pytest
import reference_mixer as reference
from containers import STORE, packed, reader, recovered

from lmfs import lmz
from lmfs.codecs.choose import Chooser
from lmfs.container import CodecId, Coding, Header, Kind, checksum, parse_header
from lmfs.errors import DamagedError, UsageError, VerifyError, VersionError
from lmfs.lmz import shared
from lmfs.profile import profile_by_number
from lmfs.store.freeze import freeze, thaw
from lmfs.store.marks import State

CHUNK = 300


@pytest.fixture(scope="module")
def texts(data) -> tuple[bytes, bytes]:
    """What is followed, and a file of the same kind."""
    log = (data / "dpkg.log").read_bytes()
    return log[: shared.PIECE_BYTES + 700], log[40_000:43_100]


@pytest.fixture
def folder(tmp_path, tiny, texts):
    """Where the shared primer is, and nothing of it known to this process."""
    shared.forget_states()
    name = shared.file_name(shared.primer_id(texts[0]))
    (tmp_path / name).write_bytes(lmz.compress(texts[0], chooser=Chooser()))
    return tmp_path


@pytest.fixture
def search(folder, tiny):
    return [folder, tiny.path.parent]


def frozen(tiny, texts, search, **options) -> bytes:
    coding = Chooser(tiny, 8).shared_coding(shared.primer_id(texts[0]))
    chooser = Chooser(
        tiny, 8, shared=(coding.shared_id, shared.shared_mixer(coding, search)), **options
    )
    return packed(texts[1], CHUNK, chooser=chooser, store_id=STORE)


@pytest.mark.parametrize("own", [0, 4 * CHUNK, 100_000])
def test_chunks_in_any_order(tiny, texts, search, own):
    container = frozen(tiny, texts, search, primer_bytes=own)
    chunks = [texts[1][at : at + CHUNK] for at in range(0, len(texts[1]), CHUNK)]
    order = list(range(len(chunks)))
    random.Random(own).shuffle(order)
    shared.forget_states()
    with reader(container, store_id=STORE, model_search=search, cache=lmz.ChunkCache(0)) as whole:
        assert any(c.shared_id for c in whole.members[0].codings)
        assert [whole.read_chunks([i])[0] for i in order] == [chunks[i] for i in order]
        whole.verify()
    for cut in (container, container[:-60]):
        found = recovered(cut, model_search=search)
        assert b"".join(part.data for part in found) == texts[1]


def test_it_is_smaller(tiny, texts, search):
    alone = packed(texts[1], CHUNK, chooser=Chooser(tiny, 8), store_id=STORE)
    assert len(frozen(tiny, texts, search)) < 0.8 * len(alone)


def test_the_first_blob_is_the_references(tiny, texts, search):
    tokens = tiny.tokenizer()
    spellings = [bytes.fromhex(t) for t in json.loads(tokens.to_json())["tokens"]]
    text, chunk = texts[0][:500], texts[1][:120]
    name = shared.file_name(shared.primer_id(text))
    (search[0] / name).write_bytes(lmz.compress(text, chooser=Chooser()))
    coding = Coding(CodecId.MIX, tiny.id, profile_by_number(2).id, shared_id=shared.primer_id(text))
    mixer = reference.Mixer(profile_by_number(2).mixer_data, spellings)
    mixer.prime(text, shared.PIECE_BYTES)
    assert shared.shared_mixer(coding, search).copy().encode(chunk) == mixer.encode(chunk)


@pytest.mark.parametrize("harm", ["missing", "flipped", "another text", "a link"])
def test_without_its_primer_a_chunk_is_refused_and_others_read(tiny, texts, search, folder, harm):
    noise = random.Random(3).randbytes(CHUNK)
    container = frozen(tiny, (texts[0], noise + texts[1]), search)
    shared.forget_states()
    path = folder / shared.file_name(shared.primer_id(texts[0]))
    stored = path.read_bytes()
    path.unlink()
    if harm == "flipped":
        path.write_bytes(stored[:200] + bytes([stored[200] ^ 1]) + stored[201:])
    elif harm == "another text":
        path.write_bytes(lmz.compress(texts[1], chooser=Chooser()))
    elif harm == "a link":
        (folder / "elsewhere").write_bytes(stored)
        path.symlink_to("elsewhere")
    with reader(container, store_id=STORE, model_search=search) as whole:
        layout, codings = whole.members[0].layout, whole.members[0].codings
        for i, number in enumerate(layout.codings.tolist()):
            if codings[number].shared_id is None:
                whole.read_chunks([i])
            else:
                with pytest.raises(DamagedError, match=path.stem):
                    whole.read_chunks([i])
        assert whole.read_chunks([0]) == [noise]
        path.unlink(missing_ok=True)
        path.write_bytes(stored)
        whole.verify()


def test_headers(tiny):
    ids = tiny.id, profile_by_number(2).id
    one, two = b"\1" * 16, b"\2" * 16
    codings = (
        Coding(CodecId.MIX, *ids, 0, one),
        Coding(CodecId.LM, *ids, 5, one),
        Coding(CodecId.LM, *ids),
    )
    header = Header(Kind.FROZEN, 100, codings, STORE)
    assert parse_header(header.pack()) == header
    for wrong in (
        (Coding(CodecId.MIX, *ids, 0, one), Coding(CodecId.LM, *ids, 0, two)),
        (Coding(CodecId.MIX, *ids, 5, one), Coding(CodecId.LM, *ids, 5)),
        (Coding(CodecId.MIX, *ids, 0, one[:5]),),
        (Coding(CodecId.ZSTD, None, None, 0, one),),
    ):
        with pytest.raises(UsageError):
            Header(Kind.FROZEN, 100, wrong, STORE)
    with pytest.raises(UsageError):
        Header(Kind.ARCHIVE, 100, codings)


def test_an_archive_with_a_shared_primer_is_of_a_later_version(tiny):
    header = Header(
        Kind.FROZEN, 100, (Coding(CodecId.MIX, tiny.id, profile_by_number(2).id, 0, STORE),), STORE
    )
    data = bytearray(header.pack()[: -4 - 18])  # without the store's record
    data[:8] = Kind.ARCHIVE.value
    data[12:16] = (len(data) + 4).to_bytes(4, "little")
    data += checksum(bytes(data)).to_bytes(4, "little")
    with pytest.raises(VersionError, match="shared primer"):
        parse_header(bytes(data))


def in_store(backing, tiny, texts, search) -> None:
    """A file of a store that follows a text; the text is not there yet."""
    backing.write("log", texts[1] * 3)
    shared_id = shared.primer_id(texts[0])
    chooser = Chooser(tiny, 4)
    mixer = shared.shared_mixer(chooser.shared_coding(shared_id), search)
    chooser = chooser.following((shared_id, mixer))
    freeze(backing.marks, "log", chooser, model=tiny, chunk_size=CHUNK)


def test_nothing_is_published_whose_primer_is_not_in_the_store(backing, tiny, texts, search):
    """Though this process has the state behind it."""
    with pytest.raises(VerifyError, match="shared primer"):
        in_store(backing, tiny, texts, search)
    assert (backing.path / "log").read_bytes() == texts[1] * 3
    assert backing.leftovers() == []


def test_a_store_reads_what_follows_its_primer(backing, tiny, texts, search, folder):
    name = shared.file_name(shared.primer_id(texts[0]))
    backing.store.primers.mkdir()
    kept = backing.path / ".lmfs" / "primers" / name
    kept.write_bytes((folder / name).read_bytes())
    in_store(backing, tiny, texts, search)
    assert backing.facts("log").state is State.FROZEN
    kept.rename(folder / "aside")
    shared.forget_states()
    with pytest.raises(DamagedError, match=kept.stem):
        thaw(backing.marks, "log")
    assert backing.facts("log").state is State.FROZEN
    (folder / "aside").rename(kept)
    thaw(backing.marks, "log")
    assert (backing.path / "log").read_bytes() == texts[1] * 3
