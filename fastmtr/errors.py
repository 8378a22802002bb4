"""The exceptions that fastmtr raises. One for each status of ``fastmtr.h`` that is not a plain Python error."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BundleError",
    "ConfigError",
    "ConversionError",
    "FastMTRError",
    "SchemaError",
    "StaleError",
]


class FastMTRError(Exception):
    """Base of all fastmtr errors."""


class SchemaError(FastMTRError, ValueError):
    """Data or a request does not fit the schema: a missing column, a wrong type, an id out of range."""


class ConfigError(FastMTRError, ValueError):
    """A configuration file or option is wrong: the message names the key."""


class BundleError(FastMTRError):
    """A bundle is missing, truncated, altered, or of a version this fastmtr does not read."""


class ConversionError(FastMTRError):
    """A model cannot be expressed as a Graph, or the compiled scores differ from the model's."""


class BackendError(FastMTRError):
    """A back end or instruction set that was asked for is not available, or failed."""


class StaleError(FastMTRError):
    """The catalogue is no longer the version that the call expects."""
