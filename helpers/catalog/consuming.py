"""A queue read to its end, or for ever: messages in hand are kept invisible, and deleted when they are committed."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import batched
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from .. import objectstore
from ..errors import RecipeError, Rejected, TimedOut
from ..progress import Progress
from ..settings import Settings
from .loading import Loader
from .store import Loaded
from .telling import some, told

#: Messages of one call to SQS, and calls at a time.
TEN, CALLS = 10, 8
#: Seconds that messages in hand stay invisible, unless that is renewed: after a kill they come again so late.
INVISIBLE = 60
#: Seconds between two tries of a database, or of SQS, that does not answer: first and at most; and until giving up.
FIRST, LONGEST, PATIENCE = 0.5, 30.0, 180.0
#: Seconds until a message comes again whose reason may go away by itself: first, doubled each time, and at most.
SOON, LATE = 5, 300


@dataclass
class Consumed:
    """What became of the messages."""

    messages: int = 0  #: received; one that came again counts again
    batches: int = 0
    items: Loaded = field(default_factory=Loaded)
    removed: int = 0  #: items taken out because their objects are gone
    failed: dict[str, str] = field(default_factory=dict)  #: message id -> reason, at its last try
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.messages:
            return f"no messages in {self.seconds:.1f} s"
        became = _became(self.items, self.removed, self.failed)
        return f"{some(self.messages, 'message')} in {self.seconds:.1f} s: {became}"


def _became(done: Loaded, removed: int, failed: Sized) -> str:
    return told(
        (done.stored, "item(s) stored"),
        (done.stale, "stale"),
        (done.duplicates, "duplicate(s)"),
        (removed, "removed"),
        (len(failed), "failed"),
        none="nothing to store",
    )


class Consumer:
    """One reader of one queue; see :func:`helpers.catalog.loading.consume`."""

    def __init__(
        self,
        queue_url: str,
        loader: Loader,
        settings: Settings,
        *,
        batch: int = 500,
        wait_seconds: float = 1.0,
        invisible: int = INVISIBLE,
        progress: Progress,
    ):
        self._queue, self._loader, self._batch, self._show = queue_url, loader, batch, progress
        self._wait, self._invisible = min(20, max(0, round(wait_seconds))), invisible
        self._sqs = objectstore.client("sqs", settings, max_pool_connections=2 * CALLS)
        self._stop = threading.Event()
        self._end, self._until_empty = float("inf"), False
        self._later: dict[str, float] = {}  # messages that come again, and when
        self._done = Consumed()

    def run(self, until: str | float | threading.Event) -> Consumed:
        """Work until then. Raises as :func:`helpers.catalog.loading.consume`."""
        began = time.monotonic()
        self._until_empty = until == "empty"
        if isinstance(until, threading.Event):
            self._stop = until
        elif not self._until_empty:
            self._end = began + float(until)
        with _terminated(self._stop), ThreadPoolExecutor(CALLS) as self._calls:
            while not self._over():
                held = self._gather()
                if held:
                    self._work(held)
                elif self._until_empty and not self._awaited():
                    break
                elif not self._wait:
                    self._stop.wait(0.2)
                self._done.seconds = time.monotonic() - began
        self._done.seconds = time.monotonic() - began
        for message, why in self._done.failed.items():
            self._show.gave_up(message, why)
        return self._done

    def _over(self) -> bool:
        return self._stop.is_set() or time.monotonic() >= self._end

    def _awaited(self) -> bool:
        """Whether messages are to come again; waits a little for them."""
        now = time.monotonic()
        self._later = {name: when for name, when in self._later.items() if when > now}
        if self._later:
            self._stop.wait(min(1.0, min(self._later.values()) - now))
        return bool(self._later)

    # --- SQS ---

    def _gather(self) -> list[dict]:
        """Messages of one load: after the first have come, what is there at once."""
        left = max(0, min(self._wait, self._end - time.monotonic()))
        found = self._patiently(lambda: self._receive(self._batch, round(left)))
        while found and (free := self._batch - len(found)) > 0 and not self._over():
            sizes = [min(TEN, free - start) for start in range(0, min(free, CALLS * TEN), TEN)]
            more = [one for some in self._calls.map(self._receive_more, sizes) for one in some]
            if not more:
                break
            found += more
        return found

    def _receive(self, most: int, wait: int) -> list[dict]:
        answer = self._sqs.receive_message(
            QueueUrl=self._queue,
            MaxNumberOfMessages=min(TEN, most),
            WaitTimeSeconds=wait,
            VisibilityTimeout=self._invisible,
            AttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
            MessageAttributeNames=["All"],
        )
        return answer.get("Messages", [])

    def _receive_more(self, most: int) -> list[dict]:
        """What is there at once; nothing when SQS fails: what came before it is worked on."""
        try:
            return self._receive(most, 0)
        except (BotoCoreError, ClientError):
            return []

    def _patiently(self, ask: Callable[[], list[dict]]) -> list[dict]:
        pause, began = FIRST, time.monotonic()
        while True:
            try:
                return ask()
            except ClientError as error:
                said = error.response["Error"]
                if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 and "Throttl" not in said["Code"]:
                    raise Rejected(f"SQS refuses to be read: {said['Code']}. Is the queue there, and yours?") from None
                problem = said["Code"]
            except BotoCoreError as error:
                problem = type(error).__name__
            if time.monotonic() - began > PATIENCE:
                raise TimedOut(f"SQS does not answer ({problem}). Nothing is lost: run this again later.")
            if self._stop.wait(pause) or self._over():
                return []
            pause = min(2 * pause, LONGEST)

    def _in_tens(self, call: Callable[..., Any], held: list[dict], seconds: list[int] | None = None) -> None:
        """``call`` for all messages, ten at a time. What SQS does not do of it does no harm: messages come again."""
        entries = [{"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(held)]
        if seconds is not None:
            entries = [{**one, "VisibilityTimeout": s} for one, s in zip(entries, seconds, strict=True)]

        def tell(ten: tuple[dict, ...]) -> None:
            try:
                call(QueueUrl=self._queue, Entries=list(ten))
            except (BotoCoreError, ClientError) as error:
                self._show(f"SQS did not take note ({type(error).__name__}): some messages will come again.")

        list(self._calls.map(tell, batched(entries, TEN, strict=False)))

    @contextmanager
    def _kept(self, held: list[dict]) -> Iterator[None]:
        """Keep messages invisible while they are worked on, however long that takes."""
        finished = threading.Event()

        def keep() -> None:
            while not finished.wait(self._invisible / 3):
                self._in_tens(self._sqs.change_message_visibility_batch, held, [self._invisible] * len(held))

        keeper = threading.Thread(target=keep, name="keeping messages", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            finished.set()
            keeper.join()

    # --- the work ---

    def _work(self, held: list[dict]) -> None:
        try:
            with self._kept(held):
                failed = self._load(held)
        except RecipeError:
            self._give_back(held)
            raise
        if failed is None:
            self._give_back(held)
        else:
            self._settle(held, failed)

    def _load(self, held: list[dict]) -> set[str] | None:
        """Ids of the messages that failed; None: stopped before the database answered."""
        pause, began = FIRST, time.monotonic()
        while True:
            try:
                return set(self._loader.load(held))
            except TimedOut as error:
                self._show(str(error))
                if self._stop.wait(pause):
                    return None
                # Without an end of its own, "empty" must not wait for ever.
                if self._over() or (self._until_empty and time.monotonic() - began > PATIENCE):
                    raise
                pause = min(2 * pause, LONGEST)

    def _give_back(self, held: list[dict]) -> None:
        self._in_tens(self._sqs.change_message_visibility_batch, held, [0] * len(held))

    def _settle(self, held: list[dict], failed: set[str]) -> None:
        """Delete what is committed, send back what failed, and say so."""
        self._in_tens(self._sqs.delete_message_batch, [one for one in held if one["MessageId"] not in failed])
        back = [one for one in held if one["MessageId"] in failed]
        seconds = [self._pause(one) for one in back]
        if back:
            self._in_tens(self._sqs.change_message_visibility_batch, back, seconds)
        now = time.monotonic()
        self._later |= {one["MessageId"]: now + s for one, s in zip(back, seconds, strict=True) if s}
        done = self._done
        done.messages, done.batches = done.messages + len(held), done.batches + 1
        done.removed += self._loader.removed
        done.items += replace(self._loader.loaded, refused={})  # those are in `failed`
        for one in held:
            done.failed.pop(one["MessageId"], None)
            if one["MessageId"] not in failed:
                self._show.finished(one["MessageId"])
        for one in back:
            self._show.tries_again(one["MessageId"])
        done.failed |= self._loader.reasons
        became = _became(self._loader.loaded, self._loader.removed, failed)
        self._show(f"{some(len(held), 'message')}: {became}")

    def _pause(self, one: dict) -> int:
        """Seconds until a failed message comes again."""
        if one["MessageId"] not in self._loader.passing:
            return 0
        tries = int(one.get("Attributes", {}).get("ApproximateReceiveCount", 1))
        return min(SOON * 2 ** (tries - 1), LATE)


@contextmanager
def _terminated(stop: threading.Event) -> Iterator[None]:
    """SIGTERM sets ``stop``; only the main thread may arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
