"""Every setting of the recipes, read once: the only place that looks at the process environment.

Order: what was given with :func:`provide`, process environment, then one ``.env_tutorial`` file, then the defaults
below. With the backend "sandbox" the endpoints and credentials are those of the offline services, whatever the rest
says.
"""

import atexit
import json
import netrc
import os
import re
import shutil
import sys
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import requests
from pydantic import AliasChoices, BaseModel, Field, HttpUrl, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from .errors import FailedRemotely, NotConfigured, TimedOut, bullets

PROJECT = Path(__file__).resolve().parent.parent
ENV_FILE = ".env_tutorial"
EARTHDATA_HOST = "urs.earthdata.nasa.gov"
#: How values begin, whole or after a "/" or ".", that somebody copied from an example and did not fill in.
PLACEHOLDER = re.compile(r"(?i)(?:your[-_ ]|<|xxx|yyyy|zzzz|changeme|replace[-_ ]?(?:me|this|with))")

#: The numbered variables of the published tutorial, with one option of a workflow each.
ADDITIONAL = re.compile(r"HOOK_ADDITIONAL\d+")
#: Options of a workflow whose values are secret, by their names.
SECRET_NAME = re.compile(r"(?i)secret|password|token$|access_key")

#: Headings of the example file.
ALL, AWS, HYP3, DESTINE, CONVERSION, CATALOG = (
    "All recipes",
    "Amazon S3 (notebooks 1, 3 and 6; in 6 also SNS and SQS)",
    "HyP3 (notebooks 1, 3 and 4)",
    "DestinE Hook (notebook 2; files of the published tutorial work unchanged)",
    'Conversion with RS-PYTHON (notebook 5 with the converter "service"; with "here" it needs none of these)',
    "STAC catalogue (notebook 6)",
)
#: What a DSN of the catalogue begins with.
DSN_SCHEMES = ("postgresql://", "postgres://", "sqlite:///")

#: What can be asked for with `Settings.require`; the three after "destine" only for orders that need them.
Service = Literal[
    "earthdata",
    "aws",
    "destine",
    "destine user",
    "destine storage",
    "destine catalogue",
    "rs-python",
    "catalog",
    "catalog database",
]
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Url = Annotated[HttpUrl, "an http(s) URL"]


class Explained(BaseModel):
    """What the example file and the error messages say about one setting."""

    recipe: str  #: heading under which the example file lists it
    text: str  #: what it is
    get: str = ""  #: where to get it


def _setting(name: str, default: Any, recipe: str, text: str, *, get: str = "", also: tuple[str, ...] = ()) -> Any:
    return Field(
        default=default,
        validation_alias=AliasChoices(name, *also),
        description=text,
        json_schema_extra=Explained(recipe=recipe, text=text, get=get).model_dump(),
    )


