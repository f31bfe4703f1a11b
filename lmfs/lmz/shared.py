"""Shared primers: texts of a store that chunks of many files follow (FORMAT.md, "Primers").

Owns: where such a text is found, its proof, and the states behind the ones used last; they are
computed, never stored. Any thread may call it.
"""

from __future__ import annotations

import io
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import blake3

from lmfs.codecs.primer import prime
from lmfs.codecs.threads import Turn
from lmfs.container import ID_BYTES, MAX_PRIMER_BYTES, CodecId, Coding
from lmfs.errors import DamagedError, LmfsError

if TYPE_CHECKING:
    from lmfs.codecs.mix import MixCodec
    from lmfs.native import Mixer

PIECE_BYTES = 16 * 1024
SUFFIX = ".lmz"
_MAX_BYTES = 32 << 20  # of states

_states: OrderedDict[tuple[bytes | None, ...], Mixer] = OrderedDict()
_lock = Turn()


def primer_id(text: bytes) -> bytes:
    """What files call this text."""
    return blake3.blake3(text).digest(length=ID_BYTES)


def file_name(shared_id: bytes) -> str:
    """What a store calls the text's file."""
    return f"{shared_id.hex()}{SUFFIX}"


def shared_mixer(coding: Coding, search: Sequence[Path]) -> Mixer:
    """The state behind the shared primer of a coding. Not to be changed: `copy` it.

    raises: DamagedError that names the primer and where it was looked for; UnknownModelError
    """
    key = (coding.shared_id, coding.model_id, coding.profile_id)
    with _lock:  # also while one is computed: whoever waits mostly waits for the same
        mixer = _states.get(key)
        if mixer is None:
            mixer = _behind(coding, search)
            _states[key] = mixer
        _states.move_to_end(key)
        while len(_states) > 1 and sum(m.used_bytes for m in _states.values()) > _MAX_BYTES:
            _states.popitem(last=False)
        return mixer


def forget_states() -> None:
    """Forget the states; who uses one keeps it."""
    with _lock:
        _states.clear()


def _behind(coding: Coding, search: Sequence[Path]) -> Mixer:
    from lmfs.codecs import open_codec

    assert coding.shared_id is not None
    plain = Coding(CodecId.MIX, coding.model_id, coding.profile_id)
    mixer = cast("MixCodec", open_codec(plain, search)).start()
    text = find_text(coding.shared_id, search)
    prime(mixer, [text[at : at + PIECE_BYTES] for at in range(0, len(text), PIECE_BYTES)])
    return mixer


def find_text(shared_id: bytes, search: Sequence[Path]) -> bytes:
    """The text with this id, from one of these folders, proved to be it.

    raises: DamagedError that says where it was looked for
    """
    reasons = []
    for folder in search:
        path = folder / file_name(shared_id)
        try:
            return read_text(path, shared_id, search)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (LmfsError, OSError) as error:
            reasons.append(f"{path}: {error}")
    raise DamagedError(
        "the shared primer that this file needs cannot be had",
        where=", ".join(map(str, search)) or "no folder",
        expected=f"primer {shared_id.hex()}",
        got="; ".join(reasons) or "no such file",
        do=f"restore {file_name(shared_id)} in the store's .lmfs/primers from a backup",
    )


def read_text(path: Path, shared_id: bytes, search: Sequence[Path]) -> bytes:
    """The text in this file. raises: DamagedError if it is not the one; LmfsError, OSError"""
    # `stream` stands on `frames`, which stands on this module.
    from lmfs.lmz.stream import stream_decode

    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DamagedError("shared primer", where=path, expected="a regular file")
        stored = file.read(2 * MAX_PRIMER_BYTES)
    text = bytearray()
    for chunk in stream_decode(io.BytesIO(stored), model_search=search, name=str(path)):
        text += chunk
        if len(text) > MAX_PRIMER_BYTES:
            break
    if not 0 < len(text) <= MAX_PRIMER_BYTES or primer_id(bytes(text)) != shared_id:
        raise DamagedError(
            "shared primer",
            where=path,
            expected=f"content {shared_id.hex()}",
            got=primer_id(bytes(text)).hex(),
        )
    return bytes(text)
