"""What is not the result goes, whether there is a result or not; and in the end the results, if they are not wanted."""

import shutil
from pathlib import Path

from ..errors import Rejected
from ..settings import Settings
from ..state import RunState
from .converting import discard
from .planning import Plan
from .publishing import zarr_of
from .services import connect, storage
from .staging import remove_staged
from .storing import Store
from .work import Notes, Work, tried


def tidy(work: Work, zarr: str | None) -> list[str]:
    """Remove what is not the result: the staged product, failed attempts, files on this disk.

    ``zarr`` is the published one, if any. Returns what could not be removed, and why. Never raises.
    """
    left = []
    shutil.rmtree(work.scratch, ignore_errors=True)
    for attempt in work.notes.get("attempts") or []:
        if work.unsure and attempt.get("zarr"):
            left.append(f"{attempt['zarr']}: kept, as it may be published; run again to find out")
        elif not (zarr and zarr.startswith(f"{attempt['folder']}/")):
            left += tried(work, attempt["folder"], lambda attempt=attempt: discard(work, attempt))
    if not work.keep_staged:
        left += remove_staged(work, thoroughly=True)
    if job := (work.notes.get("staging") or {}).get("job"):
        left.append(f"staging job {job}: it cannot be stopped; run again when it is over, to remove what it stages")
    if not left:
        work.notes.save(staged=None, safe=None, attempts=None)
    return left


def unfinished(work: Work) -> bool:
    """Whether an earlier run has left something to clean up."""
    return any(work.notes.get(key) for key in ("staging", "staged", "safe", "attempts"))


def clean_up(state: RunState, settings: Settings) -> dict[str, int]:
    """Take the products that a run has published out of the catalogue and the storage, and whatever else it left there.

    Products that it found published already stay. Files of the run on this disk are in the folder that it has noted, if
    it has (``state.save(folder=...)``). Can be repeated, also after being killed half-way.

    Returns
    -------
    How many ``items`` and ``objects`` of published products were deleted, and ``files`` here.

    Raises
    ------
    Rejected
        All that could not be removed, and why: run again.
    """
    state.save(cleaning=True)
    counts, left = {"items": 0, "objects": 0, "files": 0}, []
    if items := state.get("items", {}):  # a run without services needs none to be cleaned up
        services, store = connect(settings), Store(storage(settings))
    for item_id, noted in items.items():
        notes = Notes(state, item_id)
        staged, published = noted.get("staged") or {}, noted.get("published")
        if published:
            counts["objects"] += store.remove(published["zarr"])
            there = services.item(published["collection"], published["item"])
            if there and zarr_of(there) == published["zarr"]:
                services.remove_item(published["collection"], published["item"])
                counts["items"] += 1
            notes.save(published=None)
        if staged:
            plan = Plan(item_id, item_id, "", {}, staging=staged["collection"], staged=staged["folder"])
            left += tidy(
                Work(
                    plan,
                    services,
                    store,
                    notes,
                    scratch=state.path.parent / "scratch" / state.path.stem / item_id,
                    poll=settings.rspy_poll_seconds,
                ),
                None,
            )
    if left:
        raise Rejected.because("Not everything could be removed; run again", left)
    if (noted := state.get("folder")) and (folder := Path(noted)).is_dir():
        counts["files"] = sum(path.is_file() for path in folder.rglob("*"))
        shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    state.save(cleaned=True)
    return counts
