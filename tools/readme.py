"""Write the generated parts of README.md: what was measured, and the table of errors.

    python -m lmfs_tools.readme [--check]

Owns: what stands between `<!-- NAME -->` and `<!-- /NAME -->` there.
"""

from __future__ import annotations

import argparse
import errno
import json
import pathlib
import re

from lmfs import errors

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
RESULTS = pathlib.Path(__file__).with_name("bench") / "results"


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
    """The measured tables, from the files that the benchmarks wrote."""
    ratio = json.loads((RESULTS / "ratio.json").read_text())
    speed = json.loads((RESULTS / "speed.json").read_text())
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
    engine = {"NativeEngine": "lmfs's own"}.get(speed.get("engine", ""), "ONNX Runtime")
    worst = max(abs(row["coder_percent"]) for row in ratio["rows"])
    lines += [
        "",
        f"The model, `{ratio['model'][:8]}`, is shipped once: {ratio['model_bytes']:,} bytes, "
        "which are not in these figures; `lmfs status` counts them. The coder adds at most "
        f"{worst:.2f} % to the model's own code length.",
        "",
        f"Speed ({speed['processor']}; medians; the inference engine is {engine}):",
        "",
        "| file | encode KB/s | freeze KB/s | read KB/s | random 4 KiB, p50 ms |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    names = ("encode_kb_s", "freeze_kb_s", "read_kb_s", "random_p50_ms")
    for row in speed["rows"]:
        lines.append(f"| {row['file']} | {' | '.join(str(row[name]) for name in names)} |")
    parts = []
    for lanes, spent in speed["us_a_token"].items():
        share = spent["engine"] / sum(spent.values())
        parts.append(f"{sum(spent.values()):.0f} µs at {lanes} lanes ({share:.0%} the engine)")
    lines += ["", f"A token costs {', '.join(parts)}. CUDA: not yet measured on a GPU."]
    return "\n".join(lines)


def generated(text: str) -> str:
    """`text` with its generated parts as they should be."""
    parts = {"errors": errors_table(), "figures": figures()}
    for name, content in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, count = re.subn(pattern, lambda m, c=content: m[1] + c + m[2], text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{README}: expected one part named {name}, got {count}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if it would")
    args = parser.parse_args()
    text = README.read_text()
    new = generated(text)
    if args.check and new != text:
        raise SystemExit(f"{README} is out of date: run python -m lmfs_tools.readme")
    README.write_text(new)


if __name__ == "__main__":
    main()
