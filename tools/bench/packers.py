"""What is measured against each other: how each packs a file and gives it back, as a user types it.

Owns: the commands, what they need and where Debian has it. Runs nothing. All commands are run in
a folder where the file is called `data`; mounts appear in `mnt` and show it as `data` again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

STRONGEST, LARGE_CHUNK_KIB = 9, 64
SQUASHFS_KIB = (16, 128, 1024)
FRAME_KIB = (16, 64)


@dataclasses.dataclass(frozen=True)
class Packer:
    """One program with one setting. `mount` gives random access, `unpack` all from the start."""

    name: str
    kind: str  # "lmfs", "seek": others that reach any place, or "whole": those that do not
    programs: tuple[str, ...]
    source: str  # what to install to have them
    pack: str
    archive: str  # what it packs to
    unpack: str = ""  # to standard output
    mount: str = ""  # in the foreground
    prepare: str = ""  # before each packing, not measured

    def with_threads(self, threads: int) -> Packer:
        """Itself, with the number in its commands."""
        commands = {name: getattr(self, name) for name in ("pack", "unpack", "mount")}
        filled = {k: v.replace("{threads}", str(threads)) for k, v in commands.items()}
        return dataclasses.replace(self, **filled)

    @property
    def piece(self) -> str:
        """4 KiB from {offset} on, where only unpacking reaches them."""
        return f"{self.unpack} | tail -c +{{after}} | head -c 4096"


def lmfs(level: int, chunk_kib: int) -> Packer:
    """A file of a store; it is frozen in place, so the store is made anew each time."""
    large = "" if chunk_kib == 16 else f" {chunk_kib}K"
    return Packer(
        name=f"lmfs -{level}{large}",
        kind="lmfs",
        programs=("lmfs", "fusermount3"),
        source="this project; fuse3",
        prepare="rm -rf store && mkdir store && cp data store/data",
        pack=f"lmfs freeze --level {level} --chunk-size {chunk_kib << 10} store",
        archive="store/data",
        mount="lmfs mount -f store mnt",
    )


def squashfs(codec: str, option: str, block_kib: int) -> Packer:
    block = f"{block_kib}K" if block_kib < 1024 else f"{block_kib >> 10}M"
    return Packer(
        name=f"squashfs {codec} {block}",
        kind="seek",
        programs=("mksquashfs", "squashfuse"),
        source="squashfs-tools, squashfuse",
        pack=f"mksquashfs data data.sqfs -comp {codec} {option} -b {block} "
        "-noappend -nopad -quiet -no-progress -processors {threads}",
        archive="data.sqfs",
        mount="squashfuse -f data.sqfs mnt",
    )


def zstd_frames(kib: int, data: str, prefix: str = "") -> str:
    """Cut a file and pack the pieces each by itself; together they are one .zst."""
    return (
        f"{prefix}split -b {kib}K -a 6 {data} piece. && zstd -19 -q --rm piece.* && "
        f"cat piece.*.zst > {data}.zst && rm piece.*"
    )


def ratarmount(name: str, pack: str, archive: str, needs: str) -> Packer:
    return Packer(
        name=name,
        kind="seek",
        programs=("ratarmount", "tar", needs),
        source="ratarmount (pip), xz-utils, zstd",
        pack=pack,
        archive=archive,
        mount=f"ratarmount -f --index-file :memory: {archive} mnt",
    )


def dwarfs(name: str, options: str) -> Packer:
    return Packer(
        name=name,
        kind="seek",
        programs=("mkdwarfs", "dwarfs"),
        source="DwarFS, not in Debian",
        prepare="rm -rf tree && mkdir tree && ln data tree/data",
        pack=f"mkdwarfs -i tree -o data.dwarfs -f {options} --num-workers={{threads}} "
        "--no-progress --log-level=error",
        archive="data.dwarfs",
        mount="dwarfs data.dwarfs mnt -f -o workers={threads}",
    )


def whole(
    name: str, program: str, source: str, suffix: str, pack: str, unpack: str, prepare: str = ""
) -> Packer:
    archive = f"data.{suffix}"
    return Packer(name, "whole", (program,), source, pack, archive, unpack, prepare=prepare)


def everything(levels: Sequence[int], threads: int, seven_zip: str = "7z") -> list[Packer]:
    """All of them.

    levels: of lmfs; with the strongest, that one with large chunks as well
    threads: for those that take a number
    seven_zip: how the program is called here
    """
    ours = [lmfs(level, 16) for level in levels]
    if STRONGEST in levels:
        ours.append(lmfs(STRONGEST, LARGE_CHUNK_KIB))
    others = [
        whole(
            *("xz -9e", "xz", "xz-utils", "xz"),
            pack="xz -9e -T{threads} -c data > data.xz",
            unpack="xz -dc -T{threads} data.xz",
        ),
        whole(
            *("zstd -19", "zstd", "zstd", "zst"),
            pack="zstd -19 -q -T{threads} -c data > data.zst",
            unpack="zstd -dcq data.zst",
        ),
        *(
            whole(
                *(f"zstd -19 @{kib}K", "zstd", "zstd", "zst"),
                pack=zstd_frames(kib, "data"),
                unpack="zstd -dcq data.zst",
            )
            for kib in FRAME_KIB
        ),
        whole(
            *("bzip3", "bzip3", "bzip3", "bz3"),
            pack="bzip3 -e -j {threads} -c data > data.bz3",
            unpack="bzip3 -d -j {threads} -c data.bz3",
        ),
        whole(
            *("zpaq -m5", "zpaq", "zpaq", "zpaq"),
            prepare="rm -f data.zpaq",
            pack="zpaq a data.zpaq data -m5 -t{threads}",
            # it writes to files only, and not where an equal one is
            unpack="rm -f out && zpaq x data.zpaq data -to out -t{threads} >&2 && cat out",
        ),
        whole(
            *("7z PPMd", seven_zip, "p7zip-full or 7zip", "7z"),
            prepare="rm -f data.7z",
            pack=f"{seven_zip} a -m0=PPMd:o=16:mem=256m -mmt={{threads}} data.7z data",
            unpack=f"{seven_zip} x -so -bd data.7z",
        ),
        *(squashfs("xz", "-Xdict-size 100%", kib) for kib in SQUASHFS_KIB),
        *(squashfs("zstd", "-Xcompression-level 19", kib) for kib in SQUASHFS_KIB),
        ratarmount("ratarmount xz", "tar -I 'xz -9e' -cf data.tar.xz data", "data.tar.xz", "xz"),
        *(
            ratarmount(
                f"ratarmount zstd {kib}K",
                zstd_frames(kib, "data.tar", "tar -cf data.tar data && "),
                "data.tar.zst",
                "zstd",
            )
            for kib in FRAME_KIB
        ),
        dwarfs("dwarfs -l9", "-l9"),
        dwarfs("dwarfs 64K", "-l9 -S16"),
    ]
    return [packer.with_threads(threads) for packer in ours + others]


# How a program says its version, where it is not --version.
_ASKED = {
    "zpaq": "zpaq",
    "7z": "7z",
    "7zz": "7zz",
    "mksquashfs": "mksquashfs -version",
    "squashfuse": "squashfuse --help",
    "mkdwarfs": "mkdwarfs --help",
    "dwarfs": "dwarfs --help",
}


def version_command(program: str) -> str:
    return _ASKED.get(program, f"{program} --version")


def version_in(output: str) -> str:
    """The first line of a program's output that has a version in it."""
    for line in output.splitlines():
        if re.search(r"\d\.\d", line):
            return line.strip(" *")
    return "unknown"


def programs(packers: Iterable[Packer]) -> list[str]:
    """What they need, each once."""
    return sorted({program for packer in packers for program in packer.programs})
