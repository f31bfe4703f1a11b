"""What runs of packers mean: medians, ratios, the Pareto front, the table.

Owns: everything between the raw measurements of lmfs_tools.bench.peers and what is shown of them.
Pure; measures nothing.

A row is one file with one packer, as peers.json has it: "file", "bytes", "packer", "kind",
"archive_bytes", and lists with one value a round, or a read: "pack" and "read" of {"wall_s",
"cpu_s", "peak_mb"}; "open_s", "rest_mb", "first_s" and "random_s"; or "failed" with the reason.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# Columns of the table: title, key of `figures`, digits behind the point.
COLUMNS = (
    ("bits/byte", "bits_per_byte", 3),
    ("freeze KB/s", "pack_kb_s", 0),
    ("× faster", "pack_times", 2),
    ("read KB/s", "read_kb_s", 0),
    ("× faster", "read_times", 2),
    ("mount ms", "open_ms", 0),
    ("first 4 KiB ms", "first_ms", 1),
    ("4 KiB p50 ms", "random_p50_ms", 1),
    ("p99 ms", "random_p99_ms", 1),
    ("freeze CPU s", "pack_cpu_s", 2),
    ("read CPU s", "read_cpu_s", 2),
    ("freeze MB", "pack_mb", 0),
    ("read MB", "read_mb", 0),
    ("rest MB", "rest_mb", 0),
)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many per cent of them do not exceed (nearest rank)."""
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(1, rank) - 1]


def _median(values: Sequence[float], scale: float = 1.0) -> float | None:
    return statistics.median(values) * scale if values else None


def times_faster(row: Row, reference: Row | None, work: str) -> float | None:
    """How many times faster than the reference, median over the rounds that both took part in.

    work: "pack" or "read"
    """
    if reference is None or "failed" in reference:
        return None
    pairs = zip(row[work]["wall_s"], reference[work]["wall_s"], strict=False)
    return _median([theirs / ours for ours, theirs in pairs])


def figures(row: Row, reference: Row | None = None) -> dict[str, float | None]:
    """The numbers of a row that did not fail, as COLUMNS has them; None where there are none."""
    kilobytes = row["bytes"] / 1e3
    pack, read = (_median(row[work]["wall_s"]) for work in ("pack", "read"))
    random = row["random_s"]
    return {
        "ratio": row["bytes"] / row["archive_bytes"],
        "bits_per_byte": row["archive_bytes"] * 8 / row["bytes"],
        "pack_kb_s": pack and kilobytes / pack,
        "pack_times": times_faster(row, reference, "pack"),
        "read_kb_s": read and kilobytes / read,
        "read_times": times_faster(row, reference, "read"),
        "open_ms": _median(row["open_s"], 1e3),
        "first_ms": _median(row["first_s"], 1e3),
        "random_p50_ms": percentile(random, 50) * 1e3 if random else None,
        "random_p99_ms": percentile(random, 99) * 1e3 if random else None,
        "pack_cpu_s": _median(row["pack"]["cpu_s"]),
        "read_cpu_s": _median(row["read"]["cpu_s"]),
        "pack_mb": _median(row["pack"]["peak_mb"]),
        "read_mb": _median(row["read"]["peak_mb"]),
        "rest_mb": _median(row["rest_mb"]),
    }


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The numbers of the points that no other beats, by their first coordinate.

    More is better in both. Of equal points the first is kept.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept[::-1]


def rows_of(result: Mapping[str, Any]) -> dict[str, dict[str, Row]]:
    """The rows by file and packer."""
    found: dict[str, dict[str, Row]] = {}
    for row in result["rows"]:
        found.setdefault(row["file"], {})[row["packer"]] = row
    return found


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def model_pays_from(ours: Row, theirs: Row, model_bytes: int) -> float | None:
    """Bytes of such a file from which we are smaller although the model counts; None: never."""
    saved = (theirs["archive_bytes"] - ours["archive_bytes"]) / ours["bytes"]
    return model_bytes / saved if saved > 0 else None


def markdown(result: Mapping[str, Any]) -> str:
    """All of a run: one table a file, and what one must know to read it."""
    setting = result["settings"]
    against = result["against"]
    lines = [
        "# lmfs beside what one would use instead",
        "",
        "Written by `python -m lmfs_tools.bench.peers`, which says how it measures. "
        f"{result['machine']}; {setting['threads']} threads where a program has them; "
        f"{setting['rounds']} round{'s' * (setting['rounds'] > 1)} in turns, medians; "
        f"{setting['date']}.",
    ]
    if result["note"]:
        lines += ["", f"**{result['note']}**"]
    lines += [
        "",
        f"*× faster* is against `{against}`, round by round. *mount*: until the mount answers. "
        "*first*: opening the file, and the first read. *4 KiB*: further reads at random, each "
        "from another 64 KiB of the file; programs without random access unpack from the start to "
        "get there. "
        "*MB*: peak memory, 8 where it is less; *rest*: that of a mount before its first read. "
        f"The model that comes with lmfs, {result['model_bytes']:,} bytes, is in no ratio here.",
    ]
    for file, rows in rows_of(result).items():
        size = next(iter(rows.values()))["bytes"]
        lines += [
            "",
            f"## {file}, {size:,} bytes",
            "",
            f"| | {' | '.join(title for title, _, _ in COLUMNS)} |",
            f"| --- |{' ---: |' * len(COLUMNS)}",
        ]
        for name, row in rows.items():
            if "failed" in row:
                lines.append(f"| {name} | {row['failed']} |{' |' * (len(COLUMNS) - 1)}")
                continue
            found = figures(row, rows.get(against))
            cells = [number(found[key], digits) for _, key, digits in COLUMNS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## Programs", ""]
    lines += [f"- {name}: {version}" for name, version in result["versions"].items()]
    if result["absent"]:
        lines += ["", "Absent, so not measured:", ""]
        lines += [f"- {one['packer']}: needs {one['needs']}" for one in result["absent"]]
    lines += ["", "## Commands", ""]
    for one in result["packers"]:
        parts = [f"`{one[key]}`" for key in ("pack", "mount", "unpack") if one[key]]
        lines.append(f"- {one['packer']}: {'; '.join(parts)}")
    return "\n".join(lines) + "\n"
