"""Chunk bytes to blobs and back: raw, zstd, lm and mix, behind the protocol `lmfs.types.Codec`.

Owns: which codec a container's coding means. Imports the model codec (and with it an inference
engine) only when a coding asks for it. Codecs are safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmfs.codecs.raw import RawCodec
from lmfs.codecs.zstd import ZstdCodec
from lmfs.container import CodecId, Coding
from lmfs.errors import DamagedError
from lmfs.types import Codec

__all__ = ["open_codec"]


def open_codec(coding: Coding, model_search: Sequence[Path] = ()) -> Codec:
    """The codec that decodes what was written under this coding.

    raises: UnknownModelError, VersionError (a coder profile that is not known), ModelError,
        DamagedError (one without the mixer that the coding needs)
    """
    if coding.codec is CodecId.RAW:
        return RawCodec()
    if coding.codec is CodecId.ZSTD:
        return ZstdCodec()
    from lmfs.codecs.lm import LmCodec
    from lmfs.codecs.mix import MixCodec
    from lmfs.models import registry
    from lmfs.profile import profile_by_id

    assert coding.model_id is not None
    assert coding.profile_id is not None
    profile = profile_by_id(coding.profile_id)
    if profile.mixer is None and (coding.codec is CodecId.MIX or coding.primer_bytes):
        raise DamagedError("coding", expected="a coder profile with a mixer", got=profile.id.hex())
    kind = LmCodec if coding.codec is CodecId.LM else MixCodec
    return kind(registry.find(coding.model_id, model_search), profile)
