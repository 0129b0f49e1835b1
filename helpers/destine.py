"""The login to DestinE and its Data Lake, with the destinelab package; for unattended runs, without questions."""

from collections.abc import Callable
from functools import partial

import requests
from pydantic import SecretStr

from . import http
from .errors import FailedRemotely, NotConfigured, Rejected
from .settings import Settings


def token(settings: Settings) -> http.Token:
    """A token of the Data Lake, fetched when it is first needed and renewed shortly before it ends.

    In this order: ``DEDL_TOKEN`` as it is; the service account; user name and password, with a one-time code if the
    account asks for one. A login with a password costs four requests, a service account's one.

    Raises (when it is fetched)
    ------
    Rejected
        The credentials are refused.
    NotConfigured
        The account asks for a one-time code, and there is no ``DESP_TOTP_SECRET``.
    FailedRemotely, TimedOut
        The identity provider has a problem, or does not answer.
    """
    return http.Token(_login(settings))


def _login(settings: Settings) -> Callable[[], str]:
    if settings.dedl_token:
        return settings.dedl_token.get_secret_value
    from destinelab import AuthHandler, DEDLAuth, DEDLServiceAccountAuth, DESPAuth  # half a second, if it is needed

    post = _identity_session(settings).post
    if settings.dedl_client_id and settings.dedl_client_secret:
        secret = settings.dedl_client_secret.get_secret_value()
        return _explained(DEDLServiceAccountAuth(settings.dedl_client_id, secret, request_post=post).get_token)
    handler = AuthHandler(
        settings.desp_username,
        settings.desp_password.get_secret_value(),
        desp_auth_class=partial(
            DESPAuth,
            session_factory=lambda: _identity_session(settings),
            otp_provider=lambda: _one_time_code(settings.desp_totp_secret),
        ),
        dedl_auth_class=partial(DEDLAuth, request_post=post),
        # It would ask the identity provider about its cached token at each call; we keep the token ourselves.
        token_validator=lambda token: False,
    )
    return _explained(handler.get_token)


def _identity_session(settings: Settings) -> requests.Session:
    """A session that finds the identity providers where the settings say; destinelab has their addresses built in."""
    from destinelab.config import DEDL_TOKEN_URL, IAM_URL

    session = http.harden(requests.Session())
    http.elsewhere(session, IAM_URL, str(settings.desp_auth_url))
    http.elsewhere(session, DEDL_TOKEN_URL.partition("/auth/")[0], str(settings.dedl_auth_url))
    return session


def _one_time_code(secret: SecretStr | None) -> str:
    if secret is None:
        raise NotConfigured(
            "Your DestinE account asks for a one-time code. Set DESP_TOTP_SECRET in .env_tutorial (the key that your"
            " authenticator app was set up with), or use a service account (DEDL_CLIENT_ID)."
        )
    import pyotp

    try:
        return pyotp.TOTP(secret.get_secret_value().replace(" ", "")).now()
    except ValueError as error:  # no base32, or too short to be believed
        raise NotConfigured(f"DESP_TOTP_SECRET in .env_tutorial cannot be used: {error}.") from None


def _explained(log_in: Callable[[], str]) -> Callable[[], str]:
    """``log_in`` with our errors for destinelab's."""
    from destinelab import errors
    from lxml.etree import ParserError

    def explained() -> str:
        try:
            return log_in()
        except (errors.InvalidCredentialsError, errors.OTPRequiredError, http.Refused) as error:
            said = error.said if isinstance(error, http.Refused) else error
            raise Rejected(
                f"DestinE refuses the login: {said} Check DESP_USERNAME and DESP_PASSWORD (or DEDL_CLIENT_ID and its"
                " secret) in .env_tutorial."
            ) from None
        except (errors.AuthError, ParserError) as error:  # the latter: a page with nothing on it
            raise FailedRemotely(f"The login to DestinE failed: {error} Run this cell again later.") from None

    return explained
