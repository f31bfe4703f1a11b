"""A short run of the fuzzer of containers and model packages (tools/fuzz), always the same."""

from __future__ import annotations

import io
import random
import zipfile

import pytest
from containers import packed
from lmfs_tools.fuzz import mutate, parsers


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return parsers.Target(tmp_path_factory.mktemp("fuzz"))


def test_first_inputs(target):
    """They read, whole; and so they do taken apart and put together."""
    outcomes = [target.check(seed) for seed in target.seeds]
    assert outcomes == ["read"] * (len(outcomes) - 2) + ["run"] * 2
    for container in target.containers:
        parts = mutate.take_apart(container)
        assert [p.chunk_size for p in parts]
        assert b"".join(p.pack() for p in parts)
        for part in parts:
            before = part.pack()
            mutate.settle(part, target.search)
            assert part.pack() == before


@pytest.mark.parametrize("seed", range(4))
def test_mutations(target, seed):
    counts = parsers.run(target, seed, 3600, most=40)
    assert counts.get("refused")
    assert counts.get("read") or counts.get("in part"), "checksums are not got past"


def test_a_package_that_cannot_be_inflated_is_mutated(target):
    """The fuzzer's own reader of zips met what it had made itself."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("card.json", bytes(range(256)) * 9)
    data = bytearray(out.getvalue())
    data[60:90] = bytes(30)
    changed = [mutate.mutated_package(bytes(data), random.Random(seed)) for seed in range(20)]
    assert all(changed)


def test_a_short_chunk_without_its_length_is_mutated():
    """An ordinary chunk's only number may become an escape: the fuzzer failed by its own member."""
    data = packed(b"some text " * 20)
    (member,) = mutate.take_apart(data)
    member.frames[0].numbers = [1 << member.bits | member.escape]
    mutate.settle(member, [])
    assert member.decoded_bytes(member.frames[0]) == 0
    assert len(member.pack()) > len(data) // 2


def test_what_breaks_is_kept(target, monkeypatch):
    def broken(data, search):
        raise parsers.Broken("a test")

    monkeypatch.setattr(parsers, "check_container", broken)
    with pytest.raises(parsers.Broken):
        parsers.run(target, 1, 3600, most=5)
    (kept,) = target.folder.glob("broken-*")
    with pytest.raises(parsers.Broken):
        target.check(kept.read_bytes())


def test_a_store(target):
    """Of a store with one thing changed, each command ends with an answer of ours."""
    counts = parsers.run_store(target, random.Random(1), 12)
    assert sum(counts.values()) == 12
