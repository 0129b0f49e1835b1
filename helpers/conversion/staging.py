"""A product comes into the object storage, out of its archive, and goes again with everything that belongs to it.

Each step can be repeated: it looks first what an earlier run, or an earlier try, has left.
"""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .. import safe
from ..errors import FailedRemotely, RecipeError, Rejected, TimedOut
from . import services as remote
from .planning import Plan
from .services import redacted
from .storing import folder_of
from .work import Damaged, Work, lost_job, tried


def stage(work: Work) -> dict:
    """The staged item. What an earlier run has staged is taken if it is really there, and cleared away otherwise.

    Raises
    ------
    FailedRemotely
        The job failed, or says that it did not and has staged nothing: worth another try.
    """
    plan = work.plan
    work.notes.save(staged={"collection": plan.staging, "folder": plan.staged})
    noted = work.notes.get("staging") or {}
    if noted and not noted.get("job"):
        noted = {"job": lost_job(work, "staging", noted["sent"])}
    if not noted.get("job"):
        if (item := _staged_whole(work)) is not None:
            return item
        remove_staged(work)
        noted = {"job": _start_staging(work)}
    job = work.wait("staging", noted["job"])
    work.notes.save(staging=None)  # whatever became of it, no other run has to wait for it
    if job and job["status"] != remote.SUCCESSFUL:
        raise FailedRemotely(f"staging {job['status']}: {redacted(job.get('message')) or 'no reason is given'}")
    if (item := _staged_whole(work)) is None:
        told = redacted(job.get("message")) if job else "its record is gone"
        raise FailedRemotely(f"staging says that it is done ({told}), but {plan.id} is not in {plan.staging}")
    return item


def _start_staging(work: Work) -> str | None:
    sent = datetime.now(UTC).isoformat()
    work.notes.save(staging={"sent": sent})
    try:
        job = work.services.stage(work.plan.item, work.plan.staging, work.plan.asset_names)["jobID"]
    except (TimedOut, FailedRemotely):
        # It may have been taken all the same.
        if (found := lost_job(work, "staging", sent)) is None:
            work.notes.save(staging=None)
            raise
        job = found
    except Rejected:
        work.notes.save(staging=None)
        raise
    work.notes.save(staging={"sent": sent, "job": job})
    return job


def _staged_whole(work: Work) -> dict | None:
    """The staged item, if all that it names is in the storage."""
    item = work.services.item(work.plan.staging, work.plan.id)
    if item is None or not item.get("assets"):
        return None
    for asset in item["assets"].values():
        found = work.store.objects(asset["href"])
        size = asset.get("file:size")
        if not found or not all(found.values()) or (size and len(found) == 1 and sum(found.values()) != size):
            return None
    return item


def unpack(work: Work, item: dict) -> str:
    """Bring the SAFE product out of its archive, next to it in the storage; returns its root there.

    The archive goes when everything has been found right: the files against the manifest's checksums here, their sizes
    in the storage. A product that is not packed is looked at in the same way.

    Raises
    ------
    Damaged
        The archive, or what is in it, is not the product.
    """
    store, plan = work.store, work.plan
    hrefs = {key: asset["href"] for key, asset in item["assets"].items()}
    archives = {key: href for key, href in hrefs.items() if safe.is_archive(href)}
    if not archives:
        there = {uri: size for href in hrefs.values() for uri, size in store.objects(href).items()}
        manifest = store.manifest(there)
        if wrong := store.incomplete(manifest):
            raise Damaged(f"what was staged is not whole: {wrong}")
        work.bytes_in = work.bytes_in or sum(store.objects(folder_of(manifest)).values())
        return folder_of(manifest)
    if len(archives) > 1:
        raise Rejected(f"several archives were staged: {', '.join(archives)}")
    ((key, archive),) = archives.items()
    shutil.rmtree(work.scratch, ignore_errors=True)  # of a run that was killed
    local = store.download(archive, work.scratch / archive.rpartition("/")[2])
    work.bytes_in = local.stat().st_size
    try:
        root = safe.root_of(safe.unpack(local, work.scratch / "unpacked"))
        if wrong := safe.verify(root):
            raise Rejected(f"{len(wrong)} files differ from the manifest, the first: {wrong[0]}")
    except Rejected as error:
        raise Damaged(f"the archive that was staged is damaged: {error}") from None
    local.unlink()  # room for what comes
    folder = folder_of(archive)
    if folder.rpartition("/")[2] == plan.id:
        folder = folder_of(folder)
    target = f"{folder}/{root.name if root.suffix in ('.SAFE', '.SEN3') else f'{plan.id}.SAFE'}"
    work.notes.save(safe=target)
    store.upload(root, target)
    shutil.rmtree(work.scratch)
    manifest = next(name for name in safe.MANIFESTS if store.has(f"{target}/{name}"))
    asset = {"href": f"{target}/{manifest}", "title": root.name, "type": "application/xml", "roles": ["data"]}
    others = {name: each for name, each in item["assets"].items() if name != key}
    work.services.replace_item(plan.staging, item | {"assets": others | {"product": asset}})
    store.remove(archive)
    return target


def remove_staged(work: Work, thoroughly: bool = False) -> list[str]:
    """Remove the staged item with everything that belongs to it; what could not be removed, if ``thoroughly``.

    Raises
    ------
    RecipeError
        Something could not be removed; not if ``thoroughly``.
    """
    plan = work.plan
    folders = [f"{plan.staged}/{name}" for name in _folders_of(plan.id)]
    left = []
    doing: list[tuple[str, Callable[[], Any]]] = []
    try:
        item = work.services.item(plan.staging, plan.id)
    except RecipeError:
        item = {}  # perhaps: removing it will tell
    if item is not None:
        folders += [place for asset in item.get("assets", {}).values() if (place := _below(asset.get("href"), plan))]
        what = f"the item {plan.id} in {work.services.owner}:{plan.staging}"
        doing.append((what, lambda: work.services.remove_item(plan.staging, plan.id)))
    folders += [place for place in [work.notes.get("safe")] if place]
    doing += [(folder, lambda folder=folder: work.store.remove(folder)) for folder in dict.fromkeys(folders)]
    for what, do in doing:
        if thoroughly:
            left += tried(work, what, do)
        else:
            do()
    return left


def _folders_of(item_id: str) -> list[str]:
    """Names that a staged product's folders have: of the staging service's, and of the unpacked tree."""
    stem = item_id.removesuffix(".SAFE").removesuffix(".SEN3")
    return list(dict.fromkeys([item_id, f"{stem}.SAFE", f"{stem}.SEN3"]))


def _below(href: str | None, plan: Plan) -> str:
    """The folder of an asset, if it certainly holds nothing but this product; "" otherwise."""
    parts = (href or "").split("/")
    names = _folders_of(plan.id)
    at = next((n for n, part in enumerate(parts) if n > 2 and part in names), None)
    return "/".join(parts[: at + 1]) if at else ""
