"""What a run leaves for others: a record for schedulers, a manifest for S3 Batch Operations."""

import csv
import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from .look import CLASHING
from .planning import Plan
from .run import COPIED, Outcome
from .store import COPY_LIMIT
from .verifying import Check


def summary(
    plan: Plan, outcomes: Iterable[Outcome] = (), checks: Iterable[Check] = (), path: Path | None = None
) -> dict:
    """What a run did, as JSON, also written to ``path``; its ``exit_code`` is 1 if anything asked for is not there."""
    outcomes, bad = list(outcomes), [check for check in checks if check.verdict != "ok"]
    failed = [outcome for outcome in outcomes if outcome.outcome != COPIED]
    contested = plan.counts()[CLASHING] if plan.clash == "error" else 0
    nothing = bool(plan.files) and not plan.wanted and not contested
    record = {
        "target": str(plan.target) if isinstance(plan.target, Path) else plan.target.address,
        # Whose products they are: `python -m helpers reset` removes archives only of those that a sandbox made up.
        "service": plan.source.settings.service_name("hyp3"),
        "began": plan.now.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": plan.counts(),
        "outcomes": dict(Counter(outcome.outcome for outcome in outcomes)),
        "bytes": sum(outcome.bytes for outcome in outcomes if outcome.outcome == COPIED),
        "failed": [{"target": outcome.target, "reason": outcome.reason} for outcome in failed],
        "not_verified": [{"target": check.target, "verdict": check.verdict} for check in bad],
        "contested": contested,
        "verdict": _verdict(len(failed), len(bad), contested, nothing, len(plan.new) - len(outcomes)),
        "exit_code": int(bool(failed or bad or contested or nothing)),
    }
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        part.replace(path)
    return record


def _verdict(failed: int, bad: int, contested: int, nothing: bool, left: int) -> str:
    """What there is to do, in a sentence."""
    found = {
        f"{failed} files not brought: table and manifest say why; running again tries them": failed,
        f"{bad} files not as at the source: the table says which": bad,
        f'{contested} files have two sources: choose clash = "newest" or "first"': contested,
        "no job has a file with any of these suffixes: are they spelt right, with their capitals?": nothing,
    }
    fine = f"{left} files are still to be brought" if left else "everything is in the archive"
    return "; ".join(text for text, is_so in found.items() if is_so) or fine


def batch_manifest(plan: Plan, path: Path) -> int:
    """Write what is new or changed as a manifest for S3 Batch Operations (CSV: bucket, encoded key); how many lines.

    For more than about a million objects. Mind that its *Copy* operation keeps the whole key behind the prefix that
    it is given: files arrive as ``<prefix>/<job id>/<file name>``, not in the layout of this archive, and the next plan
    calls them new. To keep the layout, use the operation *Invoke AWS Lambda* and copy to the last part of each key.
    Copy takes objects up to 5 GiB ("Copy objects", S3 user guide): larger ones, and those that only a link leads to,
    are not in the manifest and remain for ``transfer``.
    """
    fit = [file for file in plan.new if not file.url and file.size <= COPY_LIMIT]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((one.bucket, quote(one.key, safe="/")) for one in fit)
    return len(fit)
