"""Who uses a sandbox that many share: each person is somebody of their own at every service.

Everything follows from the name, so that it is the same after a restart: the AWS account above all, which the
notebooks' bucket names end in.
"""

from dataclasses import dataclass
from hashlib import sha256

from .rspy import USERS, stripped
from .s3 import USER_ACCOUNT

#: Names of somebody else in the sandbox.
TAKEN = ("sandbox-external", "hkh-monitoring", *list(USERS.values())[1:])
#: Owners at RS-PYTHON that are somebody already, as paths there have them.
OWNERS = {stripped(owner) for owner in USERS.values()}
LONGEST = 60


@dataclass(frozen=True)
class Person:
    """Names and credentials of one person. Secrets of a sandbox: they open nothing else."""

    name: str  #: at HyP3 and at DestinE
    account: str  #: AWS account, twelve digits
    access_key: str  #: at AWS, with any secret
    password: str  #: at DestinE
    harvest_key: str  #: access key of the same account whose secret is checked, for harvested products ...
    harvest_secret: str  #: ... and that secret
    apikey: str  #: at RS-PYTHON
    owner: str  #: of collections there
    database: str  #: of the STAC catalogue

    @property
    def path(self) -> str:
        """Where the catalogue's API serves this database, "" for its root."""
        return "" if self == FIRST else f"/people/{self.database}"


#: Who everybody is that does not say otherwise.
FIRST = Person(
    "sandbox-user",
    USER_ACCOUNT,
    "sandbox-user",
    "sandbox-password-1",  # pragma: allowlist secret
    "sandbox-harvest",
    "sandbox-harvest-secret",  # pragma: allowlist secret
    *next(iter(USERS.items())),
    "catalog",
)


def make(name: str) -> Person:
    """The person of this name; :data:`FIRST` for the name of theirs.

    Raises
    ------
    ValueError
        Nobody can be called that.
    """
    if name == FIRST.name:
        return FIRST
    if not name.strip() or not name.isprintable() or len(name) > LONGEST:
        raise ValueError(f"a name has 1 to {LONGEST} characters that can be printed, {name[:LONGEST]!r} has not")
    if name in TAKEN:
        raise ValueError(f"somebody else in the sandbox is called {name!r}; take another name")
    account = str(int(sha256(name.encode()).hexdigest(), 16))[-12:]
    return Person(
        name,
        account,
        access_key=f"sandbox-{account}",
        password=f"sandbox-password-{account}",
        harvest_key=f"sandbox-harvest-{account}",
        harvest_secret=f"sandbox-harvest-secret-{account}",
        apikey=f"sandbox-rspy-apikey-{account}",
        # Only letters and digits count there: two names may have the same.
        owner=name if name == stripped(name) and name not in OWNERS else f"{stripped(name)}{account}",
        database=f"catalog_{account}",
    )
