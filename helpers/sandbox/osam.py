"""Stand-in for RS-Server's bucket rules (OSAM): which bucket the products of an owner, collection and type go to."""

from typing import Any

from flask import Flask, jsonify

from .faults import Traffic
from .rspy import USERS, Refusal, stripped

#: The sandbox user in the form of the rules.
OWNER = stripped(next(iter(USERS.values())))
#: Owner, collection, product type, days until expiration, bucket. Client and server agree on these.
ROWS = [
    ["*", "*", "*", "30", "rspy-catalog"],
    [OWNER, "*", "*", "90", "rspy-products"],
    [OWNER, "archive", "*", "3650", "rspy-archive"],
    ["neighbour", "*", "S01SIWGRD", "30", "rspy-archive"],
]
#: A row that clients read as a pattern and servers as a literal type, which none has: they disagree on every product.
DISPUTED = [OWNER, "*", "S0*", "30", "rspy-archive"]
BUCKETS = tuple(dict.fromkeys(row[4] for row in ROWS))


class Osam:
    """The rules of one world: ``rows`` may be changed, and the services go by what is there."""

    def __init__(self, traffic: Traffic):
        self.traffic = traffic
        self.rows = [list(row) for row in ROWS]
        self.app = Flask("osam")
        self.app.add_url_rule("/internal/configuration", "configuration", self._configuration)

    def add(self, owner: str) -> None:
        """Give somebody the same rules of their own as the sandbox user has."""
        mine = [[stripped(owner), *row[1:]] for row in ROWS if row[0] == OWNER]
        self.rows += [row for row in mine if row not in self.rows]

    def _configuration(self) -> Any:
        if self.traffic.take("disputed-rules", "osam"):
            self.rows.insert(0, list(DISPUTED))
        return jsonify(self.rows)

    def rule(self, owner: str, collection: str, product_type: str | None) -> tuple[int, str]:
        """Days and bucket as the servers find them: literal equality, the most specific row first.

        Raises
        ------
        Refusal
            500: no row fits.
        """
        last = {tuple(row[:3]): (int(row[3]), row[4]) for row in reversed(self.rows)}
        wanted = (
            (owner, collection, product_type or ""),
            (owner, collection, "*"),
            (owner, "*", product_type or ""),
            (owner, "*", "*"),
            ("*", "*", "*"),
        )
        for columns in wanted:
            if columns in last:
                return last[columns]
        raise Refusal(500, f"No bucket is configured for owner {owner!r} and collection {collection!r}")
