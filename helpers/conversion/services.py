"""The services of RS-PYTHON, one method for each request: staging, catalogue, conversion (DPR), bucket rules (OSAM).

Every request has a time-out; reading is repeated when it fails, writing is not (see :func:`helpers.http.harden`). The
API key goes to the services only, also when one of them redirects elsewhere.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from .. import http, objectstore
from ..errors import FailedRemotely, RecipeError, Rejected, TimedOut
from ..redaction import known_secrets, redact
from ..settings import Settings
from . import rules

KEY = "x-api-key"
STAGING, CONVERSION = "staging", "conv_safe_zarr"
#: States in which a job stays.
SUCCESSFUL, FAILED, DISMISSED = "successful", "failed", "dismissed"
FINISHED = (SUCCESSFUL, FAILED, DISMISSED)
#: Lines at the end of a job's log that are worth reading.
LOG_LINES = 8


class _Session(requests.Session):
    """One that leaves the API key behind when it is sent to another host; requests itself does so with passwords."""

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        if self.should_strip_auth(response.request.url, prepared_request.url):
            prepared_request.headers.pop(KEY, None)
        super().rebuild_auth(prepared_request, response)


@dataclass(frozen=True)
class Services:
    """The four services, for one owner. ``owner`` is in the catalogue's form: letters and digits."""

    staging: str
    catalog: str
    dpr: str
    osam: str
    owner: str
    session: requests.Session
    plain: requests.Session  #: for everybody else's addresses: knows no key
    token: str = ""  #: with which the DPR service reaches its clusters

    def __repr__(self) -> str:
        return f"Services({self.staging}, {self.catalog}, {self.dpr}, {self.osam}, owner={self.owner!r})"

    # --- what can be asked beforehand ---

    @property
    def headers(self) -> dict[str, str]:
        """What another client of these services has to send with its requests: the key. Never show it."""
        return {KEY: str(self.session.headers[KEY])} if KEY in self.session.headers else {}

    def alive(self) -> list[str]:
        """What is wrong with the services, as far as they tell beforehand; nothing, as it should be."""
        problems = []
        for url, process in ((f"{self.staging}/processes", STAGING), (f"{self.dpr}/processes", CONVERSION)):
            try:
                answer = _json(self.session.get(url))
                known = [one.get("id") for one in answer["processes"] if isinstance(one, dict)]
                if process not in known:
                    problems.append(f"{url} does not know {process}, but {', '.join(map(str, known)) or 'nothing'}")
            except (RecipeError, KeyError, TypeError) as error:
                problems.append(str(error) if isinstance(error, RecipeError) else f"{url} answers without processes")
        try:
            self.session.get(f"{self.catalog}/")
        except RecipeError as error:
            problems.append(str(error))
        return problems

    def rules(self) -> list[list[str]]:
        """The bucket rules, unchecked."""
        return _list(self.plain.get(f"{self.osam}/internal/configuration"))

    def read(self, url: str) -> Any:
        """JSON from any address; the API key is sent only if it is one of the services'."""
        ours = any(urlsplit(url).netloc == urlsplit(one).netloc for one in (self.staging, self.catalog, self.dpr))
        return _json((self.session if ours else self.plain).get(url))

    # --- jobs ---

    def stage(self, item: dict, collection: str, asset_names: list[str] | None) -> dict:
        """Ask for an item to be staged into ``collection``; the job, which may be over already."""
        inputs: dict[str, Any] = {
            "collection": collection,
            "items": {"value": {"type": "FeatureCollection", "features": [item]}},
        }
        if asset_names:
            inputs["asset_names"] = asset_names
        url = f"{self.staging}/processes/{STAGING}/execution"
        return _job(self.session.post(url, json={"inputs": inputs}))

    def convert(self, safe_uri: str, folder_uri: str, cluster_label: str, cluster_instance: str) -> dict:
        """Ask for a SAFE product to be converted into a Zarr below ``folder_uri``; the job."""
        body = {
            "input_safe_path": safe_uri,
            "output_zarr_dir_path": folder_uri,
            "jupyter_token": self.token,
            "cluster_label": cluster_label,
            "cluster_instance": cluster_instance,
        }
        return _job(self.session.post(f"{self.dpr}/processes/{CONVERSION}/execution", json=body))

    def job(self, service: str, job_id: str) -> dict | None:
        """A job of the "staging" or the "dpr" service; None if its record is gone."""
        try:
            return _job(self.session.get(f"{getattr(self, service)}/jobs/{job_id}"))
        except http.Refused as error:
            if error.status == 404:
                return None
            raise

    def jobs(self, service: str) -> list[dict]:
        """All jobs of a service; none where that cannot be asked."""
        try:
            answer = _json(self.session.get(f"{getattr(self, service)}/jobs"))
        except http.Refused:
            return []
        found = answer.get("jobs", []) if isinstance(answer, dict) else answer
        return [job for job in found if isinstance(job, dict) and "jobID" in job]

    def cancel(self, job_id: str) -> None:
        """End a conversion; nothing happens when it is over, or not known any more."""
        try:
            self.session.delete(f"{self.dpr}/jobs/{job_id}")
        except http.Refused as error:
            if error.status not in (404, 409):
                raise

    def listen(self, job_id: str, tell: Callable[[str], object]) -> None:
        """Pass on the lines of a conversion's log (server-sent events) as they come; returns when there are no more.

        What was said before is not kept by the service: who wants to know why a job failed listens while it runs.
        """
        options: dict[str, Any] = {"stream": True, "headers": {"Accept": "text/event-stream"}}
        # A log that cannot be had, or breaks off, is no reason for a job to fail.
        with (
            suppress(RecipeError, requests.RequestException),
            self.session.get(f"{self.dpr}/jobs/{job_id}/logs", **options) as answer,
        ):
            for line in answer.iter_lines(decode_unicode=True):
                if line.startswith("data:") and (text := line.removeprefix("data:").strip()):
                    tell(text)

    # --- catalogue ---

    def collection(self, name: str) -> bool:
        """Whether the owner has a collection of this name."""
        return self._get(self._collection(name)) is not None

    def add_collection(self, name: str, description: str) -> None:
        """Make a collection; nothing happens when it is there."""
        content = {
            "id": name,
            "type": "Collection",
            "owner": self.owner,
            "stac_version": "1.0.0",
            "description": description,
            "license": "other",
            "links": [],
            "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
        }
        try:
            self.session.post(f"{self.catalog}/collections", json=content)
        except http.Refused as error:
            if error.status != 409:
                raise

    def item(self, collection: str, item_id: str) -> dict | None:
        """An item of the owner's; None if there is none, or no such collection."""
        return self._get(self._item(collection, item_id))

    def add_item(self, collection: str, item: dict) -> None:
        """Publish a new item. Raises :class:`helpers.http.Refused` (409) when there is one of this id."""
        self.session.post(f"{self._collection(collection)}/items", json=item)

    def replace_item(self, collection: str, item: dict) -> None:
        """Put an item in the place of the one with the same id."""
        self.session.put(self._item(collection, item["id"]), json=item)

    def remove_item(self, collection: str, item_id: str) -> None:
        """Delete an item with the objects that its assets name; nothing happens when it is not there."""
        try:
            self.session.delete(self._item(collection, item_id))
        except http.Refused as error:
            if error.status != 404:
                raise

    def search(self, collection: str, datetime: str | None = None) -> Iterator[dict]:
        """The items of a collection, of an interval (RFC 3339, "from/to"): page after page."""
        from pystac_client.exceptions import APIError
        from pystac_client.item_search import ItemSearch
        from pystac_client.stac_api_io import StacApiIO  # here: a second and a half

        reader = StacApiIO()
        reader.session = self.session
        search = ItemSearch(
            f"{self.catalog}/search",
            method="GET",
            stac_io=reader,
            collections=[f"{self.owner}_{collection}"],
            datetime=datetime,
            limit=100,
        )
        try:
            yield from search.items_as_dicts()
        except APIError as error:
            cause = error.__cause__ or error.__context__
            if isinstance(cause, http.Refused) and cause.status == 404:
                return  # no such collection yet
            raise cause if isinstance(cause, RecipeError) else FailedRemotely(str(error)) from None

    def _get(self, url: str) -> dict | None:
        try:
            return _json(self.session.get(url))
        except http.Refused as error:
            if error.status == 404:
                return None
            raise

    def _collection(self, name: str) -> str:
        return f"{self.catalog}/collections/{self.owner}:{quote(name, safe='')}"

    def _item(self, collection: str, item_id: str) -> str:
        return f"{self._collection(collection)}/items/{quote(item_id, safe='')}"


