"""Assets opened where they are: what GDAL must know of the S3 that the settings name."""

from typing import Any
from urllib.parse import urlsplit

from ..settings import Settings, aws_session


def reading(settings: Settings) -> Any:
    """A ``rasterio.Env`` in which ``rasterio.open("s3://...")`` reads from the S3 of the settings, with their keys.

    Only the parts of a file that are asked for are fetched.
    """
    import rasterio
    from rasterio.session import AWSSession

    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    endpoint = urlsplit(str(settings.aws_endpoint_url)) if settings.aws_endpoint_url else None
    if endpoint:  # another S3 than Amazon's: it has no names like bucket.host, and perhaps no certificate
        options |= {"AWS_VIRTUAL_HOSTING": "FALSE", "AWS_HTTPS": "YES" if endpoint.scheme == "https" else "NO"}
    session = AWSSession(aws_session(settings), endpoint_url=endpoint.netloc if endpoint else None)
    return rasterio.Env(session=session, **options)
