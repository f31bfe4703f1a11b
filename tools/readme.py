"""Write the generated parts of README.md and of the results' one: figures, the table of errors.

    python -m lmfs_tools.readme [--check]

Owns: what stands between `<!-- NAME -->` and `<!-- /NAME -->` there.
"""

from __future__ import annotations

import argparse
import errno
import json
import pathlib
import re
from collections.abc import Callable

from lmfs import errors
from lmfs.codecs.levels import DEFAULT_LEVEL

from .bench import report

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
RESULTS = pathlib.Path(__file__).resolve().with_name("bench") / "results"
RESULTS_README = RESULTS / "README.md"

OURS = f"lmfs -{DEFAULT_LEVEL}"
# README's short table: the packers' names, and what it calls them.
SHOWN = {
    OURS: f"**lmfs, level {DEFAULT_LEVEL}** (the default)",
    "lmfs -9 64K": "lmfs, level 9, chunks of 64 KiB",
    "ratarmount zstd 16K": "zstd -19 in frames of 16 KiB, ratarmount",
    "squashfs xz 128K": "squashfs, xz, 128 KiB",
    "xz -9e": "xz -9e",
    "zpaq -m5": "zpaq -m5",
}
SHOWN_FILES = 2


def error_classes() -> list[type[errors.LmfsError]]:
    """Every class of the tree, by exit code."""
    found, waiting = [], [errors.LmfsError]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += one.__subclasses__()
    return sorted(found, key=lambda one: one.exit_code)


def errors_table() -> str:
    rows = ["| exit code | errno | error | when |", "| --- | --- | --- | --- |"]
    for one in error_classes():
        when = (one.__doc__ or "").split("\n")[0].rstrip(".")
        name = errno.errorcode[one.errno]
        rows.append(f"| {one.exit_code} | {name} | `{one.__name__}` | {when} |")
    return "\n".join(rows)


