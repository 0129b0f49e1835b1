"""The process of the STAC API: stac-fastapi-pgstac, as eoAPI runs it, until whoever started it is gone.

A script of its own: what the package around it imports would take longer than the API. It imports while its database
starts, and serves when a line comes in at its standard input; when that ends, it ends.

At its root it serves the database that the environment names, below ``/people/{database}`` any other of that server.
"""

import os
import re
import select
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

#: Where the databases of others begin.
ELSEWHERE = re.compile(r"/people/(\w+)(?=/|$)")


def _watch(owner: int) -> None:
    """End with our owner. A forked child of its may hold our input open: hence the look at whose child we are."""
    while os.getppid() == owner:
        if select.select([0], [], [], 1)[0] and not os.read(0, 1):
            break
    os._exit(0)  # at once: the database is going as well


def make_app() -> Any:
    """The ASGI application. Answers are the same as those of eoAPI: its extensions, without those that write."""
    import asyncio

    from stac_fastapi.pgstac.app import instantiate_api
    from stac_fastapi.pgstac.config import PostgresSettings
    from stac_fastapi.pgstac.db import close_db_connection, connect_to_db, get_connection

    #: Connections by database: each has what the API's own application has, its `state`.
    others: dict[str, Any] = {}
    connecting = asyncio.Lock()

    @asynccontextmanager
    async def connection(request: Any, readwrite: str = "r") -> AsyncIterator[Any]:
        elsewhere = ELSEWHERE.fullmatch(request.scope.get("root_path", ""))
        if elsewhere:
            async with connecting:
                if elsewhere[1] not in others:
                    place = SimpleNamespace(state=SimpleNamespace())
                    settings = PostgresSettings().model_copy(
                        update={"pgdatabase": elsewhere[1], "db_min_conn_size": 0, "db_max_conn_size": 3}
                    )
                    await connect_to_db(place, postgres_settings=settings)
                    others[elsewhere[1]] = place
            request = SimpleNamespace(app=others[elsewhere[1]])
        async with get_connection(request, readwrite) as connected:
            yield connected

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        await connect_to_db(app, get_conn=connection)
        yield
        for place in (app, *others.values()):
            await close_db_connection(place)

    app = instantiate_api(lifespan=lifespan).app

    async def by_path(scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (found := ELSEWHERE.match(scope["path"])):
            scope = scope | {"root_path": found[0]}  # links in answers begin with it
        await app(scope, receive, send)

    return by_path


def main(owner: int, listener: int) -> None:
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # as in helpers/__init__.py: 1.5 s
    import stac_fastapi.pgstac.app  # noqa: F401 - now, not while somebody waits
    import uvicorn

    config = uvicorn.Config(make_app, factory=True, log_level="warning", lifespan="on", timeout_keep_alive=30)
    while (line := os.read(0, 1)) not in (b"\n", b""):
        pass
    if line:
        threading.Thread(target=_watch, args=(owner,), daemon=True).start()
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=listener)])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
