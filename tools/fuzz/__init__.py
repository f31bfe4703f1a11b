"""Fuzzing of the decoders with libFuzzer, address and undefined-behaviour sanitizers.

    python -m lmfs_tools.fuzz FOLDER [--seconds N]

Owns: how the target in mix.cpp is built, its first inputs and its run. FOLDER keeps the inputs that
reached something new, so a later run goes on from there; a crash leaves its input there. Needs
clang++ with compiler-rt.
"""
