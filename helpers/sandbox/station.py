"""Stand-in for the station that products are ordered from: a STAC API of SAFE products, and their files.

Every product whose name is well formed is there; a few are listed. Its files are made when they are asked for, and
the same each time.
"""

import mimetypes
import re
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, jsonify, request

from . import rspy, stac_api
from .faults import Traffic
from .rspy import Refusal

#: Products that are listed. Any other is found by its name.
LISTED = (
    "S1A_IW_GRDH_1SDV_20240814T170519_20240814T170544_055216_06BAA8_5B57",
    "S1A_IW_GRDH_1SDV_20240802T170519_20240802T170544_055041_06B4B1_9F6C",
    "S2A_MSIL2A_20240815T100601_N0511_R022_T32TQR_20240815T153456",
    "S2B_MSIL2A_20240820T100559_N0511_R022_T32TQR_20240820T131234",
    "S2A_MSIL1C_20240815T100601_N0511_R022_T32TQR_20240815T135034",
    "S3A_OL_1_EFR____20240815T092117_20240815T092417_20240816T093811_0179_115_364_2160_PS1_O_NT_004",
)
TIME = r"\d{8}T\d{6}"
#: Collection, product type and archive of what the names say; the type's pattern takes groups of the name's.
KINDS = (
    (rf"S1[A-D]_(?P<mode>..)_SLC__1S.._(?P<begin>{TIME})_(?P<end>{TIME})_\w+", "sentinel-1-slc", "{mode}_SLC__1S"),
    (
        rf"S1[A-D]_(?P<mode>..)_GRD(?P<res>[FHM])_1S.._(?P<begin>{TIME})_(?P<end>{TIME})_\w+",
        "sentinel-1-grd",
        "{mode}_GRD{res}_1S",
    ),
    (rf"S2[A-D]_MSIL(?P<level>1C)_(?P<begin>{TIME})_N\d{{4}}_R\d{{3}}_T\w{{5}}_{TIME}", "sentinel-2-l1c", "S2MSI1C"),
    (rf"S2[A-D]_MSIL(?P<level>2A)_(?P<begin>{TIME})_N\d{{4}}_R\d{{3}}_T\w{{5}}_{TIME}", "sentinel-2-l2a", "S2MSI2A"),
    (
        rf"S3[A-D]_(?P<type>OL_1_E[FR]R___)_(?P<begin>{TIME})_(?P<end>{TIME})_{TIME}_\w+",
        "sentinel-3-olci-l1",
        "{type}",
    ),
)
COLLECTIONS = tuple(dict.fromkeys(collection for _, collection, _ in KINDS))
#: No converter knows this one.
NO_SUCH_TYPE = "XX_9_ZZZ___"
PREVIEW = re.compile(r"(-ql\.jpg|/quick-look\.png|preview/.*\.(png|jpg))$")


class Station:
    """The products of one world, and the WSGI application ``app``.

    Parameters
    ----------
    make:
        ``make(name, pixels, suffix)``: the archive of a product.
    pixels:
        Longest side of their pictures; None: a small one. Items do not say how large an archive is: it is made when
        it is fetched.
    suffix:
        The archives' kind: ".zip" or ".tar.gz".
    """

    def __init__(self, traffic: Traffic, make: Callable[..., bytes], pixels: int | None = None, suffix: str = ".zip"):
        self.traffic, self.make, self.pixels, self.suffix = traffic, make, pixels, suffix
        self.app = _make_app(self)

    def item(self, stem: str, url: str) -> dict | None:
        """The STAC item of a product, if the name is that of one; ``url``: of the API."""
        known = ((re.fullmatch(pattern, stem), *rest) for pattern, *rest in KINDS)
        found, collection, kind = next((each for each in known if each[0]), (None, "", ""))
        if found is None:
            return None
        from .products import granule_footprint  # not at the start: half a second
        from .safe_products import product_footprint

        parts = found.groupdict()
        try:
            begin, end = (
                datetime.strptime(parts.get(key) or parts["begin"], "%Y%m%dT%H%M%S") for key in ("begin", "end")
            )
        except ValueError:
            return None
        try:
            geometry = product_footprint(stem)
        except ValueError:  # of a kind that is listed, and cannot be made
            geometry = granule_footprint(stem)
        archive = f"{stem}.{'SEN3' if stem.startswith('S3') else 'SAFE'}{self.suffix}"
        stamps = [f"{when.replace(tzinfo=UTC):%Y-%m-%dT%H:%M:%SZ}" for when in (begin, end)]
        about = {"datetime": stamps[0], "start_datetime": stamps[0], "end_datetime": stamps[1]}
        about |= {"platform": f"sentinel-{stem[1:3].lower()}", "product:type": kind.format_map(parts)}
        media = "application/zip" if self.suffix == ".zip" else "application/gzip"
        product = {"href": f"{url}/files/{archive}", "title": archive, "type": media, "roles": ["data"]}
        assets = {"product": product | {"file:local_path": archive}}
        if not stem.startswith("S3"):
            assets["quicklook"] = {"href": f"{url}/files/{stem}/quicklook", "type": "image/png", "roles": ["thumbnail"]}
        links = [_link("self", f"{url}/collections/{collection}/items/{stem}", "application/geo+json")]
        links += [_link(rel, f"{url}/collections/{collection}") for rel in ("collection", "parent")]
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "stac_extensions": [
                "https://stac-extensions.github.io/file/v2.1.0/schema.json",
                "https://stac-extensions.github.io/product/v0.1.0/schema.json",
            ],
            "id": stem,
            "collection": collection,
            "geometry": geometry,
            "bbox": stac_api.bbox_of(geometry),
            "properties": about,
            "assets": assets,
            "links": [*links, _link("root", f"{url}/")],
        }

    def archive(self, stem: str, suffix: str) -> bytes:
        """A product's files, packed. Raises ValueError for one that the sandbox cannot make."""
        return self.make(stem, self.pixels, suffix)

    def served(self, stem: str, url: str) -> dict | None:
        """The item as it is sent: a fault may have struck its product type."""
        item = self.item(stem, url)
        if item and self.traffic.take("null-type", "station", stem):
            item["properties"]["product:type"] = None
        elif item and self.traffic.take("unknown-type", "station", stem):
            item["properties"]["product:type"] = NO_SUCH_TYPE
        return item

    def quicklook(self, stem: str) -> tuple[str, bytes]:
        """File name and content of the picture in the product's archive; raises Refusal (404)."""
        import io
        import zipfile

        with zipfile.ZipFile(io.BytesIO(self.archive(stem, ".zip"))) as archive:
            for name in sorted(archive.namelist()):
                if PREVIEW.search(name):
                    return name, archive.read(name)
        raise Refusal(404, f"{stem} has no picture")


