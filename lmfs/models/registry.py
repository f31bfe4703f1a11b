"""Where models are found: the shipped ones, the stores', the user's.

Owns: the search order and the table of shipped packages. Imports no engine. Thread-safe.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator, Sequence

from ..errors import ModelError, UnknownModelError
from .package import SUFFIX, ModelPackage, base_of, read_card

SHIPPED_FOLDER = pathlib.Path(__file__).with_name("shipped")
DEFAULT_MODEL = "base-8"
PATH_VARIABLE = "LMFS_MODEL_PATH"


def shipped(name: str = DEFAULT_MODEL) -> ModelPackage:
    """A package that came with lmfs; raises ModelError for an unknown name."""
    path = SHIPPED_FOLDER / f"{name}{SUFFIX}"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in SHIPPED_FOLDER.glob(f"*{SUFFIX}")))
        raise ModelError("no such shipped model", got=name, expected=f"one of {known}")
    return _load(path)


def find(model_id: bytes, search: Sequence[pathlib.Path] = ()) -> ModelPackage:
    """The package with this id: from `search` (files or folders), LMFS_MODEL_PATH, or shipped.

    In folders of `search`, mostly a store's, symlinks are not followed: they may lead out of it.
    Raises UnknownModelError that says where lmfs looked, also for the base of a difference;
    ModelError for a damaged package.
    """
    places = [*search, *_environment(), SHIPPED_FOLDER]
    return _find(model_id, places, search, differences=True)


def load(path: pathlib.Path | str) -> ModelPackage:
    """The package in this file; a difference with its base, found as `find` does, beside it first.

    raises: ModelError, UnknownModelError for a base that is not here, OSError
    """
    return _load(pathlib.Path(path))


def _find(
    model_id: bytes,
    places: Sequence[pathlib.Path],
    search: Sequence[pathlib.Path],
    *,
    differences: bool,
) -> ModelPackage:
    for path in _candidates(places, model_id):
        if path.parent in search and path.is_symlink():
            continue
        if not differences and base_of(read_card(path), path) is not None:
            continue
        try:
            package = _load(path)
        except UnknownModelError:  # a difference without its base
            if path.stem == model_id.hex():
                raise
            continue
        if package.id == model_id:
            return package
    raise UnknownModelError(
        "the model that this file needs is not here",
        where=", ".join(str(p) for p in places),
        expected=f"model {model_id.hex()}",
        do=f"copy its {SUFFIX} package into a folder named in {PATH_VARIABLE}",
    )


def file_name(package: ModelPackage) -> str:
    """What a store calls its copy of the package."""
    return f"{package.id.hex()}{SUFFIX}"


def _candidates(places: Sequence[pathlib.Path], model_id: bytes) -> Iterator[pathlib.Path]:
    """Packages in the places, those whose name is the id first; of shipped ones the newest."""
    named = f"{model_id.hex()}{SUFFIX}"
    files = [p for p in places if p.is_file()]
    folders = [p for p in places if p.is_dir()]
    yield from (folder / named for folder in folders if (folder / named).is_file())
    yield from files
    for folder in folders:
        yield from sorted((p for p in folder.glob(f"*{SUFFIX}") if p.name != named), reverse=True)


def _environment() -> list[pathlib.Path]:
    return [pathlib.Path(p) for p in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if p]


def _load(path: pathlib.Path) -> ModelPackage:
    stat = path.stat()
    return _load_unchanged(path, stat.st_size, stat.st_mtime_ns)


def _find_base(folder: pathlib.Path, model_id: bytes) -> ModelPackage:
    return _find(model_id, [folder, *_environment(), SHIPPED_FOLDER], [folder], differences=False)


@functools.lru_cache(maxsize=8)
def _load_unchanged(path: pathlib.Path, size: int, mtime_ns: int) -> ModelPackage:
    return ModelPackage.load(path, functools.partial(_find_base, path.parent))
