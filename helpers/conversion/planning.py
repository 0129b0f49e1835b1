"""What will be done, and whether it can be: everything that can be known is found out before a byte is moved."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..errors import RecipeError, Rejected
from ..redaction import known_secrets, reveals_secret
from ..safe import short_name
from ..settings import Settings
from . import rules
from .inputs import Source, assets_of, sources
from .services import Services, connect, storage
from .storing import Store

#: A converted product may say another time than its source: Sentinel-2's names have that of the whole datatake.
TIMES = timedelta(hours=1)


@dataclass(frozen=True)
class Plan:
    """What will be done with one item; or, with ``problems``, why nothing will."""

    id: str
    name: str  #: short, to tell it from others
    source: str  #: where the item has its place
    item: dict
    product_type: str = ""  #: of EOPF
    asset_names: list[str] | None = None  #: that are the product; None: all
    staging: str = ""  #: collection that it is staged into ...
    staged: str = ""  #: ... and folder of that: s3://bucket/owner/collection
    collection: str = ""  #: that the converted product goes to ...
    output: str = ""  #: ... and folder of that
    interval: str | None = None  #: in which the converted product will be found
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """The parameters of a run that say what should become of the items; see `flow.on_demand_conversion`."""

    inputs: Any
    collection: str | list[dict]
    dask_cluster_label: str
    product_type: str = rules.ANY
    staging_collection: str | None = None
    owner: str | None = None

    @property
    def generated(self) -> list[dict]:
        """Rows as for `rules.collection_for`."""
        if not isinstance(self.collection, str):
            return self.collection
        return [{"name": self.product_type, "product_type": rules.ANY, "collection_name": self.collection}]

    def staging_of(self, collection: str) -> str:
        """The collection that products wait in which will go to ``collection``."""
        return self.staging_collection or f"{collection}-staging"


def check(settings: Settings, inputs: Any, **parameters: Any) -> list[Plan]:
    """Find out whether a run can work, without one; the plan for each item.

    ``parameters``: those of `flow.on_demand_conversion` that are in :class:`Wanted`.

    Raises
    ------
    Rejected
        All that is wrong, of the whole run or of single items.
    """
    plans = plan(Wanted(inputs, **parameters), connect(settings), Store(storage(settings)))
    if problems := [f"{one.id or one.source}: {problem}" for one in plans for problem in one.problems]:
        raise Rejected.because("Not everything can be converted", problems)
    return plans


def plan(wanted: Wanted, services: Services, store: Store) -> list[Plan]:
    """A plan for every item; those with problems will not be touched.

    Raises
    ------
    Rejected
        The run as a whole cannot work: all problems at once.
    """
    problems = _general(wanted, services) + services.alive()
    bucket_rules: list[list[str]] = []
    try:
        bucket_rules = services.rules()
    except RecipeError as error:
        problems.append(f"the bucket rules cannot be read: {error}")
    if problems:
        raise Rejected.because("Nothing was staged", problems)
    checked: dict[Any, str | RecipeError] = {}

    def once(question: Any, ask: Callable[[], str]) -> str:
        """The answer to what many items ask; raises what it raised the first time."""
        if question not in checked:
            try:
                checked[question] = ask()
            except RecipeError as error:
                checked[question] = error
        answer = checked[question]
        if isinstance(answer, RecipeError):
            raise answer
        return answer

    def folder(collection: str, product_type: str) -> str:
        bucket = once(
            (collection, product_type),
            lambda: rules.bucket_for(bucket_rules, services.owner, collection, product_type),
        )
        place = f"s3://{bucket}/{services.owner}/{collection}"
        once(place, lambda: store.probe(place) or "")
        return place

    return [_plan(source, wanted, folder) for source in sources(wanted.inputs, services.read)]


def _general(wanted: Wanted, services: Services) -> list[str]:
    problems = []
    if not services.owner:
        problems.append("RSPY_OWNER_ID is not set: whose collections are they?")
    elif wanted.owner and rules.stripped(wanted.owner) != services.owner:
        problems.append(
            f"owner is {wanted.owner!r}, RSPY_OWNER_ID makes it {services.owner!r}: the services go by the latter"
        )
    if not wanted.dask_cluster_label:
        problems.append("dask_cluster_label is not set: the conversion service asks for it")
    if not services.token:
        problems.append("JUPYTERHUB_API_TOKEN is not set: the conversion service asks for it")
    collections = [row.get("collection_name") for row in wanted.generated] + [wanted.staging_collection]
    problems += [
        f"{name!r} is no name of a collection: letters, digits, '.', '_', '-'"
        for name in dict.fromkeys(filter(None, collections))
        if not rules.COLLECTION.fullmatch(name)
    ]
    problems += [
        f"products would be staged into {name!r}, where converted ones go: cleaning up the one could take the other"
        " along. Choose another staging_collection."
        for name in dict.fromkeys(map(wanted.staging_of, filter(None, collections)))
        if name in collections[:-1]
    ]
    try:
        check_secrets(wanted.inputs)
    except Rejected as error:
        problems.append(str(error))
    return problems


def check_secrets(given: Any) -> None:
    """Make sure that the inputs can be stored as they are.

    Raises
    ------
    Rejected
        There is a secret in them.
    """
    if reveals_secret(given, known_secrets()):
        raise Rejected("The inputs hold a secret (a signed link, a token), which Prefect would store: remove it.")


def _plan(source: Source, wanted: Wanted, folder: Callable[[str, str], str]) -> Plan:
    item, about = source.item, source.item.get("properties") or {}
    if source.problem:
        name = short_name(source.id) if source.id else source.link.partition("?")[0].rstrip("/").rpartition("/")[2]
        return Plan(source.id, name, source.link, item, problems=(source.problem,))
    problems: list[str] = []

    def found[Answer](ask: Callable[[], Answer], otherwise: Answer) -> Answer:
        try:
            return ask()
        except RecipeError as error:
            problems.append(str(error))
            return otherwise

    product_type = found(lambda: rules.eopf_type(about.get("product:type")), "")
    collection = found(lambda: rules.collection_for(product_type, wanted.generated), "") if product_type else ""
    staging = wanted.staging_of(collection)
    output = found(lambda: folder(collection, product_type), "") if collection else ""
    # It is staged as what it is now: the services look for the old type's bucket.
    staged = found(lambda: folder(staging, about["product:type"]), "") if collection else ""
    return Plan(
        id=source.id,
        name=short_name(source.id),
        source=source.link,
        item=item,
        product_type=product_type,
        asset_names=assets_of(item),
        staging=staging,
        staged=staged,
        collection=collection,
        output=output,
        interval=_interval(about),
        problems=tuple(dict.fromkeys(problems)),
    )


def _interval(about: dict) -> str | None:
    """Where in time to look for the converted product; None: anywhere."""
    try:
        names = ("start_datetime", "datetime", "end_datetime")
        times = [datetime.fromisoformat(about[name]) for name in names if about.get(name)]
        times = [time if time.tzinfo else time.replace(tzinfo=UTC) for time in times]
    except (ValueError, TypeError):
        return None
    if not times:
        return None
    first, last = min(times) - TIMES, max(times) + TIMES
    return f"{first.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}/{last.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