def _link(rel: str, href: str, kind: str = "application/json") -> dict:
    return {"rel": rel, "href": href, "type": kind}


def _make_app(service: Station) -> Flask:
    app = rspy.make_app("station", rspy.as_code)

    def root() -> str:
        return request.host_url.rstrip("/")

    def collection_form(name: str) -> dict:
        extent = {
            "spatial": {"bbox": [[-180, -90, 180, 90]]},
            "temporal": {"interval": [["2014-04-03T00:00:00Z", None]]},
        }
        url = f"{root()}/collections/{name}"
        links = [_link("self", url), _link("root", f"{root()}/"), _link("parent", f"{root()}/")]
        links.append(_link("items", f"{url}/items", "application/geo+json"))
        about = {"type": "Collection", "stac_version": "1.0.0", "id": name, "license": "other", "extent": extent}
        return about | {"description": f"{name} products of the sandbox", "links": links}

    @app.get("/")
    def landing() -> Any:
        links = [_link("self", f"{root()}/"), _link("root", f"{root()}/"), _link("data", f"{root()}/collections")]
        for method in ("GET", "POST"):
            links.append(_link("search", f"{root()}/search", "application/geo+json") | {"method": method})
        links += [_link("child", f"{root()}/collections/{name}") for name in COLLECTIONS]
        about = {"type": "Catalog", "id": "station", "title": "Station", "stac_version": "1.0.0", "links": links}
        return jsonify(about | {"description": "SAFE products to order", "conformsTo": stac_api.CONFORMS_TO})

    @app.get("/conformance")
    def conformance() -> Any:
        return jsonify({"conformsTo": stac_api.CONFORMS_TO})

    @app.get("/collections")
    def collections() -> Any:
        links = [_link("self", f"{root()}/collections")]
        return jsonify({"collections": [collection_form(name) for name in COLLECTIONS], "links": links})

    def known(name: str) -> str:
        if name not in COLLECTIONS:
            raise Refusal(404, f"Collection {name} does not exist.")
        return name

    @app.get("/collections/<name>")
    def one_collection(name: str) -> Any:
        return jsonify(collection_form(known(name)))

    def found(wanted: dict) -> Any:
        stems = wanted.get("ids") or LISTED
        items = [item for stem in stems if (item := service.served(stem, root()))]
        return jsonify(stac_api.page(stac_api.select(items, wanted), wanted, request.base_url))

    @app.get("/collections/<name>/items")
    def items(name: str) -> Any:
        return found(stac_api.parameters() | {"collections": [known(name)]})

    @app.get("/collections/<name>/items/<item_id>")
    def one_item(name: str, item_id: str) -> Any:
        item = service.served(item_id, root())
        if item is None or item["collection"] != known(name):
            raise Refusal(404, f"Item {item_id} in collection {name} does not exist.")
        return jsonify(item)

    @app.route("/search", methods=["GET", "POST"])
    def search() -> Any:
        return found(stac_api.parameters())

    @app.get("/files/<name>")
    def file(name: str) -> Any:
        parts = re.fullmatch(r"(\w+)\.(?:SAFE|SEN3)(\.zip|\.tar|\.tgz|\.tar\.gz)", name)
        if parts is None or service.item(parts[1], root()) is None:
            raise Refusal(404, f"{name} is not there")
        return _send(name, made(service.archive, parts[1], parts[2]), mimetypes.guess_type(name)[0])

    @app.get("/files/<stem>/quicklook")
    def quicklook(stem: str) -> Any:
        if service.item(stem, root()) is None:
            raise Refusal(404, f"{stem} is not there")
        name, picture = made(service.quicklook, stem)
        return _send(name, picture, mimetypes.guess_type(name)[0])

    def made(make: Callable, *args: str) -> Any:
        try:
            return make(*args)
        except ValueError as error:  # a name of the right form, of a product that the sandbox cannot make
            raise Refusal(404, str(error)) from None

    def _send(name: str, content: bytes, kind: str | None) -> Response:
        answer = Response(content, content_type=kind or "application/octet-stream")
        answer.headers["Content-Disposition"] = f'attachment; filename="{name.rpartition("/")[2]}"'
        answer.set_etag(f"{zlib.crc32(content):08x}")
        return answer.make_conditional(request, accept_ranges=True, complete_length=len(content))

    return app