class Settings(BaseSettings):
    """All settings, validated and frozen. Get one with :func:`load`; secrets are masked in its ``repr``."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True, case_sensitive=True
    )

    backend: Literal["sandbox", "live"] = _setting(
        "RECIPES_BACKEND",
        "sandbox",
        ALL,
        "sandbox: everything offline, no account needed. live: the real services, with the credentials below.",
    )
    sandbox_url: Url | None = _setting(
        "RECIPES_SANDBOX_URL",
        None,
        ALL,
        "Use a sandbox that somebody else started; empty: the one running on this machine, or a new one.",
        get="printed by `python -m helpers sandbox`",
    )
    sandbox_user: str | None = _setting(
        "RECIPES_SANDBOX_USER",
        None,
        ALL,
        "Who you are in a sandbox that you share with others: any name that nobody else there has. In a JupyterHub it"
        " is your name there (JUPYTERHUB_USER); empty elsewhere: everybody is the same person.",
    )
    state_dir: Path = _setting(
        "RECIPES_STATE_DIR",
        PROJECT / ".state",
        ALL,
        "Where runs remember what they submitted, so that running again does nothing twice.",
    )
    output_dir: Path = _setting("RECIPES_OUTPUT_DIR", PROJECT / "outputs", ALL, "Where downloads and reports go.")
    aws_profile: str | None = _setting(
        "AWS_PROFILE",
        None,
        AWS,
        "Profile of ~/.aws/config to use. Without profile and keys: boto3's default chain (SSO, roles, ...).",
    )
    aws_access_key_id: SecretStr | None = _setting(
        "AWS_ACCESS_KEY_ID", None, AWS, "Access key, if you use no profile.", get="AWS console > IAM"
    )
    aws_secret_access_key: SecretStr | None = _setting(
        "AWS_SECRET_ACCESS_KEY", None, AWS, "The key's secret.", get="AWS console > IAM"
    )
    aws_session_token: SecretStr | None = _setting("AWS_SESSION_TOKEN", None, AWS, "Session token of temporary keys.")
    aws_region: str = _setting(
        "AWS_REGION",
        "us-west-2",
        AWS,
        "Region of your bucket. HyP3 works in us-west-2: the same region saves time and transfer cost.",
        also=("AWS_DEFAULT_REGION",),
    )
    aws_endpoint_url: Url | None = _setting("AWS_ENDPOINT_URL", None, AWS, "Another S3 than Amazon's.")
    earthdata_token: SecretStr | None = _setting(
        "EARTHDATA_TOKEN",
        None,
        HYP3,
        f"NASA Earthdata Login token; or have a line for {EARTHDATA_HOST} in your .netrc.",
        get=f"https://{EARTHDATA_HOST} > Generate Token",
    )
    hyp3_api_url: Url = _setting(
        "HYP3_API_URL",
        "https://hyp3-api.asf.alaska.edu",
        HYP3,
        "The HyP3 deployment to talk to.",
    )
    hyp3_settle_seconds: Seconds = _setting(
        "HYP3_SETTLE_SECONDS",
        30.0,
        HYP3,
        "After a submission whose answer was lost: how long to look for its jobs before submitting again."
        " The API gateway gives up on a request after 29 s, so nothing can appear later.",
    )

    desp_username: str | None = _setting(
        "DESP_USERNAME",
        None,
        DESTINE,
        "User name of your DestinE account.",
        get="https://platform.destine.eu",
    )
    desp_password: SecretStr | None = _setting("DESP_PASSWORD", None, DESTINE, "Its password.")
    desp_totp_secret: SecretStr | None = _setting(
        "DESP_TOTP_SECRET",
        None,
        DESTINE,
        "Only if your account asks for one-time codes: the key (base32) that your authenticator app was set up with.",
    )
    dedl_client_id: str | None = _setting(
        "DEDL_CLIENT_ID", None, DESTINE, "A service account of the Data Lake, used before user name and password."
    )
    dedl_client_secret: SecretStr | None = _setting("DEDL_CLIENT_SECRET", None, DESTINE, "Its secret.")
    dedl_token: SecretStr | None = _setting(
        "DEDL_TOKEN", None, DESTINE, "A token that you have already, used before everything else; it ends after hours."
    )
    hook_api_url: Url = _setting(
        "HOOK_API_URL", "https://odp.data.destination-earth.eu/odata/v1/", DESTINE, "Root of the Hook service."
    )
    desp_auth_url: Url = _setting("DESP_AUTH_URL", "https://auth.destine.eu", DESTINE, "Where one logs in to DestinE.")
    dedl_auth_url: Url = _setting(
        "DEDL_AUTH_URL", "https://identity.data.destination-earth.eu", DESTINE, "Where the Data Lake gives its tokens."
    )
    hook_poll_seconds: Seconds = _setting(
        "HOOK_POLL_SECONDS", 5.0, DESTINE, "First pause between two looks at an order; it grows to a minute."
    )
    hook_settle_seconds: Seconds = _setting(
        "HOOK_SETTLE_SECONDS",
        30.0,
        DESTINE,
        "After an order whose answer was lost: how long to look for it before ordering again.",
    )
    hook_workflow: str = _setting("HOOK_WORKFLOW", "data-harvest", DESTINE, "The workflow to order.")
    hook_order_name: str = _setting("HOOK_ORDER_NAME", "first-order", DESTINE, "A name of your own for the order.")
    hook_collection_id: str = _setting(
        "HOOK_COLLECTION_ID",
        "",
        DESTINE,
        "Collection of the products, if the workflow asks for one (by default EO.ESA.DAT.SENTINEL-2.MSI.L1C).",
    )
    hook_data_id: str = _setting(
        "HOOK_DATA_ID",
        "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321.SAFE",
        DESTINE,
        "Products to order, separated by commas.",
    )
    hook_source_type: Literal["DESP", "EXTERNAL"] | None = _setting(
        "HOOK_SOURCE_TYPE", None, DESTINE, "DESP or EXTERNAL, for workflows that ask for it; empty: DESP."
    )
    hook_additional: Annotated[dict[str, str | int | float | bool | SecretStr], NoDecode] = _setting(
        "HOOK_ADDITIONAL1",
        {},
        DESTINE,
        'More options of the workflow, numbered: HOOK_ADDITIONAL1="NAME=timespan;VALUE=24;VALUE_TYPE=int", ...2=, ...',
    )
    hook_is_private_storage: bool = _setting(
        "HOOK_IS_PRIVATE_STORAGE",
        False,
        DESTINE,
        "True: into your own bucket. False: temporary storage, two weeks.",
    )
    hook_output_bucket: str | None = _setting("HOOK_OUTPUT_BUCKET", None, DESTINE, "Your bucket, if private.")
    hook_output_storage_url: Url = _setting(
        "HOOK_OUTPUT_STORAGE_URL", "https://s3.central.data.destination-earth.eu", DESTINE, "The S3 that it is in."
    )
    hook_output_storage_access_key: SecretStr | None = _setting(
        "HOOK_OUTPUT_STORAGE_ACCESS_KEY",
        None,
        DESTINE,
        "Access key of that bucket.",
        get="Islet storage > EC2 credentials",
    )
    hook_output_storage_secret_key: SecretStr | None = _setting(
        "HOOK_OUTPUT_STORAGE_SECRET_KEY", None, DESTINE, "Secret key of that bucket."
    )
    hook_external_catalogue_url: Url = _setting(
        "HOOK_EXTERNAL_CATALOGUE_URL",
        "https://hda.data.destination-earth.eu/stac/v2",
        DESTINE,
        "API of an external catalogue (source type EXTERNAL).",
    )
    hook_external_catalogue_type: Literal["STAC", "ODATA"] = _setting(
        "HOOK_EXTERNAL_CATALOGUE_TYPE", "STAC", DESTINE, "What kind of API that is: STAC or ODATA."
    )
    hook_external_token_url: Url | None = _setting(
        "HOOK_EXTERNAL_TOKEN_URL", None, DESTINE, "Token URL of the external catalogue."
    )
    hook_external_username: str | None = _setting(
        "HOOK_EXTERNAL_USERNAME", None, DESTINE, "User name at the external catalogue."
    )
    hook_external_password: SecretStr | None = _setting(
        "HOOK_EXTERNAL_PASSWORD", None, DESTINE, "Password at the external catalogue."
    )
    hook_external_client_id: str | None = _setting(
        "HOOK_EXTERNAL_CLIENT_ID", None, DESTINE, "Client id at the external catalogue."
    )
    hook_external_client_secret: SecretStr | None = _setting(
        "HOOK_EXTERNAL_CLIENT_SECRET",
        None,
        DESTINE,
        "Its secret, if it has one; without a user name, the client itself logs in.",
    )

    conversion_api_url: Url | None = _setting(
        "RSPY_WEBSITE",
        None,
        CONVERSION,
        "The RS-Server that stages, converts and catalogues.",
        get="whoever runs your RS-PYTHON",
    )
    rspy_apikey: SecretStr | None = _setting(
        "RSPY_APIKEY", None, CONVERSION, "Your API key there; empty for a local one, which asks for none."
    )
    rspy_owner_id: str | None = _setting(
        "RSPY_OWNER_ID", None, CONVERSION, "The owner of your collections there: the user that the key belongs to."
    )
    rspy_host_staging: Url | None = _setting(
        "RSPY_HOST_STAGING", None, CONVERSION, "The staging service, if it has an address of its own."
    )
    rspy_host_catalog: Url | None = _setting("RSPY_HOST_CATALOG", None, CONVERSION, "The catalogue, if it has.")
    rspy_host_dpr_service: Url | None = _setting(
        "RSPY_HOST_DPR_SERVICE", None, CONVERSION, "The service that converts (DPR), if it has."
    )
    rspy_host_osam: Url | None = _setting("RSPY_HOST_OSAM", None, CONVERSION, "The bucket rules (OSAM), if they have.")
    jupyterhub_api_token: SecretStr | None = _setting(
        "JUPYTERHUB_API_TOKEN",
        None,
        CONVERSION,
        "Token with which the service reaches your Dask clusters.",
        get="JupyterHub > Token; set by itself in a JupyterHub",
    )
    rspy_s3_endpoint: Url | None = _setting("S3_ENDPOINT", None, CONVERSION, "The object storage of that RS-Server.")
    rspy_s3_access_key: SecretStr | None = _setting("S3_ACCESSKEY", None, CONVERSION, "Access key there.")
    rspy_s3_secret_key: SecretStr | None = _setting("S3_SECRETKEY", None, CONVERSION, "Secret key there.")
    rspy_s3_region: str = _setting("S3_REGION", "sbg", CONVERSION, "Its region.")
    rspy_poll_seconds: Seconds = _setting(
        "RSPY_POLL_SECONDS", 5.0, CONVERSION, "First pause between two looks at a job; it grows to a minute."
    )
    station_url: Url | None = _setting(
        "RSPY_STATION_URL",
        None,
        CONVERSION,
        "STAC API that has the products to convert (of the sandbox, by default).",
    )
    prefect_api_url: Url | None = _setting(
        "PREFECT_API_URL", None, CONVERSION, "A Prefect server that shows and keeps the runs; empty: one is started."
    )

    catalog_dsn: SecretStr | None = _setting(
        "CATALOG_DSN",
        None,
        CATALOG,
        "Database of the catalogue, migrated by pgstac: postgresql:// with user, password, host, port and database;"
        " or sqlite:///FILE for the embedded store.",
        get="whoever runs your pgstac (with eoAPI: the secret of the database)",
    )
    catalog_api_url: Url | None = _setting(
        "CATALOG_API_URL",
        None,
        CATALOG,
        "The STAC API over that database.",
        get="whoever runs it (with eoAPI: .../stac)",
    )

    @field_validator("catalog_dsn")
    @classmethod
    def _is_a_dsn(cls, dsn: SecretStr | None) -> SecretStr | None:
        """One that the stores understand; libpq's other form (host=... password=...) is refused."""
        if dsn and not dsn.get_secret_value().startswith(DSN_SCHEMES):
            raise ValueError(f"must begin with one of {', '.join(DSN_SCHEMES)}")
        return dsn

    @field_validator("hook_additional", mode="before")
    @classmethod
    def _from_numbered_lines(cls, lines: dict[str, str]) -> dict[str, Any]:
        """Name and typed value of each HOOK_ADDITIONALn; values that are secret by their name are masked."""
        options, problems = {}, []
        for variable, line in lines.items():
            try:
                name, value = _option(line)
                options[name] = SecretStr(str(value)) if SECRET_NAME.search(name) else value
            except (ValueError, KeyError):  # without the value: it may be a secret
                kinds = "|".join(OPTION_TYPES)
                problems.append(f"{variable} is not NAME=...;VALUE=...;VALUE_TYPE={kinds} with a value of that type")
        if problems:
            raise ValueError("; ".join(problems))
        return options

    @field_validator("state_dir", "output_dir")
    @classmethod
    def _from_the_project(cls, path: Path) -> Path:
        """Relative paths start at the project, wherever the process runs."""
        return PROJECT / path.expanduser()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        *sources: PydanticBaseSettingsSource,
        **named: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return named["init_settings"], named["env_settings"], named["dotenv_settings"]

    _sandbox_id: str = ""  #: every start and every reset of a sandbox is a world of its own

    def service_name(self, recipe: str) -> str:
        """Which service a recipe talks to, as a folder name: state of one is never taken for another's.

        ``recipe``: "hyp3", "hook" or "conversion"; the sandbox is one world for all.
        """
        if self.backend == "live":
            url = getattr(self, f"{recipe}_api_url")
            return (urlsplit(str(url)).hostname if url else None) or "live"
        return f"sandbox-{self._sandbox_id}"

    def missing(self, *services: Service) -> list[str]:
        """What ``services`` lack: one line for each variable, its name first, and where to get it. Nothing is sent."""
        return list(dict.fromkeys(line for service in services for line in _missing(self, service)))

    def require(self, *services: Service) -> None:
        """Make sure that the credentials for ``services`` are there, before the first request.

        The sandbox's catalogue ("catalog", "catalog database") is started, unless it runs: seconds, the first time.

        Raises
        ------
        NotConfigured
            Naming every missing variable at once, and where to get it.
        FailedRemotely, TimedOut
            The sandbox's catalogue does not start; with the reason.
        """
        if missing := self.missing(*services):
            raise NotConfigured(
                "\n".join([f"The backend is live, but credentials are missing in {_where()}:", *bullets(missing)])
            )
        if {"catalog", "catalog database"} & {*services} and self.backend == "sandbox":
            start_catalogue(str(self.sandbox_url), self.sandbox_user)


