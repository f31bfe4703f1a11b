"""Proofs that a store and its mount lose nothing: with real mounts, real programs, real kills.

    python -m lmfs_tools.torture.fsx FOLDER --operations N   random operations against a model
    python -m lmfs_tools.torture.crash FOLDER                kill, or an error, at every system call
    python -m lmfs_tools.torture.power FOLDER                the power goes at every system call
    python -m lmfs_tools.torture.programs FOLDER             fio, git, SQLite, rsync, tar
    python -m lmfs_tools.torture.load FOLDER --seconds N     many readers and writers

Owns: what is done to lmfs there, and what must come out. README.md has what was run, and when.
Every tool exits 1 and says what differs; the tests run a short part of each.
"""
