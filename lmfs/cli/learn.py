"""`lmfs learn`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from ..codecs.levels import DEFAULT_LEVEL
from ..errors import EngineError, StoreError, UsageError
from ..models import registry
from ..models.package import SUFFIX, ModelPackage
from ..store import sample
from ..store.freezing import freezing_model, use_model
from ..store.learning import Verdict, judge
from ..store.locate import locate
from ..store.marks import Marks
from ..store.store import Store
from .progress import ByteProgress, ShareProgress

app = typer.Typer()

TRAINER = "lmfs_tools.learn"  # needs torch: only loaded here, and by nobody else
NEEDED = ("torch", "onnx", "onnxruntime")
HELD_OUT_BYTES = 1 << 20
# No machine that this is meant for learns more in a minute, in pieces.
PIECES_A_MINUTE = 256


@app.command(name="learn")
def command(
    path: Annotated[str, typer.Argument(metavar="STORE", help="A store, mounted or not.")],
    minutes: Annotated[
        float, typer.Option(min=0.01, help="How long to learn; measuring comes on top.")
    ] = 10.0,
    level: Annotated[
        int, typer.Option(min=5, max=9, help="What the store's files are to be frozen with.")
    ] = DEFAULT_LEVEL,
    seed: Annotated[
        int, typer.Option(help="Which files are held out, and what is learned in what order.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Learn and measure, but keep nothing.")
    ] = False,
    use: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Learn nothing: freeze with this model from now on. base-8, the one that lmfs "
            "ships, or the id of one in the store.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Fit the model to a store's own text, and keep that if it pays for itself.

    The model that lmfs ships learns from a sample of the store's text for some minutes. What it
    learned is stored as a small difference to it. Some files of every kind are held out, never
    learned from: they are frozen, to nowhere, with the model in use and with the new one. The new
    one is kept if what it saves on them, extrapolated to all text of the store, is more than its
    own bytes. Often it is not: then you are told from how much text on it would be.

    A model that is kept lies in the store's .lmfs/models and is used for what is frozen from then
    on. Files that are frozen already stay as they are; `lmfs thaw` and then `lmfs freeze` code
    them anew. The way back is --use base-8.

    Needs a C compiler and PyTorch: pip install 'lmfs\\[train]'.
    """
    place = locate(path, create=use is None and not dry_run)
    with place.store as store:
        if place.path != ".":
            raise UsageError(
                "a part of a store", where=path, do=f"learn from the whole: {store.path}"
            )
        if use is not None:
            _use(store, use, as_json)
            return
        trainer = load_trainer()
        marks = Marks(store)
        try:
            with tempfile.TemporaryDirectory(prefix="lmfs-learn-") as folder:
                _learn(marks, trainer, Path(folder), minutes, level, seed, dry_run, as_json)
        finally:
            marks.close()


def load_trainer() -> Any:
    """The part that needs PyTorch. raises: EngineError that says what to install"""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            "learning needs packages that are not installed",
            expected=", ".join(NEEDED),
            got=f"no {' and no '.join(missing)}",
            do="pip install 'lmfs[train]'",
        )
    if shutil.which("cc") is None:
        raise EngineError("learning needs a C compiler", expected="cc", do="install gcc or clang")
    return importlib.import_module(TRAINER)