def _option(line: str) -> tuple[str, str | int | float | bool]:
    """Name and value of ``NAME=...;VALUE=...;VALUE_TYPE=...``; the value may hold "=" and ";"."""
    found = re.fullmatch(r"\s*NAME=([^;=]+);VALUE=(.*?)(?:;VALUE_TYPE=(\w+))?\s*", line, re.DOTALL)
    if not found:
        raise ValueError(line)
    return found[1].strip(), OPTION_TYPES[(found[3] or "str").lower()](found[2])


def _yes_or_no(text: str) -> bool:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]


#: VALUE_TYPEs of HOOK_ADDITIONALn: the first two are the published tutorial's.
OPTION_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": _yes_or_no}


def _additional(file: Path | None) -> dict[str, str]:
    """The HOOK_ADDITIONALn that are set, by name, in the order of their numbers."""
    from dotenv import dotenv_values

    found = (dotenv_values(file) if file else {}) | os.environ
    lines = {name: line for name, line in found.items() if ADDITIONAL.fullmatch(name) and line}
    return dict(sorted(lines.items(), key=lambda item: int(item[0].removeprefix("HOOK_ADDITIONAL"))))


def aws_session(settings: Settings) -> Any:
    """A boto3 session: keys if they are set, else the profile, else boto3's default chain.

    Raises
    ------
    botocore.exceptions.ProfileNotFound
        There is no such profile.
    """
    import boto3  # only where it is needed: commands that do not talk to AWS need not wait for it
    import botocore.session

    if settings.aws_access_key_id and settings.aws_secret_access_key:
        token = settings.aws_session_token
        # Without this, a profile named in the environment would be looked for even though keys are given.
        no_profile = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
        # One loader for all: reading the description of S3 anew takes as long as five requests.
        no_profile.register_component("data_loader", _loader())
        return boto3.Session(
            botocore_session=no_profile,
            aws_access_key_id=settings.aws_access_key_id.get_secret_value(),
            aws_secret_access_key=settings.aws_secret_access_key.get_secret_value(),
            aws_session_token=token.get_secret_value() if token else None,
            region_name=settings.aws_region,
        )
    return boto3.Session(profile_name=settings.aws_profile, region_name=settings.aws_region)


