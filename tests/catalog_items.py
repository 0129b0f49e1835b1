"""A STAC item as short as it may be, for the tests of the catalogue."""


def item(name: str, **more) -> dict:
    ring = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": name,
        "collection": "rtc",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "properties": {"datetime": "2026-02-03T04:05:06Z"},
        "links": [{"rel": "collection", "href": "./collection.json"}],
        "assets": {"vv": {"href": f"s3://archive/{name}_VV.tif"}},
    } | more
