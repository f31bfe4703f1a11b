"""Packages, their ids, where they are found, and what bad ones get."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest
import zstandard
from blake3 import blake3

from lmfs.errors import ModelError, UnknownModelError
from lmfs.models import registry
from lmfs.models.package import SHIPPED, ModelPackage, _Zip, model_id, write_package
from lmfs.models.verify import verify
from lmfs.native import usable_isas


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(package: ModelPackage, path, **changes):
    """The package's members with some replaced (None: left out)."""
    parts = members(package.path)
    for name, value in changes.items():
        key = next(k for k in parts if k.split(".")[0].split("/")[-1] == name.replace("_", "-"))
        if value is None:
            del parts[key]
        else:
            parts[key] = value
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in parts.items():
            archive.writestr(name, value)
    return path


def test_id_depends_on_weights_tokenizer_and_architecture_only(tiny, tmp_path):
    parts = members(tiny.path)
    card = json.loads(parts["card.json"])
    assert tiny.id == model_id(card["architecture"], parts["tokenizer.json"], parts["weights.onnx"])
    renamed = rewrite(tiny, tmp_path / "a.lmm", card=json.dumps({**card, "name": "x"}).encode())
    assert ModelPackage.load(renamed).id == tiny.id
    changed = bytearray(parts["weights.onnx"])
    changed[len(changed) // 2] ^= 1
    other = rewrite(tiny, tmp_path / "b.lmm", weights=bytes(changed))
    assert ModelPackage.load(other).id != tiny.id


def test_shipped_packages_have_the_ids_that_are_known_for_their_files():
    files = {blake3(p.read_bytes()).hexdigest(): p for p in registry.SHIPPED_FOLDER.glob("*.lmm")}
    assert set(files) == set(SHIPPED), "a shipped package: add its hash and its model's id"
    for file_hash, id in SHIPPED.items():
        parts = members(files[file_hash])
        architecture = json.loads(parts["card.json"])["architecture"]
        if (weights := parts.get("weights.onnx")) is None:
            weights = zstandard.ZstdDecompressor().decompress(parts["weights.onnx.zst"])
        assert model_id(architecture, parts["tokenizer.json"], weights).hex() == id
        assert ModelPackage.load(files[file_hash]).id.hex() == id


def test_weights_are_inflated_only_where_they_are_needed(monkeypatch, tiny):
    inflated = []
    part = _Zip.part
    monkeypatch.setattr(
        _Zip, "part", lambda self, info: inflated.append(info.filename) or part(self, info)
    )
    package = ModelPackage.load(registry.shipped().path)
    assert not [name for name in inflated if name.startswith("weights")]
    assert len(package.weights) > 5_000_000
    # Of another file, the id is known only when all that it covers was hashed.
    inflated.clear()
    assert ModelPackage.load(tiny.path).id == tiny.id
    assert "weights.onnx" in inflated


def test_written_package_does_not_depend_on_the_clock(tiny, tmp_path):
    parts = members(tiny.path)
    arguments = {
        "card": dict(tiny.card),
        "tokenizer": parts["tokenizer.json"],
        "weights": parts["weights.onnx"],
        "graphs": {"step-uint8": parts["graph/step-uint8.onnx"]},
        "golden": parts["golden.npz"],
    }
    for name in ("a.lmm", "b.lmm"):
        write_package(tmp_path / name, **arguments)
    assert (tmp_path / "a.lmm").read_bytes() == (tmp_path / "b.lmm").read_bytes()
    package = ModelPackage.load(tmp_path / "a.lmm")
    assert (package.id, package.weights) == (tiny.id, tiny.weights)
    assert package.graph("step-uint8") == tiny.graph("step-uint8")
    assert "weights.onnx" not in members(tmp_path / "a.lmm")


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (lambda data: _frame(data)[:-9], "damaged model package"),
        (lambda data: _frame(data) + b"more", "damaged model package"),
        (lambda data: b"none", "damaged model package"),
        (lambda data: b"", "damaged model package"),
        (lambda data: _frame(data, write_content_size=False), "too large a part.*got no number"),
        (lambda data: _frame(bytes((64 << 20) + 1)), "too large a part.*got 67,108,865"),
        (lambda data: _frame(data + b"x"), None),  # whole, but of another id
    ],
)
def test_weights_in_a_frame_that_is_not_what_it_should_be(tiny, tmp_path, frame, complaint):
    parts = members(tiny.path)
    with zipfile.ZipFile(tmp_path / "x.lmm", "w") as archive:
        for name, part in parts.items():
            packed = name == "weights.onnx"
            archive.writestr(f"{name}.zst" if packed else name, frame(part) if packed else part)
    if complaint is None:
        assert ModelPackage.load(tmp_path / "x.lmm").id != tiny.id
    else:
        with pytest.raises(ModelError, match=complaint):
            ModelPackage.load(tmp_path / "x.lmm")


