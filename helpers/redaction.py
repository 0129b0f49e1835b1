"""Take secrets out of texts and whole notebooks before anybody else can read them.

What counts as a secret:

* the values of the settings that are secret (`helpers.settings.secret_values`) and of environment
  variables whose name says so (`..._TOKEN`, `..._PASSWORD`, ...), as they are and in the forms in which
  they travel: URL-encoded, escaped for JSON, Python or HTML, hexadecimal, base64 at any alignment;
* what looks like one: signatures and tokens in URLs, headers and JSON, passwords in URLs, AWS access key
  ids, JSON Web Tokens.

Known secrets shorter than 8 characters are only found as whole words, and shorter than 4 not at all: a
password "a" would otherwise blacken every page.
"""

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import quote, quote_plus

MARK = "[redacted]"

_SECRET_VARIABLE = re.compile(
    r"(?i)(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS?|API_?KEY|(ACCESS|SECRET|PRIVATE)_KEY(_ID)?)$"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_SIGNED = r"X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)"
_FIELD = rf"{_SIGNED}|(?:access|refresh|id|session)_?token|client_secret|secret_?access_?key|passw(?:or)?d"
_QUERY = rf"{_FIELD}|AWSAccessKeyId|Signature|sig|temp_url_sig|token|api_?key"
_SECRET_KEY = re.compile(rf"(?i)(?:{_FIELD}|authorization)\Z")
# Each pattern keeps its first group, the name, and replaces the value after it. Braces end a value: source
# code such as f"...?token={token}" holds no secret and stays readable.
_NAMED = (
    rf"(?i)((?:[?&;#]|%3F|%26)(?:{_QUERY})(?:=|%3D))(?:[^&\s\"'<>\\{{}}\[\]%]|%(?!26))+",
    rf"(?i)(\b(?:{_SIGNED})[\"']?\s*[=:]\s*[\"']?)[^&\s\"'<>\\{{}}\[\],;]+",
    rf"(?i)(\\?[\"'](?:{_FIELD})\\?[\"']\s*:\s*\\?[\"'])[^\"'\\{{}}\[\]]+",
    r"(?i)(\bAuthorization[\"']?\s*[:=]\s*[\"']?(?:Bearer|Basic|Token|AWS4-\S+)\s+)[^\"'<>\\{}\[\]\r\n]+",
    r"(?i)(\bBearer\s+)[A-Za-z0-9._~+/=-]{16,}",
    r"(?i)(\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@\"'<>{}]*:)[^/\s@\"'<>{}\[\]]+(?=@)",
)
_BARE = (r"()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", r"()\beyJ[\w-]{6,}\.[\w-]{6,}\.[\w-]*")
_PATTERNS = tuple(re.compile(pattern, re.ASCII) for pattern in _NAMED + _BARE)


def known_secrets(environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """The secrets of the settings and of `environment` (of this process, when not given)."""
    from . import settings  # here: a mere import of this module should not read any settings

    variables = os.environ if environment is None else environment
    named = {value for name, value in variables.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8}
    return frozenset(named | {str(value) for value in settings.secret_values()})


def redact(value, secrets: Iterable[str] | None = None):
    """A copy of a text, or of dicts and lists of texts, without secrets.

    `secrets` are the known ones; by default those of the settings and the environment. Numbers and other
    objects come back as they are. A text with terminal colours loses them if a secret hides behind them.
    """
    return _redact(value, _spellings(known_secrets() if secrets is None else frozenset(secrets)))


def redact_notebook(node, secrets: Iterable[str] | None = None):
    """A copy of a notebook (nbformat 4) without secrets in sources, outputs, attachments and metadata.

    Neighbouring pieces of one stream are joined first: a kernel may cut its output anywhere.
    """
    return redact(type(node)({**node, "cells": [_with_joined_streams(cell) for cell in node.cells]}), secrets)


def reveals_secret(value, secrets: Iterable[str]) -> bool:
    """Whether `value` holds a text that is a known secret, or contains what looks like a secret."""
    if isinstance(value, dict):
        return redact(value, ()) != value or reveals_secret(list(value.values()), secrets)
    if isinstance(value, list):
        return any(reveals_secret(item, secrets) for item in value)
    return isinstance(value, str) and (value in secrets or redact(value, ()) != value)


def _redact(value, spellings):
    if isinstance(value, str):
        clean = _redact_text(value, spellings)
        if "\x1b" in clean:
            plain = _ANSI.sub("", clean)
            if (cleaner := _redact_text(plain, spellings)) != plain:
                return cleaner
        return clean
    if isinstance(value, dict):
        items = {_redact(key, spellings): _entry(key, item, spellings) for key, item in value.items()}
        return type(value)(items)  # a notebook stays a notebook
    if isinstance(value, list | tuple):
        return [_redact(item, spellings) for item in value]
    return value


def _entry(key, item, spellings):
    secret = isinstance(key, str) and isinstance(item, str) and item and _SECRET_KEY.match(key)
    return MARK if secret else _redact(item, spellings)


def _redact_text(text: str, spellings) -> str:
    long, short = spellings
    for spelling in long:
        if spelling in text:  # far cheaper than one regular expression with all spellings
            text = text.replace(spelling, MARK)
    if short:
        text = short.sub(MARK, text)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{MARK}", text)
    return text


@lru_cache(maxsize=32)
def _spellings(secrets: frozenset[str]) -> tuple[list[str], re.Pattern | None]:
    """What to look for: long spellings, the longest first, and a pattern for the short ones."""
    every = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
    short = "|".join(re.escape(form) for form in every if 4 <= len(form) < 8)
    words = re.compile(rf"(?<!\w)(?:{short})(?!\w)") if short else None
    return [form for form in every if len(form) >= 8], words


def _forms(secret: str) -> set[str]:
    raw = secret.encode()
    forms = {
        secret,
        repr(secret)[1:-1],
        repr(raw)[2:-1],
        html.escape(secret),
        html.escape(secret, quote=False),
    }
    forms |= {quote(secret, safe=""), quote(secret), quote_plus(secret), raw.hex()}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    forms |= {json.dumps(json.dumps(secret))[3:-3], base64.b64encode(raw).decode()}
    for shift in range(3) if len(raw) > 5 else ():  # the base64 of less occurs by chance
        # Within a longer base64 text only those characters are certain that no neighbouring byte touches.
        start, end = (8 * shift + 5) // 6, 8 * (shift + len(raw)) // 6
        encoded = base64.b64encode(bytes(shift) + raw).decode()[start:end]
        forms |= {encoded, encoded.replace("+", "-").replace("/", "_")}
    return forms


def _with_joined_streams(cell):
    if "outputs" not in cell:
        return cell
    outputs = []
    for output in cell.outputs:
        last = outputs[-1] if outputs else {}
        if output.output_type == "stream" == last.get("output_type") and output.name == last["name"]:
            outputs[-1] = type(output)({**last, "text": last["text"] + output.text})
        else:
            outputs.append(output)
    return type(cell)({**cell, "outputs": outputs})
