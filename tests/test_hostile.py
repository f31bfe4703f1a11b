"""Files, packages and stores made to do harm: refused, in bounded time and memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from backing import CHUNK, text
from containers import CHEAP, packed, reader, sample
from lmfs_tools.fuzz import mutate

import lmfs
from lmfs import layout, lmz
from lmfs.container import CodecId, Coding, Header, Kind, pack_varint
from lmfs.errors import (
    DamagedError,
    FormatError,
    LmfsError,
    ModelError,
    MountError,
    StoreError,
    UsageError,
)
from lmfs.lmz import members, recovery, source
from lmfs.lmz.inspect import Inspection
from lmfs.models import package as package_module
from lmfs.models import registry
from lmfs.models.package import ModelPackage
from lmfs.models.verify import verify
from lmfs.models.weights import read_weights
from lmfs.store.control import Control, ControlServer, Mount
from lmfs.store.locate import locate
from lmfs.store.marks import Marks, State
from lmfs.store.store import Store
from lmfs.tokenizer import Tokenizer

DATA = text(20 * CHUNK + 5)
MEMORY_BOUND = 2 << 30  # FORMAT.md, "Limits"


def limited(code: str, *args: object, seconds: float = 300, memory: int = MEMORY_BOUND):
    """Run Python with so many bytes of addresses; it must end in time."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))\n"
    environment = os.environ | dict.fromkeys(
        ("LMFS_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"
    )
    command = [sys.executable, "-c", limit + code, *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# Every way to read one; an error of ours is an answer.
READ = """
import sys
from lmfs import lmz
from lmfs.errors import LmfsError
from lmfs.lmz import members, recovery, source
from lmfs.lmz.inspect import Inspection

def attempt(read):
    try:
        read()
    except LmfsError as error:
        print(type(error).__name__, str(error)[:200])

def stream():
    with open(sys.argv[1], "rb") as file:
        for chunk in lmz.stream_decode(file):
            pass

def random():
    with lmz.LmzReader(sys.argv[1]) as reader:
        print(reader.size, len(reader.pread(100, 0)), len(reader.pread(100, reader.size // 2)))
        if reader.size < 1 << 26:
            reader.verify()

def inspect():
    with Inspection(sys.argv[1]) as found:
        print(len(found.problems), sum(1 for _ in found.frames()))

def recover():
    print(sum(1 for _ in lmz.recover(sys.argv[1])))

for read in (stream, random, inspect, recover):
    attempt(read)
"""


def member(frames, *, chunk_size=64, **more):
    """Parts of a member with these frames: (coding, decoded size, blob)."""
    codings = (Coding(CodecId.RAW), Coding(CodecId.ZSTD))
    header = Header(Kind.ARCHIVE, chunk_size, codings)
    (framed,) = mutate.take_apart(packed(b"", chunk_size, chooser=CHEAP))
    framed.records = [(1, bytes([coding.codec, 0])) for coding in codings]
    framed.bits, framed.chunk_size = header.coding_bits, chunk_size
    for coding, size, blob in frames:
        numbers = [len(blob) << framed.bits | coding]
        if size != chunk_size:
            numbers = [1 << framed.bits | framed.escape, size, *numbers]
        framed.frames.append(mutate.FrameParts(numbers, 0, blob))
    framed.wrong.update(more)
    return framed


class TestBombs:
    def test_a_blob_that_claims_gigabytes(self):
        """The largest chunk there may be out of few bytes; and one byte more than that."""
        blob = lmfs.zstd_blob.compress(bytes(1 << 24), 19)
        assert len(blob) < 2000
        parts = member([(1, 1 << 24, blob)] * 50, chunk_size=1 << 24)
        container = parts.pack()
        with reader(container, cache=lmz.ChunkCache(0)) as bomb:
            assert bomb.size == 50 << 24
        for claimed in ((1 << 24) + 1, 1 << 31):
            parts.chunk_size = claimed
            with pytest.raises(DamagedError, match="chunk size"):
                reader(parts.pack())

    def test_it_is_read_in_bounded_memory(self, tmp_path):
        blob = lmfs.zstd_blob.compress(bytes(1 << 24), 19)
        parts = member([(1, 1 << 24, blob)] * 4, chunk_size=1 << 24)
        (tmp_path / "bomb.lmz").write_bytes(parts.pack())
        limited(READ, tmp_path / "bomb.lmz", memory=1 << 30)

    def test_a_window_larger_than_the_chunk(self):
        blob = bytearray(lmfs.zstd_blob.compress(b"x" * 1000, 3))
        blob[0] = 20 << 3  # a gigabyte
        with pytest.raises(DamagedError, match="window"):
            lmfs.zstd_blob.decompress(bytes(blob), 1000)

    @pytest.mark.parametrize("claimed", [1 << 27, 1 << 40, 1 << 60, (1 << 63) - 1])
    def test_an_index_that_claims_to_be_large(self, claimed):
        (parts,) = mutate.take_apart(packed(sample(3000)))
        for name in ("body", "stored body", "index bytes", "member", "size"):
            parts.wrong = {name: claimed}
            container = parts.pack()
            for read in (reader, lmz.decompress):
                with pytest.raises(LmfsError):
                    read(container).verify()

    def test_a_frozen_file_that_claims_more_than_a_file_can_have(self, backing):
        """Its size is told from the trailer alone: as a signed number it would be negative."""
        whole = packed(b"x" * 1000, store_id=backing.store.id)
        (parts,) = mutate.take_apart(whole)
        backing.write("f", whole)
        assert backing.facts("f").size == 1000
        parts.wrong = {"size": (1 << 63) + 5}
        backing.write("f", parts.pack())
        facts = backing.facts("f")
        assert facts.state is State.DAMAGED
        assert facts.size < 1 << 63

    def test_a_sparse_file_with_an_index_of_a_terabyte(self, tmp_path):
        """Takes no room on the disk, and would take it all in memory."""
        path = tmp_path / "sparse.lmz"
        whole = packed(sample(3000))
        (parts,) = mutate.take_apart(whole)
        size = 1 << 40
        parts.wrong = {"member": size, "index bytes": size - 1000}
        with open(path, "wb") as file:
            file.write(whole[:200])
            file.seek(size - 40)
            file.write(parts.pack()[-40:])
        with pytest.raises(DamagedError, match="index length"):
            lmz.LmzReader(path)
        with Inspection(path) as found:
            assert "index length" in found.problems[0].what

    def test_an_index_of_more_chunks_than_fit_in_memory(self, tmp_path):
        """A few kilobytes of index stand for as many frame heads as the frames have bytes."""
        path = tmp_path / "heads.lmz"
        header = Header(Kind.ARCHIVE, 1, (Coding(CodecId.RAW),))
        heads = pack_varint(1 << 1) * (layout.MAX_HEAD_NUMBERS + 1)
        section = layout.pack_index(header, heads, bytes(32))
        assert len(section) < 20_000
        packed_header = header.pack()
        end = len(packed_header) + 6 * (layout.MAX_HEAD_NUMBERS + 1)
        trailer = lmfs.container.Trailer(
            *(Kind.ARCHIVE, end + len(section) + 40, layout.MAX_HEAD_NUMBERS + 1, len(section)),
            int.from_bytes(packed_header[-4:], "little"),
        )
        with open(path, "wb") as file:
            file.write(packed_header)
            file.seek(end)
            file.write(section + trailer.pack())
        with pytest.raises(DamagedError, match="varints"):
            lmz.LmzReader(path)

    def test_the_largest_index_there_may_be(self, tmp_path):
        """Within the bound on memory; a chunk of one byte costs 6 bytes in the file."""
        path = tmp_path / "most.lmz"
        count = layout.MAX_HEAD_NUMBERS
        header = Header(Kind.ARCHIVE, 1, (Coding(CodecId.RAW),))
        section = layout.pack_index(header, pack_varint(1 << 1) * count, bytes(32))
        packed_header = header.pack()
        end = len(packed_header) + 6 * count
        trailer = lmfs.container.Trailer(
            *(Kind.ARCHIVE, end + len(section) + 40, count, len(section)),
            int.from_bytes(packed_header[-4:], "little"),
        )
        with open(path, "wb") as file:
            file.write(packed_header)
            file.seek(end)
            file.write(section + trailer.pack())
        code = "import sys; from lmfs import lmz; print(lmz.LmzReader(sys.argv[1]).chunk_count)"
        assert int(limited(code, path)) == count

    def test_more_members_or_chunks_than_a_reader_remembers(self, monkeypatch):
        one = packed(b"x" * 640)
        monkeypatch.setattr(members, "MAX_MEMBERS", 3)
        assert reader(one * 3).size == 3 * 640
        with pytest.raises(DamagedError, match="lmz -dc"):
            reader(one * 4)
        with Inspection(io.BytesIO(one * 4)) as found:
            assert found.problems
        assert lmz.decompress(one * 4) == b"x" * 4 * 640
        monkeypatch.setattr(members, "MAX_CHUNKS", 25)
        assert reader(one * 2).chunk_count == 20
        with pytest.raises(DamagedError):
            reader(one * 3)

    def test_a_stream_of_frames_without_end(self, monkeypatch):
        """Heads are remembered until the index comes, which need not come."""
        for module in (layout, sys.modules["lmfs.lmz.stream"]):
            monkeypatch.setattr(module, "MAX_HEAD_NUMBERS", 100)
        assert len(lmz.decompress(packed(b"x" * 6400))) == 6400
        with pytest.raises(DamagedError, match="too many frames"):
            lmz.decompress(packed(b"x" * 6464))

    def test_a_writer_keeps_to_it(self, monkeypatch):
        monkeypatch.setattr("lmfs.lmz.writer.MAX_HEAD_NUMBERS", 100)
        packed(b"x" * 6400)
        with pytest.raises(UsageError, match="larger chunks"):
            packed(b"x" * 6464)

    def test_a_section_larger_than_memory(self, tmp_path):
        """It is skipped, and compared with its checksum, in pieces."""
        path = tmp_path / "section.lmz"
        size = 1 << 30
        (parts,) = mutate.take_apart(packed(b"lmz\n"))
        number = 2 << parts.bits | parts.escape
        parts.frames.append(mutate.FrameParts([number, size], 1, b""))
        parts.wrong = {"member": len(parts.pack()) + size}
        container = parts.pack()
        frames_end = container.index(pack_varint(size)) + len(pack_varint(size)) + 4
        with open(path, "wb") as file:
            file.write(container[:frames_end])
            file.seek(frames_end + size)
            file.write(container[frames_end:])
        out = limited(READ, path, memory=1 << 30)
        assert "section of type 2" in out

    def test_ahead_is_bounded_by_the_largest_chunk(self):
        """Not by the one that is read, which may be a short one among giants."""
        blob = lmfs.zstd_blob.compress(bytes(1 << 20), 19)
        parts = member([(0, 1, b"x")] * 3 + [(1, 1 << 20, blob)] * 40, chunk_size=1 << 20)
        mutate.settle(parts, [])
        with reader(parts.pack(), cache=lmz.ChunkCache(1 << 20)) as bomb:
            begun = []
            bomb._chunks.decode = lambda indices, old=bomb._chunks.decode: (
                begun.extend(indices) or old(indices)
            )
            for at in range(3):
                bomb.pread(1, at)
        assert set(begun) == {0, 1, 2}


class TestRecoveryIsLinear:
    """A search tries what may be a frame; a file can be made so that every place may be one."""

    @pytest.mark.parametrize("kind", ["index", "section", "raw", "zstd", "magic"])
    def test_every_place_is_plausible(self, monkeypatch, kind):
        monkeypatch.setattr(recovery, "_TRIAL_BYTES", 1 << 24)
        monkeypatch.setattr(recovery, "_TRIALS_A_BYTE", 64)
        codings = (Coding(CodecId.ZSTD if kind == "zstd" else CodecId.RAW),)
        size = 1 << 14 if kind in ("raw", "zstd") else 64
        header = Header(Kind.ARCHIVE, size, codings).pack()
        unit = {
            # Flags and hash of an index, then a body up to the middle of the file.
            "index": bytes([1, 0]) + bytes([1, 0] * 16) + pack_varint(1 << 15),
            "section": pack_varint(2 << 1 | 1) + pack_varint(1 << 15),
            "raw": pack_varint(size << 1),
            "zstd": pack_varint((size - 1) << 1),
            "magic": header[:12] + (1 << 15).to_bytes(4, "little") + bytes(8),
        }[kind]
        container = header + unit * ((1 << 16) // len(unit))
        read = 0
        pread = source.FileSource.pread

        def counted(self, size, offset):
            nonlocal read
            read += size
            assert read < 1 << 27, "as many bytes as for a file of gigabytes"
            return pread(self, size, offset)

        monkeypatch.setattr(source.FileSource, "pread", counted)
        assert list(lmz.recover(io.BytesIO(container)))
        assert read


class TestPlaces:
    def test_frames_outside_or_over_each_other(self):
        """The index alone says where frames are: it must fill the member exactly."""
        (parts,) = mutate.take_apart(packed(sample(600)))
        numbers = [list(frame.numbers) for frame in parts.frames]
        for change in (-1, 1, 1 << 20, 1 << 40):
            heads = [n for frame in numbers for n in frame]
            heads[0] = max(0, heads[0] + (change << parts.bits))
            parts.body = b"".join(map(pack_varint, heads))
            with pytest.raises(DamagedError):
                reader(parts.pack())

    def test_a_fifo_is_not_waited_for(self, tmp_path, run, tiny):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        with pytest.raises(OSError, match="seek"):
            lmz.LmzReader(fifo)
        with pytest.raises(ModelError, match="regular file"):
            ModelPackage.load(fifo)
        assert run("recover", fifo, "-o", tmp_path / "out")[0] == 1
        assert run("model", "verify", fifo)[0] == 7

    def test_devices_and_directories(self, tmp_path):
        with pytest.raises(FormatError):
            lmz.LmzReader("/dev/zero")
        with pytest.raises(OSError, match="directory"):
            lmz.LmzReader(tmp_path)

    def test_recovery_writes_only_where_it_was_told(self, tmp_path, run):
        """Nothing in a container names a file; what exists, a symlink too, is left alone."""
        (tmp_path / "f.lmz").write_bytes(packed(sample(3000))[:-1])
        target = tmp_path / "target"
        os.symlink(target, tmp_path / "link")
        assert run("recover", tmp_path / "f.lmz", "-o", tmp_path / "link")[0] == 1
        assert not target.exists()

    def test_nothing_hostile_reaches_the_terminal(self, backing, run):
        backing.write_frozen("a\x1b[31m\n", DATA)
        os.truncate(backing.path / "a\x1b[31m\n", 99)
        for command in ("fsck", "repair", "thaw"):
            _, out, err = run(command, backing.path)
            assert "\x1b" not in out + err, command
            assert "a\\x1b[31m\\n" in out + err, command


# --------------------------------------------------------------------------- model packages


def rezipped(path, tmp_path, change, compression=zipfile.ZIP_DEFLATED):
    """The package with its parts (a list of names and bytes) changed."""
    with zipfile.ZipFile(path) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    parts = change(parts) or parts
    out = tmp_path / "changed.lmm"
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in parts:
            archive.writestr(name, data)
    return out


def with_part(name, data):
    def change(parts):
        return [(n, data if n == name else d) for n, d in parts]

    return change


class TestPackages:
    @pytest.mark.parametrize("part", ["card.json", "tokenizer.json", "weights.onnx", "golden.npz"])
    def test_a_zip_bomb(self, tiny, tmp_path, part):
        bomb = bytes(package_module.MAX_BYTES[part] + 1)
        path = rezipped(tiny.path, tmp_path, with_part(part, bomb))
        assert path.stat().st_size < 1 << 20
        with pytest.raises(ModelError, match="too large a part"):
            ModelPackage.load(path).golden()

    def test_a_graph_bomb(self, tiny, tmp_path):
        bomb = bytes(package_module.MAX_GRAPH_BYTES + 1)
        path = rezipped(tiny.path, tmp_path, with_part("graph/step-uint8.onnx", bomb))
        with pytest.raises(ModelError, match="too large a part"):
            ModelPackage.load(path).graph("step-uint8")

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_a_part_that_is_longer_than_it_says(self, tmp_path, method):
        """It is inflated as far as it says, and refused."""
        path = tmp_path / "x.lmm"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("card.json", bytes(32 << 20))
        size = (32 << 20).to_bytes(4, "little")
        data = path.read_bytes().replace(size, (1000).to_bytes(4, "little"))
        path.write_bytes(data)
        with pytest.raises(ModelError, match="not a model package"):
            ModelPackage.load(path)
        archive = package_module._Zip(data)
        tracemalloc.start()
        with pytest.raises(zipfile.BadZipFile):
            archive.part(archive.getinfo("card.json"))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 4 << 20

    def test_a_directory_of_very_many_parts(self, tiny, tmp_path):
        path = rezipped(tiny.path, tmp_path, lambda p: p + [(f"x{i}", b"") for i in range(2000)])
        with pytest.raises(ModelError, match="too many parts"):
            ModelPackage.load(path)

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_parts_of_one_name(self, tiny, tmp_path):
        path = rezipped(tiny.path, tmp_path, lambda p: [*p, p[2]])
        with pytest.raises(ModelError, match="two parts of one name"):
            ModelPackage.load(path)

    def test_names_that_lead_elsewhere_lead_nowhere(self, tiny, tmp_path):
        names = ["/etc/lmfs-test", "../lmfs-test", "graph/../../lmfs-test.onnx"]
        path = rezipped(tiny.path, tmp_path, lambda p: p + [(name, b"x") for name in names])
        before = sorted(tmp_path.rglob("*"))
        package = ModelPackage.load(path)
        assert package.id == tiny.id
        package.graph_names()
        assert sorted(tmp_path.rglob("*")) == before
        assert not os.path.exists("/etc/lmfs-test")

    @pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    def test_other_compression_is_refused(self, tiny, tmp_path, compression):
        """Its dictionary may be gigabytes."""
        path = rezipped(tiny.path, tmp_path, lambda p: p, compression)
        with pytest.raises(ModelError, match="stored or deflated"):
            ModelPackage.load(path)

    @pytest.mark.parametrize("size", [0, 1, 22, 1000, 174000])
    def test_cut_off(self, tiny, tmp_path, size):
        path = tmp_path / "cut.lmm"
        path.write_bytes(tiny.path.read_bytes()[:size])
        with pytest.raises(ModelError, match="not a model package"):
            ModelPackage.load(path)

    @pytest.mark.parametrize("way", range(3))
    def test_offsets_before_the_beginning(self, tiny, tmp_path, way):
        stored = bytearray(tiny.path.read_bytes())
        end = stored.rindex(b"PK\5\6")
        place, value = ((12, 0xFFFF), (16, 0xFFFFFFF0), (16, 0))[way]
        stored[end + place : end + place + 4] = value.to_bytes(4, "little")
        path = tmp_path / "offsets.lmm"
        path.write_bytes(stored)
        with pytest.raises(ModelError):
            ModelPackage.load(path).golden()

    @pytest.mark.parametrize("part", ["card.json", "tokenizer.json"])
    def test_nested_json(self, tiny, tmp_path, part):
        path = rezipped(tiny.path, tmp_path, with_part(part, b"[" * 200_000))
        with pytest.raises(ModelError):
            ModelPackage.load(path).tokenizer()

    def test_a_token_of_many_bytes(self):
        """Tokenizing would take as many steps for every byte."""
        tokens = sorted([bytes([i]) for i in range(256)] + [b"a" * 256])
        good = json.dumps({"tokens": [token.hex() for token in tokens]}).encode()
        assert len(Tokenizer.from_json(good)) == 257
        tokens = sorted([*tokens, b"a" * 257])
        with pytest.raises(ModelError, match="256 bytes"):
            Tokenizer.from_json(json.dumps({"tokens": [t.hex() for t in tokens]}).encode())

    def test_pickles_are_not_loaded(self, tiny, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "evil"),)

        out = io.BytesIO()
        np.savez(out, tokens=np.array([Evil()], object), logits=np.zeros(1), every=1)
        path = rezipped(tiny.path, tmp_path, with_part("golden.npz", out.getvalue()))
        with pytest.raises(ModelError, match="golden"):
            verify(path)
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize("way", ["claimed", "inflated", "lanes", "every"])
    def test_golden_vectors_larger_than_memory(self, tiny, tmp_path, way):
        out = io.BytesIO()
        tokens, logits, every = np.zeros((4, 8), np.int64), np.zeros((4, 8, 512), np.int16), 1
        if way == "lanes":
            tokens = np.zeros((1, 1 << 21), np.int64)
        if way == "every":
            every = 0
        np.savez_compressed(out, tokens=tokens, logits=logits, every=every)
        data = out.getvalue()
        if way in ("claimed", "inflated"):
            shape = "(1099511627776,)" if way == "claimed" else "(8,)"
            head = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117)
            npy = b"\x93NUMPY\1\0" + (118).to_bytes(2, "little") + head.encode() + b"\n"
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("tokens.npy", npy + bytes(100 << 20 if way == "inflated" else 64))
            data = out.getvalue()
        path = rezipped(tiny.path, tmp_path, with_part("golden.npz", data))
        with pytest.raises(ModelError, match="golden"):
            verify(path)

    @pytest.mark.parametrize(
        "tensor",
        [
            b"\x08" + b"\xff" * 9 + b"\x01",  # a dimension of 2^64 - 1
            b"\x08\x01" * 100,  # a hundred dimensions
            b"\x0a\x64" + b"\x01" * 100,
            b"\x08\x00",
        ],
    )
    def test_shapes_that_cannot_be(self, tensor):
        message = tensor + b"\x10\x03\x42\x01x\x4a\x01\x00"
        graph = b"\x2a" + pack_varint(len(message)) + message
        with pytest.raises(ModelError):
            read_weights(b"\x3a" + pack_varint(len(graph)) + graph)

    def test_a_symlink_in_a_folder_of_a_store_is_not_followed(self, tiny, tmp_path):
        folder, outside = tmp_path / "models", tmp_path / "outside.lmm"
        folder.mkdir()
        outside.write_bytes(tiny.path.read_bytes())
        os.symlink(outside, folder / registry.file_name(tiny))
        with pytest.raises(LmfsError, match="not here"):
            registry.find(tiny.id, [folder])

    def test_engines_are_not_kept_without_end(self, monkeypatch):
        from lmfs import engines

        class Fake:
            def __init__(self, number):
                self.id = bytes([number])

        kept = type(engines._engines)()
        monkeypatch.setattr(engines, "_engines", kept)
        monkeypatch.setattr(engines, "_make", lambda package: package.id)
        for number in range(20):
            assert engines.engine_for(Fake(number)) == bytes([number])
        assert len(kept) <= 8


class TestGraphs:
    @pytest.fixture
    def graph(self, tiny):
        onnx = pytest.importorskip("onnx")
        return onnx, onnx.ModelProto.FromString(tiny.graph("step-uint8"))

    def refused(self, model, match):
        from lmfs.models import certificate

        with pytest.raises(ModelError, match=match):
            certificate.prove(model.SerializeToString())

    def test_custom_operators(self, graph):
        onnx, model = graph
        model.opset_import.append(onnx.helper.make_opsetid("com.evil", 1))
        self.refused(model, "custom operators")

    def test_operators_of_another_domain(self, graph):
        _, model = graph
        model.graph.node[3].domain = "com.evil"
        self.refused(model, "operator that is not exact")

    @pytest.mark.parametrize("operator", ["Constant", "If", "Loop", "PyOp", "Einsum"])
    def test_operators_that_are_not_known(self, graph, operator):
        _, model = graph
        model.graph.node[3].op_type = operator
        self.refused(model, "operator that is not exact")

    def test_functions(self, graph):
        onnx, model = graph
        model.functions.append(onnx.FunctionProto(name="f", domain="x"))
        self.refused(model, "functions")

    def test_tensors_outside_the_file(self, graph):
        onnx, model = graph
        tensor = model.graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")
        self.refused(model, "outside the model's file")

    def test_weights_outside_the_file(self, tiny):
        onnx = pytest.importorskip("onnx")
        model = onnx.ModelProto.FromString(tiny.weights)
        tensor = model.graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")
        with pytest.raises(ModelError, match="unexpected field"):
            read_weights(model.SerializeToString())

    def test_graphs_that_make_no_sense(self, graph):
        _, model = graph
        (product, *_) = [node for node in model.graph.node if node.op_type == "Mul"]
        del product.input[1:]
        self.refused(model, "makes no sense")

    def test_recurrences_in_recurrences(self, tiny):
        onnx = pytest.importorskip("onnx")
        model = onnx.ModelProto.FromString(tiny.graph("sequence-uint8"))
        (scan,) = [node for node in model.graph.node if node.op_type == "Scan"][:1]
        (body,) = [a.g for a in scan.attribute if a.name == "body"]
        inner = onnx.NodeProto()
        inner.CopyFrom(scan)
        del inner.input[:]
        inner.input.extend([value.name for value in body.input][: len(scan.input)])
        body.node.insert(0, inner)
        self.refused(model, "recurrence in a recurrence|makes no sense")

    def test_a_graph_that_takes_too_long_to_prove(self, graph, monkeypatch):
        from lmfs.models import certificate

        _, model = graph
        monkeypatch.setattr(certificate, "MAX_WORK", 10_000)
        self.refused(model, "too large to be proved")
        monkeypatch.setattr(certificate, "MAX_WORK", 1 << 32)
        monkeypatch.setattr(certificate, "MAX_KEPT", 1000)
        self.refused(model, "too large to be proved")

    def test_what_was_proved_is_what_runs(self, tiny):
        """ORT takes bytes with its own format's mark for a model in that, which nobody proved."""
        pytest.importorskip("onnxruntime")
        from lmfs.engines.ort import OrtEngine

        class Marked:
            card, path = tiny.card, tiny.path

            def graph(self, name):  # the producer's name comes first: bytes 4 to 8 are the mark
                return b"\x12\x06\0\0ORTM" + tiny.graph(name)

        engine = OrtEngine(Marked(), threads=1)
        logits, _ = engine.step(engine.start(1), np.zeros(1, np.int64))
        assert logits.shape == (1, engine.vocab)


# ----------------------------------------------------------------------------------- stores


@pytest.fixture
def outside(tmp_path):
    """A place that nothing in a store may reach."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(b"mine")
    yield folder
    assert sorted(p.name for p in folder.iterdir()) == ["file"]
    assert (folder / "file").read_bytes() == b"mine"


class TestSymlinksInStores:
    def test_the_journal_of_inodes(self, backing, outside):
        """Freezing writes into it."""
        os.symlink(outside / "file", backing.path / ".lmfs" / "inodes")
        backing.write("f", DATA)
        with pytest.raises(OSError, match="symbolic links"):
            backing.freeze("f")
        assert (backing.path / "f").read_bytes() == DATA

    def test_the_models(self, backing, outside, tiny):
        os.symlink(outside, backing.path / ".lmfs" / "models")
        with pytest.raises(NotADirectoryError):
            backing.store.pin_model(tiny.id, tiny.path)
        assert backing.store.search == [backing.store.primers]
        with pytest.raises(NotADirectoryError):
            backing.store.pinned_models()

    def test_a_model(self, backing, outside, tiny):
        (backing.path / ".lmfs" / "models").mkdir()
        os.symlink(outside / "new", backing.path / ".lmfs" / "models" / registry.file_name(tiny))
        backing.store.pin_model(tiny.id, tiny.path)

    def test_the_store_itself(self, backing, tmp_path, outside):
        """A new store is not made through a link, nor an old one found."""
        victim = tmp_path / "victim"
        victim.mkdir()
        os.symlink(outside, victim / ".lmfs")
        for open_store in (Store.create, Store.open):
            with pytest.raises(FormatError, match="not a store"):
                open_store(victim)
        (victim / ".lmfs").unlink()
        os.symlink(backing.path / ".lmfs", victim / ".lmfs")
        with pytest.raises(FormatError, match="not as a symlink"):
            Store.open(victim)

    def test_the_description(self, backing, outside):
        path = backing.path / ".lmfs" / "store.json"
        path.rename(outside.parent / "moved.json")
        os.symlink(outside.parent / "moved.json", path)
        with pytest.raises(FormatError, match="regular file"):
            Store.open(backing.path)

    def test_what_is_moved_aside(self, backing, outside, run):
        os.symlink(outside, backing.path / ".lmfs" / "aside")
        (backing.path / ".lmfs" / "junk").touch()
        code, out, _ = run("repair", backing.path)
        assert code == 4
        assert "could not be repaired" in out
        assert (backing.path / ".lmfs" / "junk").exists()

    def test_fsck_names_them_and_repair_moves_them(self, backing, outside, run):
        backing.write_frozen("f", DATA)
        own = backing.path / ".lmfs"
        os.rename(own / "inodes", own.parent / "kept")
        os.symlink(outside / "file", own / "inodes")
        os.symlink(outside, own / "primers")
        code, out, err = run("fsck", "--deep", backing.path)
        assert (code, err) == (4, "")
        assert ".lmfs/inodes: a symlink" in out
        run("repair", backing.path)
        assert not os.path.lexists(own / "inodes")
        os.rename(own.parent / "kept", own / "inodes")
        assert run("fsck", "--deep", backing.path)[0] == 0


class TestThingsThatBlock:
    @pytest.fixture(autouse=True)
    def _must_end(self):
        """SIGALRM ends a test that waits for ever, and the run with it."""
        signal.alarm(300)
        yield
        signal.alarm(0)

    @pytest.mark.parametrize("name", ["inodes", "models", "models/x.lmm", "primers", "store.json"])
    @pytest.mark.parametrize("make", [os.mkfifo, lambda p: os.mknod(p, 0o600 | stat.S_IFCHR, 5)])
    def test_fifos_and_devices(self, backing, run, name, make):
        """Each command ends, and says what is in the way."""
        backing.write("f", DATA)
        path = backing.path / ".lmfs" / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)
        for command in ("fsck", "freeze", "status"):
            code, out, err = run(command, backing.path, *(["--level=1"] * (command == "freeze")))
            assert code != 70, err
            if command == "fsck":
                assert code in (4, 8)
                assert name in out + err

    def test_a_fifo_among_the_files(self, backing, run):
        os.mkfifo(backing.path / "fifo")
        os.mkfifo(backing.path / backing.store.new_temporary_name(3))
        for command in ("freeze", "thaw", "fsck", "repair", "status"):
            code, _, err = run(command, backing.path)
            assert code != 70, err
        assert stat.S_ISFIFO(os.lstat(backing.path / "fifo").st_mode)


class TestDescriptions:
    @pytest.mark.parametrize(
        "content",
        [
            b"[" * 100_000, b"{}", b"[]", b"null", b"\xff", b'{"version": 1, "id": 5}',
            b" " * 2**21,
            b'{"version": 1, "id": "00", "xattr_marks": true}',
            b'{"version": true, "id": "' + b"00" * 16 + b'", "xattr_marks": 1}',
            b'{"version": ' + b"9" * 5000 + b"}",
        ],
    )  # fmt: skip
    def test_refused(self, backing, content):
        (backing.path / ".lmfs" / "store.json").write_bytes(content)
        with pytest.raises(LmfsError):
            Store.open(backing.path)

    def test_a_journal_larger_than_memory(self, backing):
        backing.write("f", DATA)
        with open(backing.path / ".lmfs" / "inodes", "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(OSError, match="too large"):
            Marks(backing.store).facts_of_path("f", os.stat(backing.path / "f"))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users")
class TestOtherUsers:
    def test_a_store_of_somebody_else_in_a_shared_directory(self, tmp_path, run):
        shared = tmp_path / "shared"
        (shared / "mine").mkdir(parents=True)
        shared.chmod(0o1777)
        (shared / "mine" / "f").write_bytes(DATA)
        Store.create(shared).close()
        locate(str(shared / "mine")).store.close()
        for path in (shared / ".lmfs", shared / ".lmfs" / "store.json"):
            os.chown(path, 65534, 65534)
        with pytest.raises(StoreError, match="somebody else"):
            locate(str(shared / "mine"))
        assert run("freeze", shared / "mine")[0] == StoreError.exit_code
        assert (shared / "mine" / "f").read_bytes() == DATA
        os.chown(shared, 65534, 65534)  # in one's own directory it is one's own
        locate(str(shared / "mine")).store.close()

    def as_nobody(self, code, *args):
        # What is imported later may lie where only root may look.
        before = (
            "import os, socket, sys, traceback\n"
            "from lmfs.cli import message\nfrom lmfs.store import locate\n"
            "os.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
        )
        return subprocess.run(
            [sys.executable, "-c", before + code, *map(str, args)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    @pytest.fixture
    def open_place(self):
        """A directory that other users can get to; those of pytest they cannot."""
        with tempfile.TemporaryDirectory() as place:
            os.chmod(place, 0o755)
            yield pathlib.Path(place)

    def test_a_stranger_at_the_control_socket(self, backing, open_place, monkeypatch):
        """Kept out by modes; and where somebody opened these, by who he is."""
        place = open_place / "r"
        monkeypatch.setattr(lmfs.store.control, "runtime_directory", lambda uid: str(place))
        asked = []
        server = ControlServer(5, backing.store, "/x", lambda request: asked.append(request) or {})
        try:
            (path,) = place.iterdir()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
            ask = (
                "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
                "s.connect(sys.argv[1])\n"
                "s.send(sys.argv[2].encode())\n"
                "print(socket.recv_fds(s, 1000, 1)[:2])\n"
            )
            for request in ('{"do": "open"}', '{"do": "stats"}'):
                place.chmod(0o700)
                assert "PermissionError" in self.as_nobody(ask, path, request).stderr
                place.chmod(0o777)
                path.chmod(0o777)
                done = self.as_nobody(ask, path, request)
                refused = "(b'', [])" in done.stdout
                assert refused or "Pipe" in done.stderr or "reset" in done.stderr, done
            assert asked == []
        finally:
            server.close()

    def test_a_place_for_sockets_that_others_may_write_to(self, backing, tmp_path, monkeypatch):
        place = tmp_path / "r"
        monkeypatch.setattr(lmfs.store.control, "runtime_directory", lambda uid: str(place))
        for owner, mode in ((65534, 0o700), (0, 0o777)):
            place.mkdir()
            place.chmod(mode)
            os.chown(place, owner, owner)
            with pytest.raises(PermissionError, match="somebody else"):
                ControlServer(5, backing.store, "/x")
            place.rmdir()
        place.symlink_to(tmp_path)
        with pytest.raises(PermissionError, match="somebody else"):
            ControlServer(5, backing.store, "/x")

    def test_somebody_else_who_answers(self, tmp_path, monkeypatch):
        """Only who mounted it, as the kernel says, and root are believed."""
        monkeypatch.setattr(lmfs.store.control, "runtime_directory", lambda uid: str(tmp_path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.bind(str(tmp_path / "0:5.sock"))
            server.listen()
            Control(Mount("0:5", "/", "/x", "fuse.lmfs", "user_id=1000")).close()  # this is root
            monkeypatch.setattr(lmfs.store.control, "_peer", lambda connection: 1001)
            with pytest.raises(MountError, match="somebody else answers"):
                Control(Mount("0:5", "/", "/x", "fuse.lmfs", "user_id=1000"))

    def test_a_store_that_may_not_be_read(self, open_place):
        Store.create(open_place).close()
        (open_place / ".lmfs").chmod(0o700)
        code = (
            "try:\n locate.locate(sys.argv[1])\nexcept PermissionError as no:\n print(message(no))"
        )
        done = self.as_nobody(code, open_place)
        assert done.stdout.endswith("store.json: Permission denied\n"), done


def test_nonsense_at_the_control_socket(backing, tmp_path, monkeypatch):
    monkeypatch.setattr(lmfs.store.control, "runtime_directory", lambda uid: str(tmp_path / "r"))
    server = ControlServer(5, backing.store, "/x", lambda asked: {"got": asked["do"]})
    try:
        (path,) = (tmp_path / "r").iterdir()
        for nonsense in (b"[]", b"5", b"{", b"[" * 60_000, b"\xff"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(10)
                client.connect(str(path))
                client.send(nonsense)
                assert client.recv(100) == b""
        with Control(Mount("0:5", "/", "/x", "fuse.lmfs", "user_id=0")) as control:
            assert control.ask("hello") == {"got": "hello"}
    finally:
        server.close()


@pytest.mark.parametrize(
    "reply", [b"[]", b"5", b"{}", b'{"path": "/"}', b'{"error": 5, "exit_code": []}', b"[" * 60_000]
)
def test_nonsense_from_whoever_serves_a_mount(tmp_path, monkeypatch, reply):
    monkeypatch.setattr(lmfs.store.control, "runtime_directory", lambda uid: str(tmp_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(tmp_path / "0:5.sock"))
        server.listen()
        for ask in (Control.open_store, lambda control: control.ask("stats")):
            with Control(Mount("0:5", "/", "/x", "fuse.lmfs", "user_id=0")) as control:
                peer, _ = server.accept()
                with peer:
                    peer.send(reply)
                    with contextlib.suppress(LmfsError):
                        assert isinstance(ask(control), dict)