@cache
def _loader() -> Any:
    from botocore.loaders import create_loader

    return create_loader()


def _missing(settings: Settings, service: str) -> list[str]:
    if service == "earthdata":
        if settings.earthdata_token or _netrc_has(EARTHDATA_HOST):
            return []
        return [_wanted("earthdata_token")]
    if service == "destine" and (settings.dedl_token or (settings.dedl_client_id and settings.dedl_client_secret)):
        return []
    if service in ("destine", "destine user"):
        fields = ["desp_username", "desp_password"]
    elif service == "destine storage":
        fields = ["hook_output_storage_access_key", "hook_output_storage_secret_key"]
    elif service == "destine catalogue":
        fields = ["hook_external_token_url", "hook_external_client_id"]
        if not settings.hook_external_client_secret:
            fields += ["hook_external_username", "hook_external_password"]
    elif service == "rs-python":
        hosts = ("rspy_host_staging", "rspy_host_catalog", "rspy_host_dpr_service", "rspy_host_osam")
        fields = ["rspy_owner_id", "rspy_s3_endpoint", "rspy_s3_access_key", "rspy_s3_secret_key"]
        if not all(getattr(settings, host) for host in hosts):
            fields.insert(0, "conversion_api_url")
    elif service in ("catalog", "catalog database"):
        fields = ["catalog_dsn", "catalog_api_url"][: 1 if service == "catalog database" else 2]
    else:
        return _missing_aws(settings)
    return [_wanted(field) for field in fields if not getattr(settings, field)]


