"""Which model the files of a store are frozen with, and that it stays with them.

Owns: the store's configuration key "model", and that a model is kept with all that it needs.
Imports lmfs.models and the store. Any thread may call it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DamagedError, UnknownModelError
from .store import Store

if TYPE_CHECKING:
    from ..models.package import ModelPackage

MODEL_KEY = "model"
WAY_BACK = "`lmfs learn STORE --use base-1` freezes with the model that lmfs ships again"


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
