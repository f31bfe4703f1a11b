"""`python -m lmfs_tools.fuzz`: see the package."""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess

import numpy as np

from lmfs.models import registry
from lmfs.native import Mixer, MixerProfile
from lmfs.profile import profile_by_number

from . import __doc__ as about

SANITIZERS = "fuzzer,address,undefined"
TEXTS = (b"", b"one line\nanother line\n" * 20, bytes(range(256)), b"2026-11-23 12:00:01 up\n" * 9)


def build(folder: pathlib.Path) -> pathlib.Path:
    target = folder / "fuzz-mix"
    source = pathlib.Path(__file__).with_name("mix.cpp")
    flags = ["-std=c++20", "-O1", "-g", f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
    subprocess.run(["clang++", *flags, source, "-o", target], check=True)
    return target


def seeds(folder: pathlib.Path) -> None:
    """Inputs that decode, behind primers of all lengths."""
    two = profile_by_number(2)
    profile = MixerProfile(two.mixer_data, two.mixer_sizes, (9, 4, 5))
    vocabulary = registry.shipped().tokenizer().vocabulary
    for number, primer in enumerate(TEXTS):
        for chunk in TEXTS[1:]:
            for in_front in (0, 2):
                mixer = Mixer(profile, vocabulary)
                head = primer[: len(primer) // 16 * 16]
                if head:
                    mixer.prime(head, 127 + in_front // 2)
                if in_front:
                    mixer = mixer.branch()
                size = (len(chunk) - 1) // 8 * 8 + 1
                blob = mixer.encode(chunk[:size])
                data = bytes([252 + in_front, (size - 1) // 8, len(head) // 16]) + head + blob
                (folder / f"seed-{number}-{len(chunk)}-{in_front}").write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seconds", type=int, default=3600)
    args = parser.parse_args()
    inputs = args.folder / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    target = build(args.folder)
    seeds(inputs)
    tokenizer = registry.shipped().tokenizer()
    spellings = [tokenizer.spell(np.array([k], np.uint16)) for k in range(len(tokenizer))]
    files = {
        "LMFS_FUZZ_VOCABULARY": b"".join(bytes([len(token)]) + token for token in spellings),
        "LMFS_FUZZ_PROFILE": profile_by_number(2).mixer_data,
    }
    for name, content in files.items():
        (args.folder / name).write_bytes(content)
    environment = os.environ | {name: str(args.folder / name) for name in files}
    # Time is the clock's, and a machine may be busy.
    options = ["-max_len=4096", "-timeout=300", "-rss_limit_mb=2048", "-print_final_stats=1"]
    options.append(f"-artifact_prefix={args.folder}/")
    limit = f"-max_total_time={args.seconds}"
    subprocess.run([target, limit, *options, inputs], check=True, env=environment)


if __name__ == "__main__":
    main()