def figures() -> str:
    """The picture and the short table, from what lmfs_tools.bench.peers wrote."""
    result = json.loads((RESULTS / "peers.json").read_text())
    files = dict(list(report.rows_of(result).items())[:SHOWN_FILES])
    rounds = result["settings"]["rounds"]
    lines = [
        "![Compression ratio against the speed of reading, for lmfs and other programs]"
        f"({(RESULTS / 'peers.svg').relative_to(README.parent)})",
        "",
        f"Cold, in one run ({result['machine']}; {rounds} round{'s' * (rounds > 1)}, medians; the "
        f"first {result['settings']['bytes']:,} bytes; [all programs and figures]"
        f"({(RESULTS / 'peers.md').relative_to(README.parent)})). xz and zpaq give no random "
        "access: for 4 KiB they unpack all before them.",
    ]
    if result["note"]:
        lines += ["", f"**{result['note']}**"]
    heads = [f"{file}, bits/byte | read KB/s | 4 KiB ms" for file in files]
    lines += ["", f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * 3 * len(files)}"]
    for name, title in SHOWN.items():
        rows = [rows.get(name, {"failed": "absent"}) for rows in files.values()]
        if any("failed" in row for row in rows):
            continue
        cells = []
        for row in rows:
            found = report.figures(row)
            cells += [
                report.number(found[key], digits)
                for key, digits in (("bits_per_byte", 3), ("read_kb_s", 0), ("random_p50_ms", 1))
            ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", _model_counted(files, result["model_bytes"])]
    return "\n".join(lines)


def _model_counted(files: dict[str, dict[str, report.Row]], model_bytes: int) -> str:
    """From how much text on lmfs is the smaller one even so."""
    said = []
    for other in ("xz -9e", "zpaq -m5"):
        amounts = []
        for file, rows in files.items():
            if all(name in rows and "failed" not in rows[name] for name in (OURS, other)):
                least = report.model_pays_from(rows[OURS], rows[other], model_bytes)
                amount = "never" if least is None else f"from {least / 1e6:,.0f} MB on"
                amounts.append(f"{amount} with text like {file}")
        if amounts:
            said.append(f"than `{other}` {', '.join(amounts)}")
    return (
        f"The model, {model_bytes:,} bytes, comes once with the program and is not in these "
        f"figures (`lmfs status` counts it). Counted, lmfs is smaller {'; '.join(said)}."
    )


def ratio_table() -> str:
    """Bits per byte of many files, from what lmfs_tools.bench.ratio wrote."""
    ratio = json.loads((RESULTS / "ratio.json").read_text())
    size = f"{ratio['chunk_bytes'] >> 10} KiB"
    lines = [
        "Bits per byte of the first MB (8 is no compression). *lmfs* is the whole `.lmz` at the "
        f"default level, {ratio['level']}, in chunks of {size}, any of which can be read by "
        f"itself; so does `zstd -19 @{ratio['chunk_bytes'] >> 10}K`. xz and zpaq get the whole "
        "and give no random access. *-9 64K* is the strongest level with chunks of 64 KiB; "
        "*model* the model alone, with no mixer and no primer.",
        "",
        f"| file | bytes | lmfs | -9 64K | zstd -19 @{ratio['chunk_bytes'] >> 10}K | xz -9e | "
        "zpaq -m5 | model |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in ratio["rows"]:
        names = ("lmfs", "-9 64K", "zstd19@", "xz9e", "zpaq5", "model")
        columns = [f"{row[name]:.3f}" for name in names]
        lines.append(f"| {row['file']} | {row['bytes']:,} | {' | '.join(columns)} |")
    worst = max(abs(row["coder_percent"]) for row in ratio["rows"])
    lines += [
        "",
        f"The model, `{ratio['model'][:8]}`, is shipped once: {ratio['model_bytes']:,} bytes, "
        "which are not in these figures; `lmfs status` counts them. The coder adds at most "
        f"{worst:.2f} % to the model's own code length.",
    ]
    return "\n".join(lines)


def speed_table() -> str:
    """How fast lmfs is inside, from what lmfs_tools.bench.speed wrote."""
    speed = json.loads((RESULTS / "speed.json").read_text())
    engine = {"NativeEngine": "lmfs's own"}.get(speed.get("engine", ""), "ONNX Runtime")
    lines = [
        f"Speed ({speed['processor']}; medians; the inference engine is {engine}):",
        "",
        "| file | encode KB/s | freeze KB/s | read KB/s | with one thread | times | "
        "random 4 KiB, p50 ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rates = ("encode_kb_s", "freeze_kb_s", "read_kb_s", "read_1_kb_s")
    names = (*rates, "times", "random_p50_ms")
    for row in speed["rows"]:
        lines.append(f"| {row['file']} | {' | '.join(str(row[name]) for name in names)} |")
    parts = []
    for lanes, spent in speed["us_a_token"].items():
        share = spent["engine"] / sum(spent.values())
        parts.append(f"{sum(spent.values()):.0f} µs at {lanes} lanes ({share:.0%} the engine)")
    lines += ["", f"A token costs {', '.join(parts)}. CUDA: not yet measured on a GPU."]
    return "\n".join(lines)


# The generated parts of each file.
PARTS: dict[pathlib.Path, dict[str, Callable[[], str]]] = {
    README: {"errors": errors_table, "figures": figures},
    RESULTS_README: {"ratio": ratio_table, "speed": speed_table},
}


def generated(path: pathlib.Path) -> str:
    """A file with its generated parts as they should be."""
    text = path.read_text()
    for name, content in PARTS[path].items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        new = content()
        text, count = re.subn(pattern, lambda m, c=new: m[1] + c + m[2], text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{path}: expected one part named {name}, got {count}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if it would")
    args = parser.parse_args()
    for path in PARTS:
        new = generated(path)
        if not args.check:
            path.write_text(new)
        elif new != path.read_text():
            raise SystemExit(f"{path} is out of date: run python -m lmfs_tools.readme")


if __name__ == "__main__":
    main()