def _missing_aws(settings: Settings) -> list[str]:
    if (settings.aws_access_key_id is None) != (settings.aws_secret_access_key is None):
        return [_wanted("aws_secret_access_key" if settings.aws_access_key_id else "aws_access_key_id")]
    from botocore.exceptions import ProfileNotFound

    try:
        session = aws_session(settings)
        if settings.backend == "sandbox":  # only asked what a live run would lack: no machine's metadata is waited for
            session._session.get_component("credential_provider").remove("iam-role")
        credentials = session.get_credentials()
    except ProfileNotFound as error:
        return [f"AWS_PROFILE: {error}; see the names in ~/.aws/config"]
    if credentials is None:
        return [
            _wanted("aws_profile"),
            f"or {_wanted('aws_access_key_id')}",
            f"and {_wanted('aws_secret_access_key')}",
        ]
    return []


def fields_of(lines: list[str]) -> list[str]:
    """The fields that lines of :meth:`Settings.missing` are about, in their order."""
    by_name = {names(field)[0]: field for field in Settings.model_fields}
    found = [by_name.get(line.partition(":")[0].removeprefix("or ").removeprefix("and ")) for line in lines]
    return [field for field in found if field]


def _wanted(field: str) -> str:
    info = explained(field)
    return f"{names(field)[0]}: {info.text}" + (f" Get it: {info.get}" if info.get else "")


def load(env_file: Path | None = None) -> Settings:
    """Read and validate the settings; with the sandbox backend, find or start the sandbox.

    Parameters
    ----------
    env_file:
        The file to read instead of the one that :func:`find_env_file` finds.

    Raises
    ------
    NotConfigured
        With every problem at once: the name, what was found (secrets masked), what is accepted.
    """
    file = env_file or find_env_file()
    settings = _read(file)
    if settings.backend == "live":
        return settings
    environment = _sandbox_environment(settings)
    sandbox_id = environment.pop("id")
    _bypass_proxies(environment["RECIPES_SANDBOX_URL"])
    # No real credential goes to the sandbox, whatever the environment has.
    settings = _read(file, environment | dict.fromkeys(NEVER_TO_THE_SANDBOX) | _harmless(settings))
    settings._sandbox_id = sandbox_id
    if in_process_sandbox():
        # The sandbox ends with this process, and so do the notes about it.
        atexit.register(shutil.rmtree, settings.state_dir / settings.service_name("hyp3"), ignore_errors=True)
    return settings


