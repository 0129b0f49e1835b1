"""The sandbox's clock: real time that a test can push forward or hold still."""

from datetime import UTC, datetime, timedelta
from threading import Lock


class Clock:
    """Wall-clock time plus whatever was added with :meth:`advance`.

    Parameters
    ----------
    frozen_at:
        Hold the clock at this moment (timezone-aware); it then moves only by :meth:`advance`.
        ``None`` lets it run with real time, as a workshop wants it.
    """

    def __init__(self, frozen_at: datetime | None = None):
        self._frozen_at = frozen_at
        self._added = timedelta()
        self._lock = Lock()

    def now(self) -> datetime:
        """The sandbox's present, in UTC."""
        with self._lock:
            return (self._frozen_at or datetime.now(UTC)) + self._added

    def advance(self, seconds: float) -> datetime:
        """Move the clock forward by ``seconds`` (never back) and return the new present.

        Raises
        ------
        ValueError
            If ``seconds`` is negative: states that were reached cannot be un-reached.
        """
        if seconds < 0:
            raise ValueError(f"the clock only moves forward, got {seconds} s")
        with self._lock:
            self._added += timedelta(seconds=seconds)
        return self.now()
