"""The process of the STAC API: stac-fastapi-pgstac, as eoAPI runs it, until whoever started it is gone.

A script of its own: what the package around it imports would take longer than the API. It imports while its database
starts, and serves when a line comes in at its standard input; when that ends, it ends.
"""

import os
import select
import socket
import sys
import threading


def _watch(owner: int) -> None:
    """End with our owner. A forked child of its may hold our input open: hence the look at whose child we are."""
    while os.getppid() == owner:
        if select.select([0], [], [], 1)[0] and not os.read(0, 1):
            break
    os._exit(0)  # at once: the database is going as well


def main(owner: int, listener: int) -> None:
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # as in helpers/__init__.py: 1.5 s
    import uvicorn
    from stac_fastapi.pgstac.app import create_app

    # Answers are the same as those of eoAPI: its extensions, without those that write.
    config = uvicorn.Config(create_app, factory=True, log_level="warning", lifespan="on", timeout_keep_alive=30)
    while (line := os.read(0, 1)) not in (b"\n", b""):
        pass
    if line:
        threading.Thread(target=_watch, args=(owner,), daemon=True).start()
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=listener)])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