def _learn(
    marks: Marks,
    trainer: Any,
    folder: Path,
    minutes: float,
    level: int,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    store = marks.store
    base, now = registry.shipped(), freezing_model(store)
    divided = sample.split(sample.text_files(marks), seed, HELD_OUT_BYTES)
    if not divided.held_out:
        raise StoreError(
            "too little text to learn from",
            where=store.path,
            expected=f"two text files of one suffix and of {sample.MIN_FILE_BYTES:,} bytes or more",
            got=f"{len(divided.learned)} text files",
        )
    places = sample.pieces(divided.learned, seed, round(max(1, minutes * PIECES_A_MINUTE)))
    with ShareProgress("learning") as bar:
        learned = trainer.fine_tune(
            base,
            sample.texts(marks, places),
            len(places) * sample.PIECE_BYTES,
            seconds=minutes * 60,
            rank=trainer.rank_for(divided.total_bytes),
            seed=seed,
            progress=bar.reach_share,
        )
    card = {
        "name": f"{base.name}+{store.id.hex()[:8]}",
        "training": f"{base.name}, and {learned.text_bytes:,} bytes of a store",
    }
    package = trainer.export_difference(base, learned.model, folder / f"learned{SUFFIX}", card)
    total = 2 * sum(min(f.size, sample.HELD_OUT_FILE_BYTES) for f in divided.held_out)
    with ByteProgress("measuring", total) as bytes_bar:
        verdict = judge(marks, divided, now, package, level=level, progress=bytes_bar.advance)
    keep = verdict.pays and not dry_run
    if keep:
        use_model(store, package)
    if as_json:
        print(json.dumps(_plain(learned, now, package, level, seed, verdict, keep), indent=1))
    else:
        _print(store, learned, now, package, level, verdict, keep)


def _use(store: Store, name: str, as_json: bool) -> None:
    package = None
    if name != registry.DEFAULT_MODEL:
        try:
            model_id = bytes.fromhex(name)
        except ValueError:
            package = registry.shipped(name)
        else:
            package = registry.find(model_id, [store.models])
    use_model(store, package)
    used = freezing_model(store)
    if as_json:
        print(json.dumps({"model": used.id.hex(), "name": used.name}, indent=1))
    else:
        print(
            f"what is frozen from now on is coded with {used.name}; frozen files stay as they are"
        )


def _plain(
    learned: Any,
    now: ModelPackage,
    package: ModelPackage,
    level: int,
    seed: int,
    verdict: Verdict,
    kept: bool,
) -> dict[str, Any]:
    return {
        "kept": kept,
        "pays": verdict.pays,
        "model": package.id.hex(),
        "model_before": now.id.hex(),
        "level": level,
        "seed": seed,
        "learned_bytes": learned.text_bytes,
        "learned_seconds": round(learned.seconds, 1),
        "prequential_bits_per_byte": learned.prequential_bits / max(1, learned.text_bytes),
        "compared_bytes": learned.compared_bytes,
        "compared_before_bits_per_byte": learned.before_bits / max(1, learned.compared_bytes),
        "compared_after_bits_per_byte": learned.after_bits / max(1, learned.compared_bytes),
        "package_bytes": verdict.package_bytes,
        "held_out_text_bytes": verdict.text_bytes,
        "held_out_before_bytes": verdict.before_bytes,
        "held_out_after_bytes": verdict.after_bytes,
        "store_text_bytes": verdict.store_bytes,
        "extrapolated_saving_bytes": verdict.saving_bytes,
        "break_even_bytes": verdict.break_even_bytes,
        "families": verdict.family_bytes,
        "held_out": [asdict(one) for one in verdict.measured],
    }


def _print(
    store: Store,
    learned: Any,
    now: ModelPackage,
    package: ModelPackage,
    level: int,
    verdict: Verdict,
    kept: bool,
) -> None:
    plain = _plain(learned, now, package, level, 0, verdict, kept)
    print(
        f"learned from {decimal(learned.text_bytes)} of {decimal(verdict.store_bytes)} of text "
        f"in {learned.seconds:.0f} s\n"
        f"  prequential code length: {plain['prequential_bits_per_byte']:.3f} bits a byte; "
        f"on a quarter of it {plain['compared_after_bits_per_byte']:.3f}, "
        f"without learning {plain['compared_before_bits_per_byte']:.3f}\n"
        f"held out: {len(verdict.measured)} files, of each at most the first "
        f"{decimal(sample.HELD_OUT_FILE_BYTES)}, {decimal(verdict.text_bytes)}; at level {level} "
        f"{verdict.before_bytes:,} bytes with {now.name}, {verdict.after_bytes:,} with what was "
        f"learned\n"
        f"package: {verdict.package_bytes:,} bytes, a difference; exact\n"
        f"on all text of the store, extrapolated from the held-out files: "
        f"{_saving(verdict.saving_bytes)}"
    )
    if verdict.break_even_bytes is None:
        print("not kept: it saves nothing")
    elif not verdict.pays:
        print(
            f"not kept: it would pay from {decimal(verdict.break_even_bytes)} of such text on, "
            f"here are {decimal(verdict.store_bytes)}"
        )
    elif not kept:
        print(f"it would be kept: it pays from {decimal(verdict.break_even_bytes)} of such text on")
    else:
        where = shlex.quote(store.path)
        print(
            f"kept: it pays from {decimal(verdict.break_even_bytes)} of such text on; what is "
            f"frozen from now on is coded with it\n"
            f"frozen files stay as they are; to code them anew: lmfs thaw {where}; "
            f"lmfs freeze {where}\n"
            f"the way back: lmfs learn {where} --use {registry.DEFAULT_MODEL}"
        )


def _saving(saved: int) -> str:
    return f"saves {decimal(saved)}" if saved >= 0 else f"costs {decimal(-saved)} more"
