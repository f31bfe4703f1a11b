"""README says what is so."""

from __future__ import annotations

import re

import pytest
from lmfs_tools import readme


@pytest.mark.parametrize("path", readme.PARTS, ids=lambda path: path.parent.name)
def test_generated_parts_are_up_to_date(path):
    assert readme.generated(path) == path.read_text()


def test_errno_and_exit_codes_are_unique():
    classes = readme.error_classes()
    assert len({one.exit_code for one in classes}) == len(classes)
    assert len({one.errno for one in classes}) == len(classes)


def test_files_that_the_readme_names_exist():
    text = readme.README.read_text()
    root = readme.README.parent
    for name in re.findall(r"`((?:lmfs|tools|tests)/[\w./-]+)`", text):
        assert (root / name).exists(), name
    for name in re.findall(r"\]\((?!http)([\w./-]+)\)", text):
        assert (root / name).exists(), name