#: What a live run may have that has no meaning in the sandbox.
NEVER_TO_THE_SANDBOX = (
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "DESP_TOTP_SECRET",
    "DEDL_CLIENT_ID",
    "DEDL_CLIENT_SECRET",
    "DEDL_TOKEN",
    "HOOK_EXTERNAL_CLIENT_SECRET",
)


def _harmless(settings: Settings) -> dict[str, Any]:
    """The additional options that a sandbox may see: no secrets, and no addresses of a real storage."""
    kept = settings.hook_additional.items()
    return {
        "HOOK_ADDITIONAL1": {
            f"HOOK_ADDITIONAL{n}": f"NAME={name};VALUE={value};VALUE_TYPE={type(value).__name__}"
            for n, (name, value) in enumerate(kept, 1)
            if not isinstance(value, SecretStr) and not name.endswith("_endpoint_url")
        }
    }


#: What a person has typed into this process, by the names of the variables.
_provided: dict[str, SecretStr] = {}


def provide(name: str, value: SecretStr) -> None:
    """Use ``value`` for the variable ``name``, above every other source, until this process ends.

    It is kept in this process only: no file, and no process that this one starts, gets it. An empty value takes back
    what was given before.

    Raises
    ------
    NotConfigured
        No setting has this name, or the value does not fit it; then the one before stays. The message does not have
        the value.
    """
    if not any(name in names(field) for field in Settings.model_fields):
        raise NotConfigured(f"There is no setting {name}")
    before = _provided.pop(name, None)
    if text := value.get_secret_value().strip():
        _provided[name] = SecretStr(text)
    try:
        read()
    except NotConfigured as error:
        # Other settings may be wrong already; only what is about this one speaks against the value.
        if wrong := [line[4:] for line in str(error).splitlines() if line.startswith(f"  - {name}: ")]:
            _provided.pop(name, None)
            if before:
                _provided[name] = before
            raise NotConfigured("\n".join(wrong)) from None


def read(env_file: Path | None = None) -> Settings:
    """Read and validate like :func:`load`, but neither look for a sandbox nor start one."""
    return _read(env_file or find_env_file())


def _read(file: Path | None, overrides: dict[str, Any] | None = None) -> Settings:
    try:
        given = {name: secret.get_secret_value() for name, secret in _provided.items()}
        # Not an alias: the hub's name would win over what the file says.
        user = _raw("RECIPES_SANDBOX_USER", file) or os.environ.get("JUPYTERHUB_USER") or None
        ours = {"HOOK_ADDITIONAL1": _additional(file), "RECIPES_SANDBOX_USER": user}
        values = ours | given | (overrides or {})
        settings = Settings(_env_file=file, **values)  # type: ignore[call-arg]
    except ValidationError as error:
        problems = [_problem(e, file) for e in error.errors()]
    else:
        problems = _placeholders(settings) if settings.backend == "live" else []
        if not problems:
            return settings
    raise NotConfigured(
        "\n".join([f"Settings are unusable, in the environment or in {_where(file)}:", *bullets(problems)])
    )


def _problem(error: Any, file: Path | None) -> str:
    name = str(error["loc"][0])
    field = next((f for f in Settings.model_fields if name in (f, *names(f))), name)
    found = "********" if is_secret(field) else repr(_raw(name, file))
    ours = error["msg"].removeprefix("Value error, ")  # pydantic's word for what our own validators say
    why = ours if ours != error["msg"] else f"{ours[0].lower()}{ours[1:]}"
    return f"{name}: found {found}; {why}"


def _raw(name: str, file: Path | None) -> str | None:
    from dotenv import dotenv_values

    if name in _provided:
        return "********"
    return os.environ.get(name) or (dotenv_values(file).get(name) if file else None)


def _placeholders(settings: Settings) -> list[str]:
    return [
        f"{names(field)[0]}: still the example's placeholder; {_wanted(field)}"
        for field in Settings.model_fields
        if is_secret(field) and any(_is_placeholder(secret) for secret in _secrets(getattr(settings, field)))
    ]


def _secrets(value: Any) -> list[str]:
    """The secrets in the value of one field."""
    values = value.values() if isinstance(value, dict) else [value]
    return [each.get_secret_value() for each in values if isinstance(each, SecretStr)]


def _is_placeholder(secret: str) -> bool:
    return PLACEHOLDER.match(secret) is not None


def find_env_file() -> Path | None:
    """The ``.env_tutorial`` in force: beside the notebook or script, else in ``notebooks/``, else at the project's top.

    The working directory does not matter: papermill runs in the caller's folder, JupyterLab in the notebook's.
    """
    folders = [PROJECT / "notebooks", PROJECT]
    if script := getattr(sys.modules["__main__"], "__file__", None):  # a copied cell, run as a program
        folders.insert(0, Path(script).resolve().parent)
    if notebook := notebook_path():
        folders.insert(0, notebook.parent)
    return next((folder / ENV_FILE for folder in folders if (folder / ENV_FILE).is_file()), None)


