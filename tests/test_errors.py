"""The error tree: unique numbers, readable messages, and what documents say about them."""

from __future__ import annotations

import errno
import inspect
import os

import pytest

import lmfs.cli
from lmfs import errors
from lmfs.cli import app
from lmfs.errors import DamagedError, LmfsError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, LmfsError)
]


def test_every_class_has_an_errno_and_an_exit_code_of_its_own():
    assert len({c.errno for c in CLASSES}) == len(CLASSES)
    assert len({c.exit_code for c in CLASSES}) == len(CLASSES)
    assert all(0 < c.exit_code < 64 for c in CLASSES)
    assert all(c.errno in errno.errorcode for c in CLASSES)


def test_damage_is_an_input_output_error():
    assert DamagedError.errno == errno.EIO


@pytest.mark.parametrize("cls", CLASSES)
def test_the_tree_in_the_docstring_lists_every_class(cls):
    line = next(x for x in errors.__doc__.splitlines() if cls.__name__ in x.split())
    assert line.split(cls.__name__)[1].split()[0] == str(cls.exit_code)
    assert cls.__doc__


def test_the_help_lists_every_exit_code():
    codes = app._EPILOG.partition("Exit codes:")[2].replace("\n", " ").split(",")
    listed = {int(code.split()[0].strip(".")) for code in codes}
    assert {c.exit_code for c in CLASSES} <= listed


def test_a_message_has_all_its_parts():
    error = LmfsError("what", where="/a", expected=1, got=2, do="do this")
    assert str(error) == "what: /a: expected 1, got 2; do this"
    assert (error.what, error.where, error.expected, error.got, error.do) == (
        *("what", "/a", 1, 2),
        "do this",
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "what"),
        ({"where": "/a"}, "what: /a"),
        ({"got": 0}, "what: got 0"),
        ({"expected": "x"}, "what: expected x"),
        ({"do": "this"}, "what; this"),
    ],
)
def test_a_message_leaves_out_what_is_not_known(parts, message):
    assert str(LmfsError("what", **parts)) == message


def test_the_command_line_words_errors_of_the_system():
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/nowhere")
    assert lmfs.cli.message(error) == "/nowhere: No such file or directory"
    assert lmfs.cli.exit_code(error) == 1
    assert lmfs.cli.exit_code(DamagedError("x")) == 5