def test_weights_in_two_parts(tiny, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.lmm", "w") as archive:
        for name, part in members(tiny.path).items():
            archive.writestr(name, part)
        archive.writestr("weights.onnx.zst", _frame(tiny.weights))
    with pytest.raises(ModelError, match="weights in two parts"):
        ModelPackage.load(tmp_path / "x.lmm")


def _frame(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"weights": None}, "without a part"),
        ({"card": b"{"}, "unreadable model card"),
        ({"card": b"[]"}, "unreadable model card"),
        ({"card": b'{"architecture": {"kind": "x", "start_token": 0}}'}, "unknown model arch"),
    ],
)
def test_bad_packages(tiny, tmp_path, changes, complaint):
    path = rewrite(tiny, tmp_path / "bad.lmm", **changes)
    with pytest.raises(ModelError, match=complaint):
        ModelPackage.load(path)


def test_every_damaged_byte_of_a_package_is_noticed_or_harmless(tiny, tmp_path):
    whole = tiny.path.read_bytes()
    path = tmp_path / "damaged.lmm"
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        try:
            package = ModelPackage.load(path)
        except ModelError:
            continue
        assert package.id == tiny.id  # a graph, a golden vector or slack in the zip
    for length in range(0, len(whole), max(1, len(whole) // 50)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            ModelPackage.load(path)


def test_registry_finds_by_id_not_by_name(tiny, tmp_path, monkeypatch):
    shutil.copy(tiny.path, tmp_path / "any name.lmm")
    assert registry.find(tiny.id, [tmp_path]).id == tiny.id
    assert registry.find(tiny.id, [tmp_path / "any name.lmm"]).id == tiny.id
    monkeypatch.setenv(registry.PATH_VARIABLE, str(tmp_path))
    assert registry.find(tiny.id).id == tiny.id
    monkeypatch.delenv(registry.PATH_VARIABLE)
    with pytest.raises(UnknownModelError, match=tiny.id.hex()) as caught:
        registry.find(tiny.id)
    assert registry.PATH_VARIABLE in str(caught.value)
    assert str(registry.SHIPPED_FOLDER) in str(caught.value)


def test_shipped_model(monkeypatch):
    package = registry.shipped()
    read = []
    load = registry._load
    monkeypatch.setattr(registry, "_load", lambda path: read.append(path) or load(path))
    assert registry.find(package.id).path == package.path
    assert read == [package.path]  # not those of former versions as well
    assert set(package.card["bits_per_byte"]) >= {"wiki.txt", "books.txt", "code.py.txt"}
    with pytest.raises(
        ModelError, match="base-1, base-2, base-3, base-4, base-5, base-6, base-7, base-8"
    ):
        registry.shipped("no-such")


def test_verify_passes_the_tiny_model_and_finds_a_changed_weight(tiny, tmp_path):
    findings = verify(tiny.path)
    assert len(findings) == 2 + 2 * len(usable_isas()) + 2 * 4
    assert all(finding.ok for finding in findings)
    weights = bytearray(members(tiny.path)["weights.onnx"])
    for at in range(1000, 3000, 50):
        weights[at] = 5
    path = rewrite(tiny, tmp_path / "changed.lmm", weights=bytes(weights))
    bad = [finding.what for finding in verify(path) if not finding.ok]
    assert any(what.startswith("golden vectors") for what in bad)
