"""local.settings.json: the settings of one machine, as the Core Tools read them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from dropforge.host.errors import SettingsError
from dropforge.host.json_files import read_object


@dataclass(frozen=True)
class Cors:
    """Which web pages may call the functions; no origins: none."""

    origins: tuple[str, ...] = ()
    credentials: bool = False

    def allowed_origin(self, origin: str | None) -> str | None:
        """What to answer a page of this origin, or None to refuse it."""
        if not origin or not self.origins:
            return None
        if "*" in self.origins:
            return "*"
        return origin if origin.rstrip("/").lower() in self.origins else None


@dataclass(frozen=True)
class LocalSettings:
    values: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    cors: Cors = Cors()
    # Names in the file that have no effect here.
    ignored: tuple[str, ...] = ()

    def apply(self, environment: MutableMapping[str, str]) -> None:
        """Add the values to the environment; a variable that is already set wins."""
        for name, value in self.values.items():
            environment.setdefault(name, value)


def read_local_settings(path: Path) -> LocalSettings:
    """The settings in the file; none when there is no file. Raises `SettingsError` for a file that cannot be used."""
    found = read_object(path)
    if found is None:
        return LocalSettings()
    if found.get("IsEncrypted"):
        raise SettingsError(f"{path} is encrypted (IsEncrypted: true); decrypt it with `func settings decrypt`")
    values = found.get("Values", {})
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: Values must be an object of strings, found {type(values).__name__}")
    for name, value in values.items():
        if not isinstance(value, str):
            raise SettingsError(f"{path}: Values.{name} must be a string, found {value!r}; put it in quotes")
    host = found.get("Host", {})
    if not isinstance(host, dict):
        raise SettingsError(f"{path}: Host must be an object, found {type(host).__name__}")
    unknown = [name for name in found if name not in ("IsEncrypted", "Values", "Host")]
    unknown += [f"Host.{name}" for name in host if name not in ("LocalHttpPort", "CORS", "CORSCredentials")]
    return LocalSettings(values, _port(host.get("LocalHttpPort"), path), _cors(host, path), tuple(unknown))


def _port(value: object, path: Path) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise SettingsError(f"{path}: Host.LocalHttpPort must be a number from 1 to 65535, found {value!r}")
    return value


def _cors(host: Mapping[str, object], path: Path) -> Cors:
    origins, credentials = host.get("CORS", ""), host.get("CORSCredentials", False)
    if not isinstance(origins, str):
        raise SettingsError(f"{path}: Host.CORS must be a string of origins with commas between, found {origins!r}")
    if not isinstance(credentials, bool):
        raise SettingsError(f"{path}: Host.CORSCredentials must be true or false, found {credentials!r}")
    listed = tuple(origin.strip().rstrip("/").lower() for origin in origins.split(",") if origin.strip())
    if credentials and "*" in listed:
        raise SettingsError(f"{path}: Host.CORSCredentials cannot be true while Host.CORS is '*'; list the origins")
    return Cors(listed, credentials)