def connect(settings: Settings) -> Services:
    """The configured services; nothing is sent yet.

    Raises
    ------
    NotConfigured
        Something is missing for a live run: all of it at once.
    """
    settings.require("rs-python")

    def host(field: str) -> str:
        return str(getattr(settings, field) or settings.conversion_api_url).rstrip("/")

    session, plain = http.harden(_Session()), http.harden(requests.Session())
    if settings.rspy_apikey:
        session.headers[KEY] = settings.rspy_apikey.get_secret_value()
    token = settings.jupyterhub_api_token
    return Services(
        staging=host("rspy_host_staging"),
        catalog=f"{host('rspy_host_catalog').removesuffix('/catalog')}/catalog",
        dpr=f"{host('rspy_host_dpr_service').removesuffix('/dpr')}/dpr",
        osam=host("rspy_host_osam"),
        owner=rules.stripped(settings.rspy_owner_id or ""),
        session=session,
        plain=plain,
        token=token.get_secret_value() if token else "",
    )


def storage(settings: Settings) -> Any:
    """An S3 client for the object storage that the services work on."""
    keys = settings.rspy_s3_access_key, settings.rspy_s3_secret_key
    there = objectstore.at(settings.rspy_s3_endpoint, *keys, settings, settings.rspy_s3_region)
    return objectstore.elsewhere(there, max_pool_connections=32)


def redacted(said: Any) -> Any:
    """What a service said, without secrets: it may name a signed link, and end in a log or a database."""
    return redact(said, known_secrets())


def _job(answer: requests.Response) -> dict:
    job = _json(answer)
    if not isinstance(job, dict) or not job.get("jobID") or not job.get("status"):
        raise FailedRemotely(f"{answer.request.method} {answer.url.partition('?')[0]} did not answer with a job.")
    return job


def _list(answer: requests.Response) -> list:
    content = _json(answer)
    if not isinstance(content, list):
        raise Rejected(f"{answer.url.partition('?')[0]} did not answer with a list.")
    return content


def _json(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except json.JSONDecodeError:
        where = answer.url.partition("?")[0]
        advice = "Is the address right (RSPY_WEBSITE, RSPY_HOST_...)?"
        raise Rejected(f"{where} did not answer with JSON. {advice}") from None
    except requests.RequestException as error:
        raise TimedOut(f"{answer.url.partition('?')[0]} broke off ({type(error).__name__}). Run again.") from None
