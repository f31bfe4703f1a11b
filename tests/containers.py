"""Small containers for tests, and the ways to read them."""

from __future__ import annotations

import io
import itertools
import random

import numpy as np

from lmfs import lmz
from lmfs.codecs.choose import Chooser
from lmfs.codecs.lm import LmCodec
from lmfs.codecs.mix import MixCodec
from lmfs.codecs.raw import RawCodec
from lmfs.codecs.zstd import ZstdCodec
from lmfs.container import CodecId, Coding
from lmfs.engines.native import NativeEngine
from lmfs.models.package import ModelPackage
from lmfs.native import Mixer, TokenEncoder
from lmfs.profile import CoderProfile, profile_by_number

CHEAP = Chooser(zstd_level=3)
STORE = bytes(range(16))


def packed(data: bytes, chunk_size: int = 64, **options) -> bytes:
    out = io.BytesIO()
    with lmz.LmzWriter(out, chunk_size=chunk_size, **{"chooser": CHEAP, **options}) as writer:
        writer.write(data)
    return out.getvalue()


def reader(container: bytes, **options) -> lmz.LmzReader:
    return lmz.LmzReader(io.BytesIO(container), **options)


def recovered(container: bytes, **options) -> list[lmz.Recovered]:
    found = lmz.recover(io.BytesIO(container), **options)
    return [part for part in found if isinstance(part, lmz.Recovered)]


def sample(size: int, seed: int = 1) -> bytes:
    """Text, noise and repetition in turn, so that every codec has its chunks."""
    rng = random.Random(seed)
    words = ["cold ", "text ", "is ", "small ", "and ", "still ", "open ", "zwölf ", "\n"]
    parts, length = [], 0
    while length < size:
        kind = rng.randrange(3)
        if kind == 0:
            part = "".join(rng.choices(words, k=60)).encode()
        else:
            part = rng.randbytes(150) if kind == 1 else rng.randbytes(2) * 100
        parts.append(part)
        length += len(part)
    return b"".join(parts)[:size]


def blob_ranges(container: bytes, **options) -> list[range]:
    """Where the blobs lie: there a flip may leave the decoded bytes as they were."""
    with reader(container, **options) as whole:
        return [
            range(member.offset + start, member.offset + start + size)
            for member in whole.members
            for start, size in zip(
                member.layout.blob_offsets.tolist(),
                member.layout.coded_sizes.tolist(),
                strict=True,
            )
        ]


def follows(chunks: list[bytes], limit: int) -> list[bytes]:
    """Of the chunks before one, those that it follows: all that end in the primer."""
    ends = itertools.accumulate(map(len, chunks))
    return [chunk for chunk, end in zip(chunks, ends, strict=True) if end <= limit]


class WholeChunks:
    """A stand-in for a chooser, whose chunks are all as long as can be."""

    def cut(self, data: bytes, start: int, chunk_size: int) -> list[bytes]:
        return [data[at : at + chunk_size] for at in range(0, len(data), chunk_size)]


class Planned(WholeChunks):
    """Codes every chunk as a plan says (it begins anew at its end), and as FORMAT.md says."""

    NAMES = ("raw", "zstd", "mix", "lm", "lm+", "mix-", "lm-")  # "-": half the primer

    def __init__(
        self,
        package: ModelPackage,
        plan: str,
        primer_bytes: int,
        profile: CoderProfile | None = None,
    ) -> None:
        self.package, self.profile = package, profile or profile_by_number(9)
        ids = package.id, self.profile.id
        self._codings = [
            Coding(CodecId.RAW),
            Coding(CodecId.ZSTD),
            Coding(CodecId.MIX, *ids, primer_bytes),
            Coding(CodecId.LM, *ids),
            Coding(CodecId.LM, *ids, primer_bytes),
            Coding(CodecId.MIX, *ids, max(1, primer_bytes // 2)),
            Coding(CodecId.LM, *ids, max(1, primer_bytes // 2)),
        ]
        lm = LmCodec(package, self.profile)
        mix = MixCodec(package, self.profile)
        self.codecs = [RawCodec(), ZstdCodec(), mix, lm, lm, mix, lm]
        self.plan = [self.NAMES.index(name) for name in plan.split()]
        self.vocabulary = package.tokenizer().vocabulary

    def state(self, before: list[bytes], limit: int, tail_bytes: int = 0) -> Mixer:
        mixer = Mixer(self.profile.mixer, self.vocabulary)
        chunks = follows(before, limit)
        left = sum(map(len, chunks))
        for chunk in chunks:
            if left > tail_bytes:
                mixer.prime(chunk, len(chunk))
            else:
                mixer = self.seen_with_the_model(mixer, chunk)
            left -= len(chunk)
        return mixer

    def seen_with_the_model(self, mixer: Mixer, chunk: bytes) -> Mixer:
        engine, strands = NativeEngine(self.package), self.profile.strands_of(len(chunk))
        table = self.profile.table
        encoder = TokenEncoder(self.vocabulary, table, mixer, strands, len(chunk))
        tokens = np.asarray(self.vocabulary.tokenize(chunk))
        parts = np.array_split(tokens, strands)
        states = [engine.start(1) for _ in parts]
        last = [self.package.start_token] * strands
        for turn in range(len(parts[0])):
            for k, part in enumerate(parts):
                if turn < len(part):
                    logits, _ = engine.step(states[k], np.array(last[k : k + 1], np.int64))
                    encoder.push(logits, part[turn : turn + 1])
                    last[k] = int(part[turn])
        encoder.finish()
        return encoder.mixer

    def blob(self, number: int, chunk: bytes, before: list[bytes]) -> bytes:
        coding = self._codings[number]
        limit = coding.primer_bytes
        tail_bytes = self.profile.model_tail_bytes if coding.codec is CodecId.LM else 0
        after = self.state(before, limit, tail_bytes) if limit else None
        codec = self.codecs[number]
        if sum(map(len, before)) < limit:  # it goes on with the primer's own state
            if isinstance(codec, MixCodec):
                return codec.encode_on(chunk, after)
            assert isinstance(codec, LmCodec)
            return codec.encode_on(chunk, [after])[0][0]
        (blob,) = codec.encode([chunk], after)
        return blob

    def primer(self) -> list[bytes]:
        return []  # of a member: its chunks so far

    def codings(self, before: list[bytes]) -> list[Coding]:
        return self._codings

    def choose(self, chunks: list[bytes], before: list[bytes]) -> list[tuple[int, bytes]]:
        chosen = []
        for chunk in chunks:
            number = self.plan[len(before) % len(self.plan)]
            blob = self.blob(number, chunk, before)
            chosen.append((number, blob) if 0 < len(blob) < len(chunk) else (0, chunk))
            before.append(chunk)
        return chosen
