"""How the files of a store are frozen: which model, and that it stays with them; what mounts want.

Owns: the store's configuration key "model", that a model is kept with all that it needs, and the
wishes that a mount is given for what is frozen through it.
Imports lmfs.models and the store. Any thread may call it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..container import MAX_CHUNK_SIZE
from ..errors import DamagedError, UnknownModelError, UsageError
from .store import Store

if TYPE_CHECKING:
    from ..models.package import ModelPackage

MODEL_KEY = "model"
WAY_BACK = "`lmfs learn STORE --use base-8` freezes with the model that lmfs ships again"
NO_MODEL = "none"
LEVEL_NUMBERS = range(1, 10)

_ID = re.compile(r"[0-9a-f]{32}")


class Wishes(NamedTuple):
    """How a mount wants files to be frozen that are frozen through it; None: nothing said.

    model: the name of a model that lmfs ships, the id of one in hexadecimal, or NO_MODEL
    chunk: bytes
    """

    level: int | None = None
    model: str | None = None
    chunk: int | None = None

    @classmethod
    def read(cls, said: object) -> Wishes:
        """What `as_dict` gave, perhaps in another version. raises: UsageError"""
        if not isinstance(said, Mapping):
            return cls()
        wishes = cls(*(said.get(field) for field in cls._fields))
        for field, allowed in (("level", LEVEL_NUMBERS), ("chunk", range(1, MAX_CHUNK_SIZE + 1))):
            value = getattr(wishes, field)
            if value is not None and (type(value) is not int or value not in allowed):
                expected = f"{allowed.start} to {allowed.stop - 1}"
                raise UsageError(field, expected=expected, got=value)
        if wishes.model is not None and not isinstance(wishes.model, str):
            raise UsageError("model", expected="a name or an id", got=wishes.model)
        return wishes

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}


NO_WISHES = Wishes()


def model_called(store: Store, name: str) -> ModelPackage | None:
    """The package that `Wishes.model` means; None for no model.

    raises: ModelError, UnknownModelError for one that is not here
    """
    from ..models import registry

    if name == NO_MODEL:
        return None
    if _ID.fullmatch(name):
        return registry.find(bytes.fromhex(name), [store.models])
    return registry.shipped(name)


def freezing_model(store: Store) -> ModelPackage:
    """The package that new frozen files of the store are coded with: its own, or the shipped one.

    raises: UnknownModelError, ModelError for a model of its own that is lost; DamagedError
    """
    from ..models import registry

    chosen = store.config.get(MODEL_KEY)
    if chosen is None:
        return registry.shipped()
    try:
        model_id = bytes.fromhex(chosen)
    except (ValueError, TypeError) as error:
        raise DamagedError(
            "store description", where=store.path, expected="a model's id", got=chosen, do=WAY_BACK
        ) from error
    try:
        return registry.find(model_id, [store.models])
    except UnknownModelError as error:
        raise UnknownModelError(
            "the model that this store is to be frozen with is not here",
            where=store.path,
            expected=error.expected,
            do=f"copy its package into .lmfs/models; {WAY_BACK}",
        ) from error


def use_model(store: Store, package: ModelPackage | None) -> None:
    """Freeze with this model from now on; with the shipped one if None. Frozen files stay.

    raises: OSError
    """
    if package is not None:
        pin(store, package)
    store.configure(MODEL_KEY, None if package is None else package.id.hex())


def pin(store: Store, package: ModelPackage) -> None:
    """Copy a package and all that it needs into the store, durably. raises: OSError"""
    for needed in package.together:
        store.pin_model(needed.id, needed.path)
