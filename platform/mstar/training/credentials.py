"""Secrets come from the environment of the machine that uses them, and are written nowhere.

Everything that a job records (MLflow's params, tags and artifacts, the spool, the command line)
goes through `redact`; a secret on a command line is refused before anything starts, because the
process table, Ray's dashboard and the shell's history keep what was typed.
"""

import os
import re
from collections.abc import Iterable, Mapping

from mstar.errors import ConfigError

CREDENTIALS = "MSTAR_CREDENTIALS"  # names of variables that every node must have, with commas
# Names whose values are secret; a name of a file that holds one is none itself.
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY|SIGNATURE", re.I
)
_PLACE_NAME = re.compile(r"(_FILE|_PATH|_DIR|_URI|_URL|_ENDPOINT|_MODE)$", re.I)
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s\"']+@")
_IN_QUERY = re.compile(
    r"(?P<name>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|[\w-]*(?:secret|token|password|"
    r"access_key|signature|sig)[\w-]*)=)[^&\s\"']+",
    re.I,
)
_SHORTEST = 8  # a shorter value may be any word, and would blot out innocent text


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret, rather than a place or a setting."""
    named = name.removeprefix("MSTAR_") != "CREDENTIALS"  # ours holds names, not values
    return named and bool(_SECRET_NAME.search(name)) and not _PLACE_NAME.search(name)


def holds_secret(text: str) -> bool:
    """Whether an address names a user and password, or is signed."""
    return bool(_IN_ADDRESS.search(text) or _IN_QUERY.search(text))


def redact(text: str) -> str:
    """The text without credentials in addresses, and without the values of secret variables."""
    text = _IN_QUERY.sub(r"\g<name>…", _IN_ADDRESS.sub("", text))
    for value, name in secret_values(os.environ).items():
        text = text.replace(value, f"${name}")
    return text


def secret_values(environment: Mapping[str, str]) -> dict[str, str]:
    """Secret values and the variables they come from, the longest first."""
    found = {
        value: name
        for name, value in environment.items()
        if is_secret_name(name) and len(value) >= _SHORTEST
    }
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def refuse_secrets(arguments: Iterable[str]) -> None:
    """Raises ConfigError where a command line holds a secret; the message does not repeat it."""
    values = secret_values(os.environ)
    flag = "the command line"
    for argument in arguments:
        flag = argument.partition("=")[0] if argument.startswith("--") else flag
        named = next((name for value, name in values.items() if value in argument), "")
        if named or holds_secret(argument):
            what = f"the value of {named}" if named else "a user name, password or signature"
            raise ConfigError(
                f"{flag}: it holds {what}, which the process table, Ray's dashboard and the "
                "shell's history would keep. Give the address without it; credentials come from "
                "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, a role)"
            )


def missing_credentials(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names that MSTAR_CREDENTIALS promises and the environment lacks."""
    names = filter(None, environment.get(CREDENTIALS, "").split(","))
    return tuple(name for name in names if not environment.get(name))
