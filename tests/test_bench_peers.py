"""lmfs beside other programs: what is computed and drawn, and that nothing stays behind."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from lmfs_tools.bench import contest, packers, peers, picture, processes, report

SVG = "{http://www.w3.org/2000/svg}"
ENVIRONMENT = contest.environment(1)


def row(packer: str, archive_bytes: int, pack_s: list[float], **more: object) -> dict[str, object]:
    works = {"wall_s": pack_s, "cpu_s": pack_s, "peak_mb": [10.0] * len(pack_s)}
    lists = {name: [] for name in ("open_s", "rest_mb", "first_s", "random_s")}
    base = {"file": "a", "bytes": 1000, "packer": packer, "kind": "whole", "pack": works}
    return {**base, "archive_bytes": archive_bytes, "read": works, **lists, **more}


def test_percentiles_are_values_that_were_measured():
    values = [float(n) for n in range(100, 0, -1)]
    assert report.percentile(values, 50) == 50
    assert report.percentile(values, 99) == 99
    assert report.percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert report.percentile([7.0], 1) == 7.0


def test_the_front_is_what_nothing_beats():
    points = [(1, 9), (2, 5), (3, 6), (4, 1), (4, 0.5), (0.5, 9), (3, 6)]
    assert report.front(points) == [0, 2, 3]
    assert report.front([]) == []


def test_the_front_against_every_pair():
    chance = random.Random(4)
    points = [(chance.randrange(20), chance.randrange(20)) for _ in range(200)]
    kept = {points[i] for i in report.front(points)}
    beaten = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert kept == set(points) - beaten


def test_ratios_are_taken_round_by_round():
    ours = row("x", 100, [1.0, 10.0, 2.0])
    # as medians of each alone it would be 3 / 2
    theirs = row("ref", 200, [3.0, 40.0, 2.0])
    assert report.times_faster(ours, theirs, "pack") == 3.0
    assert report.times_faster(row("x", 100, [1.0]), theirs, "pack") == 3.0
    assert report.times_faster(ours, None, "pack") is None
    assert report.times_faster(ours, theirs | {"failed": "so"}, "read") is None


def test_figures_of_a_row():
    found = report.figures(row("x", 250, [0.5], random_s=[0.001, 0.003, 0.002], open_s=[0.2]))
    assert found["ratio"] == 4
    assert found["bits_per_byte"] == 2
    assert found["pack_kb_s"] == 2
    assert found["random_p50_ms"] == 2
    assert found["random_p99_ms"] == 3
    assert found["open_ms"] == 200
    assert found["first_ms"] is None


def test_when_the_model_pays():
    ours, theirs = row("l", 100, [1.0]), row("x", 200, [1.0])
    assert report.model_pays_from(ours, theirs, 5_000) == 50_000
    assert report.model_pays_from(theirs, ours, 5_000) is None


def test_levels():
    assert peers.levels_in("1-9") == list(range(1, 10))
    assert peers.levels_in("9,3-4,3") == [3, 4, 9]
    for wrong in ("0", "10", "x", "", "1-", "1,,2"):
        with pytest.raises(argparse.ArgumentTypeError, match="1 to 9"):
            peers.levels_in(wrong)


def test_files_that_cannot_be_compared(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "empty").touch()
    assert peers.read_files([tmp_path / "a"], 3) == {"a": b"123"}
    for names, said in ((["a", "a"], "a second a"), (["empty"], "an empty file")):
        with pytest.raises(ValueError, match=said):
            peers.read_files([tmp_path / name for name in names], 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["/nonexistent"], "/nonexistent"),
        (["--rounds", "0"], "from 1 on, got 0"),
        (["--levels", "11"], "from 1 to 9"),
        (["--out", "/proc/x/y"], "/proc/x"),
    ],
)
def test_usage_errors_are_one_line(wrong, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers", *wrong])
    with pytest.raises(SystemExit) as leaving:
        peers.arguments()
    assert leaving.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert said in last


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 65536, 70000, 1_000_000])
def test_offsets_are_aligned_and_in_regions_of_their_own(size):
    found = contest.offsets(size, 12, random.Random(1))
    assert found == contest.offsets(size, 12, random.Random(1))
    assert 1 <= len(found) <= 12
    assert all(place % 4096 == 0 for place in found)
    assert all(place == 0 or place + 4096 <= size for place in found)
    assert len({place // contest.REGION_BYTES for place in found}) == len(found)


def test_offsets_reach_the_whole_file():
    chance = random.Random(1)
    found = {place for _ in range(400) for place in contest.offsets(200_000, 12, chance)}
    assert found == set(range(0, 200_000 - 4096 + 1, 4096))


def test_every_packer_is_complete():
    everything = packers.everything(range(1, 10), 2)
    names = [packer.name for packer in everything]
    assert len(set(names)) == len(names)
    assert {"lmfs -1", "lmfs -9", "lmfs -9 64K", "xz -9e", "zpaq -m5"} <= set(names)
    for packer in everything:
        assert bool(packer.mount) != bool(packer.unpack)
        assert (packer.kind == "whole") == bool(packer.unpack)
        assert packer.kind in picture.COLOURS
        assert "{" not in packer.pack + packer.mount + packer.unpack
        assert packer.archive in packer.pack or packer.kind == "lmfs"
        assert packer.source


def result_of(*rows: dict[str, object]) -> dict[str, object]:
    return {
        "note": "Preliminary",
        "machine": "2 cores",
        "settings": {"threads": 2, "rounds": 1, "date": "2026-01-01"},
        "against": "ref",
        "model_bytes": 4_500_000,
        "versions": {"x": "x 1.0"},
        "absent": [{"packer": "gone", "needs": "gone (some package)"}],
        "packers": [{"packer": "x", "pack": "x data", "unpack": "", "mount": "x mnt"}],
        "rows": list(rows),
    }


def test_the_table_says_what_failed_and_what_is_absent():
    rows = row("x", 250, [0.5]), row("ref", 500, [1.0]), row("bad", 0, [], failed="WRONG BYTES")
    text = report.markdown(result_of(*rows))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1
    assert "| x | 2.000 | 2 | 2.00 |" in text
    assert "WRONG BYTES" in text
    assert "gone: needs gone (some package)" in text
    assert "**Preliminary**" in text
    assert "4,500,000 bytes" in text


def test_json_has_a_line_a_row_and_comes_back():
    result = result_of(row("x", 250, [0.5]), row("ref", 500, [1.0]))
    text = peers.as_json(result)
    assert json.loads(text) == result
    assert sum('"packer": "x"' in line and '"random_s"' in line for line in text.split("\n")) == 1


def test_table_and_picture_are_those_of_the_measurements(tmp_path):
    kept = peers.REPOSITORY / "tools" / "bench" / "results"
    peers.write(json.loads((kept / "peers.json").read_text()), tmp_path / "peers")
    for name in ("peers.json", "peers.md", "peers.svg"):
        assert (tmp_path / name).read_text() == (kept / name).read_text(), name


def panel(points: list[picture.Point], **more: bool) -> picture.Panel:
    return picture.Panel("a & b", "x", "y", points, lambda value: f"{value:g}", **more)


def drawn(*panels: picture.Panel) -> ET.Element:
    return ET.fromstring(picture.svg(panels, peers.KINDS, "what <this> is"))


def test_the_picture_names_every_point_once_and_within_bounds():
    chance = random.Random(2)
    points = [
        picture.Point(f"packer {n}", "seek", 10 ** chance.uniform(0, 4), 10 ** chance.uniform(0, 2))
        for n in range(25)
    ]
    root = drawn(panel(points), panel(points, less_is_better=True), panel(points[:1]), panel([]))
    assert root.tag == f"{SVG}svg"
    groups = root.findall(f"{SVG}g")
    assert len(groups) == 4
    for group, count in zip(groups, (25, 25, 1, 0), strict=True):
        labels = [t for t in group.findall(f"{SVG}text") if t.text.startswith("packer")]
        assert len(labels) == count
        assert len({label.text for label in labels}) == count
        for label in labels:
            assert 0 <= float(label.get("x")) <= picture.WIDTH / 2
            assert 0 <= float(label.get("y")) <= picture.PANEL_HEIGHT


def test_labels_do_not_cover_each_other_where_there_is_room():
    points = [picture.Point(f"point {n}", "whole", 10.0 + n % 3, 5.0 + n // 3) for n in range(9)]
    places = [
        (float(t.get("x")), float(t.get("y")))
        for t in drawn(panel(points)).iter(f"{SVG}text")
        if t.text.startswith("point")
    ]
    width, height = 7 * picture.LETTER_PX, picture.FONT_PX
    for i, (x, y) in enumerate(places):
        for left, top in places[:i]:
            assert abs(x - left) >= width - 0.1 or abs(y - top) >= height - 0.1


def test_the_panels_front_follows_the_better_side():
    points = [picture.Point(name, "lmfs", x, y) for name, x, y in (("a", 1, 1), ("b", 9, 9))]
    assert [p.label for p in panel(points).front()] == ["b"]
    assert [p.label for p in panel(points, less_is_better=True).front()] == ["b", "a"]


def test_ticks():
    assert picture.ticks(1.5, 60) == [2, 5, 10, 20, 50]
    assert picture.ticks(2.1, 4.4) == [3, 4]
    assert picture.ticks(9, 33) == [10, 15, 20, 30]
    assert picture.ticks(0.9, 1100) == [1, 10, 100, 1000]


def test_a_command_is_measured(tmp_path):
    busy = f"{sys.executable} -c 'x = bytearray(80 << 20); sum(range(3_000_000))'"
    cost = processes.run(f"{busy} && echo done > there", tmp_path, ENVIRONMENT, 60)
    assert (tmp_path / "there").exists()
    assert 80 < cost.peak_mb < 160
    assert 0 < cost.cpu_s <= cost.wall_s * 1.5
    assert processes.run("true", tmp_path, ENVIRONMENT, 60).peak_mb < 30


def test_a_command_that_fails_says_so(tmp_path):
    with pytest.raises(processes.Failed, match="exit 3: no luck"):
        processes.run("echo no luck >&2; exit 3", tmp_path, ENVIRONMENT, 60)


def test_a_command_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    command = "sleep 77 & echo $! > pid; wait"
    with pytest.raises(processes.Failed, match="took more than 1 s"):
        processes.run(command, tmp_path, ENVIRONMENT, 1)
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not running(pid)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def settings(**more: object) -> contest.Settings:
    given = {"bytes": 10**6, "rounds": 1, "reads": 3, "threads": 1, "limit_s": 60.0}
    return contest.Settings(**{**given, "budget_s": 60.0, "date": "2026-01-01", **more})


def filtering(folder: Path, pack: str, unpack: str) -> contest.Contest:
    packer = packers.whole("p", "sh", "dash", "bin", pack, unpack)
    return contest.Contest(packer, "data", os.urandom(200_000), folder / "work", settings())


def test_a_contest_of_a_filter(tmp_path):
    one = filtering(tmp_path, "cp data data.bin", "cat data.bin")
    one.take_turn([4096, 65536])
    found = one.record.row()
    assert "failed" not in found
    assert found["archive_bytes"] == 200_000
    assert len(found["random_s"]) == 2
    assert found["first_s"] == []


@pytest.mark.parametrize("unpack", ["head -c 199999 data.bin", "tr '\\000' '\\001' < data.bin"])
def test_wrong_bytes_do_not_count(tmp_path, unpack):
    one = filtering(tmp_path, "cp data data.bin", unpack)
    one.take_turn([0])
    assert one.record.row()["failed"].startswith("WRONG BYTES")


def test_a_work_is_repeated_within_its_budget_only(tmp_path):
    packer = packers.whole("p", "sh", "dash", "bin", "sleep 0.3; cp data data.bin", "cat data.bin")
    short = settings(budget_s=0.5)
    one = contest.Contest(packer, "data", b"text " * 4000, tmp_path / "work", short)
    for _ in range(3):
        one.take_turn([0])
    assert len(one.record.pack.wall_s) == 1
    assert len(one.record.read.wall_s) == 3


def test_a_contest_of_a_mount(tmp_path):
    data = b"".join(b"%d: the same line again\n" % n for n in range(8000))
    one = contest.Contest(packers.lmfs(2, 16), "log", data, tmp_path / "work", settings())
    one.take_turn([65536, 0, 131072])
    found = one.record.row()
    assert "failed" not in found
    assert 0 < found["archive_bytes"] < len(data) / 4
    assert len(found["first_s"]) == 1
    assert len(found["random_s"]) == 2
    assert len(found["open_s"]) == 2
    assert found["read"]["peak_mb"][0] >= found["rest_mb"][0] > 1
    assert mounts_below(tmp_path) == []


def mounts_below(folder: Path) -> list[str]:
    return [
        line for line in Path("/proc/self/mounts").read_text().split("\n") if str(folder) in line
    ]


@pytest.mark.parametrize("moment", ["mounting", "mounted"])
def test_an_interrupt_leaves_nothing_behind(tmp_path, moment):
    data = tmp_path / "data.txt"
    data.write_bytes(os.urandom(50_000).hex().encode())
    command = [sys.executable, "-m", "lmfs_tools.bench.peers", "--levels", "1", "--only", "none"]
    process = subprocess.Popen(
        [*command, "--rounds", "999", "--folder", tmp_path, data],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not has_come(moment, tmp_path) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.001)
    assert has_come(moment, tmp_path)
    time.sleep(0.05)  # a mount takes several times that
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    time.sleep(1)
    assert mounts_below(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["data.txt"]


def has_come(moment: str, folder: Path) -> bool:
    if moment == "mounted":
        return bool(mounts_below(folder))
    return any(folder.glob("lmfs-bench-*/data.txt/*/mnt"))
