"""Removal of secrets from messages, logs and records."""

import os
import re

REDACTED = "***"
SECRET_NAME = re.compile(
    r"(SECRET|SECRET_KEY|SECRET_ACCESS_KEY|PRIVATE_KEY|PASSWORD|PASSWD|TOKEN|CREDENTIALS?|API_KEY)$"
)
ADDRESS_NAME = re.compile(r"UR[IL]|PROXY|ENDPOINT|DSN|HOST")
URL = re.compile(r"[a-z][a-z0-9+.-]*://(?P<userinfo>[^:]*:.*)@[^@]*", re.I | re.S)
MIN_SECRET_LENGTH = 8
"""Characters of a variable's value to be removed: a shorter one may be part of ordinary words."""
USERINFO = re.compile(r"(?<=://)[^\s/?#]*@")
QUERY_SECRET = re.compile(
    r"([?&;](?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|sig|\w*token|password|api_?key)=)[^&\s'\"]+",
    re.I,
)
AUTHORIZATION = re.compile(r"(authorization\W{1,4}(?:basic|bearer)\s+)[^\s'\"]+", re.I)


def redact(text: object) -> str:
    """Returns the text without passwords of URLs, signatures of links, and values of secret environment variables."""
    found = str(text)
    for secret in known_secrets():
        found = found.replace(secret, REDACTED)
    found = USERINFO.sub(f"{REDACTED}@", found)
    found = QUERY_SECRET.sub(rf"\1{REDACTED}", found)
    return AUTHORIZATION.sub(rf"\1{REDACTED}", found)


def known_secrets() -> list[str]:
    """Returns the secrets in the environment, longest first.

    They are needed beside the patterns: a password in a URL may hold characters that no pattern expects.
    """
    found = set()
    for name, value in os.environ.items():
        url = URL.fullmatch(value) if ADDRESS_NAME.search(name.upper()) else None
        if url:
            found.add(url["userinfo"])
        if SECRET_NAME.search(name.upper()) and len(value) >= MIN_SECRET_LENGTH:
            found.add(value)
    return sorted(found, key=len, reverse=True)


def split_userinfo(url: str) -> tuple[str, str, str]:
    """Returns a URL without user and password, the user, and the password; both still encoded, empty if absent."""
    found = URL.fullmatch(url)
    if not found:
        return url, "", ""
    user, _, password = found["userinfo"].partition(":")
    return url.replace(f"{found['userinfo']}@", "", 1), user, password
