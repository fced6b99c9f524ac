"""Removes secrets from texts that people read: messages, logs and records."""

import os
import re

HIDDEN = "***"
SECRET_NAME = re.compile(
    r"(SECRET|SECRET_KEY|SECRET_ACCESS_KEY|PRIVATE_KEY|PASSWORD|PASSWD|TOKEN|CREDENTIALS?|API_KEY)$"
)
ADDRESS_NAME = re.compile(r"UR[IL]|PROXY|ENDPOINT|DSN|HOST")
URL = re.compile(r"[a-z][a-z0-9+.-]*://(?P<userinfo>[^:]*:.*)@[^@]*", re.I | re.S)
SHORTEST = 8
"""Characters of a variable's value that is searched for: shorter ones stand in other words, too."""
USERINFO = re.compile(r"(?<=://)[^\s/?#]*@")
SIGNED = re.compile(
    r"([?&;](?:X-Amz-(?:Signature|Credential|Security-Token)|Signature|sig|\w*token|password|api_?key)=)[^&\s'\"]+",
    re.I,
)
AUTHORIZATION = re.compile(r"(authorization\W{1,4}(?:basic|bearer)\s+)[^\s'\"]+", re.I)


def redact(text: object) -> str:
    """Returns the text without the passwords of URLs, signatures of links, and values of secret environment variables."""
    found = str(text)
    for secret in known_secrets():
        found = found.replace(secret, HIDDEN)
    found = USERINFO.sub(f"{HIDDEN}@", found)
    found = SIGNED.sub(rf"\1{HIDDEN}", found)
    return AUTHORIZATION.sub(rf"\1{HIDDEN}", found)


def known_secrets() -> list[str]:
    """Returns what the environment holds in secret, longest first: a password in a URL may have characters that no pattern expects."""
    found = set()
    for name, value in os.environ.items():
        if ADDRESS_NAME.search(name.upper()) and (url := URL.fullmatch(value)):
            found.add(url["userinfo"])
        if SECRET_NAME.search(name.upper()) and len(value) >= SHORTEST:
            found.add(value)
    return sorted(found, key=len, reverse=True)


def split_userinfo(url: str) -> tuple[str, str, str]:
    """Returns a URL without its user and password, and these two as they stand there, empty where there are none."""
    found = URL.fullmatch(url)
    if not found:
        return url, "", ""
    user, _, password = found["userinfo"].partition(":")
    return url.replace(f"{found['userinfo']}@", "", 1), user, password
