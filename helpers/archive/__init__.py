"""Archive the products of a HyP3 project in a bucket: plan what is missing, transfer it, verify what arrived.

    hyp3, content = connect(settings), Place(settings, "hyp3-contentbucket", anonymous=True)
    target = Place(settings, "my-archive", "archive/HKHwatermaps")
    todo = archive.plan(archive.find(hyp3, "HKHwatermaps"), ["_VV.tif", "_WM.tif"], content, target)
    with archive.lock(target):
        outcomes = archive.transfer(todo)
    checks = archive.verify(todo, outcomes)
    archive.summary(todo, outcomes, checks)["exit_code"]

Each step can be used alone; only ``transfer`` changes anything. To a folder instead: the same plan with a ``Path`` as
target, and ``archive.to_disk(todo)``.
"""

from .disk import to_disk
from .locking import lock
from .look import File
from .planning import Plan, check, content_bucket, find, plan
from .reporting import batch_manifest, summary
from .run import Outcome, read_manifest
from .store import Place
from .transferring import transfer
from .verifying import Check, verify

__all__ = [
    "Check",
    "File",
    "Outcome",
    "Place",
    "Plan",
    "batch_manifest",
    "check",
    "content_bucket",
    "find",
    "lock",
    "plan",
    "read_manifest",
    "summary",
    "to_disk",
    "transfer",
    "verify",
]