def notebook_path() -> Path | None:
    """The notebook that this kernel runs; ``None`` where nobody says: JupyterLab does, not every server."""
    notebook = os.environ.get("JPY_SESSION_NAME")
    return Path(notebook).resolve() if notebook and Path(notebook).parent.is_dir() else None


def _where(file: Path | None = None) -> str:
    return str(file or find_env_file() or f"{PROJECT / ENV_FILE} (copy {ENV_FILE}.example to it)")


def _sandbox_environment(settings: Settings) -> dict[str, str]:
    """The settings that point at the sandbox: the one that is named, else the one running here, else a new one."""
    user = settings.sandbox_user
    if settings.sandbox_url:
        url = str(settings.sandbox_url)
        if (found := _ask(url, user, "RECIPES_SANDBOX_URL")) is None:
            raise NotConfigured(
                f"No sandbox answers at {url} (RECIPES_SANDBOX_URL). Start one with `python -m helpers sandbox`,"
                " or remove the setting to have one started inside the notebook."
            )
        return found
    noted = _noted_sandbox(settings.state_dir)
    # One that is there and does not answer is not replaced: what was done in it would be missing in the new one.
    if noted and (found := _ask(noted["url"], user, f"process {noted['pid']}")):
        return found
    from .sandbox import start

    services = start()
    try:
        return services.environment_of(services.person(user))
    except ValueError as error:
        raise NotConfigured(NO_SUCH_NAME.format(error)) from None


NO_SUCH_NAME = "RECIPES_SANDBOX_USER (or JUPYTERHUB_USER) is no name for the sandbox: {}."


def _bypass_proxies(url: str) -> None:
    """A proxy of the institute's cannot reach this machine's own services: let every HTTP client know."""
    names = ("NO_PROXY", "no_proxy")
    hosts = [host.strip() for name in names for host in os.environ.get(name, "").split(",")]
    merged = ",".join(dict.fromkeys(filter(None, [*hosts, urlsplit(url).hostname or ""])))
    os.environ.update(dict.fromkeys(names, merged))


def running_sandbox(state_dir: Path) -> dict | None:
    """The sandbox that `python -m helpers sandbox` runs (url, pid), answering or busy; ``None`` if there is none."""
    noted = _noted_sandbox(state_dir)
    try:
        return noted if noted and _ask(noted["url"]) else None
    except TimedOut:
        return noted


