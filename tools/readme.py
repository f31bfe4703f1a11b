"""Write the generated parts of README.md: the table of errors.

    python -m lmfs_tools.readme [--check]

Owns: what stands between `<!-- NAME -->` and `<!-- /NAME -->` there.
"""

from __future__ import annotations

import argparse
import errno
import pathlib
import re

from lmfs import errors

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


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


def generated(text: str) -> str:
    """`text` with its generated parts as they should be."""
    parts = {"errors": errors_table()}
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
