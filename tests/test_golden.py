"""Files written by released versions decode, for ever, to the same bytes."""

from __future__ import annotations

import hashlib
import json
import pathlib

import pytest

from lmfs.lmz import LmzReader

GOLDEN = sorted((pathlib.Path(__file__).with_name("data") / "golden").glob("*.lmz"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_file_decodes(path, data):
    about = json.loads(path.with_suffix(".json").read_text())
    store_id = bytes.fromhex(about["store_id"]) if about["store_id"] else None
    with LmzReader(path, model_search=[data], store_id=store_id) as reader:
        content = reader.read()
        codecs = list(reader.statistics())
        reader.verify()
    assert len(content) == about["size"]
    assert hashlib.sha256(content).hexdigest() == about["content_sha256"]
    assert codecs == about["codecs"]


def test_there_is_a_golden_file_for_every_kind():
    assert {path.stem for path in GOLDEN} >= {
        "1.0-archive",
        "1.0-frozen",
        "1.0-model",
        "1.0-base-1",
        "1.0-base-2",
        "1.0-base-2-level-9",
        "1.0-base-3",
        "1.0-base-3-level-9",
        "1.0-base-4",
        "1.0-base-4-level-9",
        "1.0-base-5",
        "1.0-base-5-chunks-16384",
        "1.0-base-5-level-9",
        "1.0-base-6",
        "1.0-base-6-chunks-16384",
        "1.0-base-6-level-4",
        "1.0-base-6-level-9",
        "1.0-base-7",
        "1.0-base-7-chunks-8192",
        "1.0-base-7-level-4",
        "1.0-base-7-level-9",
        "1.0-base-8",
        "1.0-base-8-chunks-32768",
        "1.0-base-8-chunks-32768-profile-10",
        "1.0-base-8-level-4-log-profile-9",
        "1.0-base-8-level-9",
        "1.0-base-8-level-9-chunks-16384-log-profile-11",
        "1.0-base-8-level-9-chunks-32768-profile-12",
        "1.0-base-8-profile-9",
    }