def _noted_sandbox(state_dir: Path) -> dict | None:
    try:
        noted = json.loads((state_dir / "sandbox.json").read_text())
        return {"url": noted["url"], "pid": noted["pid"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None  # no note, or half of one


def reset_sandbox(url: str, user: str | None = None) -> None:
    """Bring the sandbox with this control URL back to its initial state; with ``user``, for that person only."""
    _session().post(f"{url.rstrip('/')}/reset", params={"user": user}, timeout=60).raise_for_status()


def start_catalogue(url: str, user: str | None = None) -> str:
    """Have the sandbox with this control URL start its catalogue, and wait for it; what it is, in one line.

    ``user``: whose database it is, in a sandbox that many share.

    Raises
    ------
    FailedRemotely
        It does not start; with the reason.
    TimedOut
        The sandbox does not answer.
    """
    try:
        answer = _session().post(f"{url.rstrip('/')}/catalog", params={"wait": "true", "user": user}, timeout=180)
        told = answer.json()
    except (requests.RequestException, ValueError):
        raise TimedOut(f"The sandbox at {url} does not start its catalogue. Is it running? Run this again.") from None
    if not answer.ok:
        raise FailedRemotely(f"The sandbox's catalogue does not start: {told.get('detail', answer.status_code)}")
    return told["label"]


def catalogue_runs(url: str, user: str | None = None) -> bool:
    """Whether the sandbox with this control URL has started the catalogue (of ``user``); it is not started for that.

    Raises
    ------
    TimedOut
        The sandbox does not answer.
    """
    try:
        return _session().get(f"{url.rstrip('/')}/catalog", params={"user": user}, timeout=10).json()["running"]
    except (requests.RequestException, ValueError, KeyError):
        raise TimedOut(f"The sandbox at {url} does not answer. Is it running?") from None


#: Seconds until a sandbox has to be reached, and to have answered: thirty people may ask one at the same time.
REACHED, ANSWERED = 5, 30


def _ask(url: str, user: str | None = None, known_by: str = "") -> dict[str, str] | None:
    """What the sandbox's settings are for ``user``; None when there is none: nobody listens, or somebody else answers.

    Raises
    ------
    NotConfigured
        Nobody can be called that.
    TimedOut
        Somebody listens, and does not answer; ``known_by`` says in the message how we know the address.
    """
    try:
        answer = _session().get(f"{url.rstrip('/')}/environment", params={"user": user}, timeout=(REACHED, ANSWERED))
        told = answer.json()
    except requests.Timeout:
        raise TimedOut(
            f"The sandbox at {url} ({known_by}) does not answer in {ANSWERED} s: it is busy, it hangs, or it cannot be"
            " reached from here. Nothing was started in its place. Run this again; if it stays so, end that sandbox"
            " and start it again with `python -m helpers sandbox`: it begins empty."
        ) from None
    except (requests.RequestException, ValueError):
        return None
    if answer.status_code == 400:
        raise NotConfigured(NO_SUCH_NAME.format(told["detail"]))
    return told if answer.ok else None


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy stands between us and the sandbox
    return session


def in_process_sandbox() -> bool:
    """Whether this process runs a sandbox of its own, which ends with it."""
    module = sys.modules.get("helpers.sandbox")
    return module is not None and module._running is not None


def misspelt(file: Path | None) -> list[str]:
    """Names in the settings file that look like a setting of ours, but are none."""
    from dotenv import dotenv_values

    known = [name for field in Settings.model_fields for name in names(field)]
    found = []
    for name in dotenv_values(file) if file else ():
        if (
            name not in known
            and not ADDITIONAL.fullmatch(name)
            and (close := get_close_matches(name, known, 1, cutoff=0.8))
        ):
            found.append(f"{name}: did you mean {close[0]}?")
    return found


# --- what is known about the settings, for the example file, messages and redaction ---


def names(field: str) -> list[str]:
    """The environment variables of a field, the preferred one first."""
    alias = Settings.model_fields[field].validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]


def explained(field: str) -> Explained:
    """What the example file says about a field."""
    return Explained.model_validate(Settings.model_fields[field].json_schema_extra)


def is_secret(field: str) -> bool:
    """Whether a field holds a credential."""
    return field in Settings.model_fields and "SecretStr" in str(Settings.model_fields[field].annotation)


def example() -> str:
    """The text of ``.env_tutorial.example``: every setting by recipe, with its default and where to get it."""
    lines = [
        f"# Copy this file to {ENV_FILE} and fill in what you need. Without it, everything runs in the sandbox.",
        "# The process environment wins over this file. Never commit your copy.",
    ]
    recipe = None
    for field, info in Settings.model_fields.items():
        told = explained(field)
        if told.recipe != recipe:
            recipe = told.recipe
            lines += ["", f"# --- {recipe} ---"]
        default = info.default
        if isinstance(default, Path):
            default = default.relative_to(PROJECT)
        lines += ["", f"# {told.text}", *([f"# Get it: {told.get}"] if told.get else [])]
        lines.append(f"{names(field)[0]}={'' if default is None or default == {} else default}")
    return "\n".join(lines) + "\n"


def _netrc_entries() -> dict[str, str]:
    try:
        hosts = netrc.netrc(os.environ.get("NETRC") or None).hosts
    except (OSError, netrc.NetrcParseError):
        return {}
    return {host: password for host, (_, _, password) in hosts.items() if password}


def _netrc_has(host: str) -> bool:
    return host in _netrc_entries()


def _passwords(dsn: str) -> set[str]:
    """The password within a DSN, as it is written there and as it is."""
    with suppress(ValueError):
        if dsn.startswith(DSN_SCHEMES) and (password := urlsplit(dsn).password):
            return {password, unquote(password)}
    return set()


def secret_values() -> set[str]:
    """Every credential this process could leak: of settings, ``.netrc`` and the AWS files. For redaction only."""
    from dotenv import dotenv_values

    # Not through `read`: a wrong setting elsewhere must not let a secret slip.
    file = find_env_file()
    values = [dict(os.environ), dotenv_values(file) if file else {}]
    fields = [field for field in Settings.model_fields if is_secret(field) and field != "hook_additional"]
    secret_names = [name for field in fields for name in names(field)]
    found = {source[name] for source in values for name in secret_names if source.get(name)}
    for line in _additional(file).values():
        with suppress(ValueError, KeyError):
            name, value = _option(line)
            found |= {str(value)} if SECRET_NAME.search(name) else set()
    found |= {secret.get_secret_value() for name, secret in _provided.items() if name in secret_names}
    found |= {part for dsn in found for part in _passwords(dsn)}
    found |= set(_netrc_entries().values())
    import botocore.session

    for profile in botocore.session.Session().full_config.get("profiles", {}).values():
        found |= {profile[k] for k in ("aws_secret_access_key", "aws_session_token") if k in profile}
    return {secret for secret in found if len(secret) >= 8}
