"""Settings as environment variables, to hand them to another process.

Never as arguments: every user of a machine sees those, and settings have secrets among them.
"""

from __future__ import annotations

import json
import os

from pydantic import BaseModel, SecretStr

from encoder.settings import DELIMITER, PREFIX, Settings


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make `load_settings` read these settings; only what is not default."""
    variables: dict[str, str] = {}
    _collect(settings, PREFIX, variables)
    return variables


def child_environment(settings: Settings) -> dict[str, str]:
    """The whole environment of a process that is to have these settings, whatever ours are."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return others | environment_of(settings)


def _collect(section: BaseModel, prefix: str, variables: dict[str, str]) -> None:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            _collect(value, f"{prefix}{name.upper()}{DELIMITER}", variables)
        elif value != field.get_default():
            variables[prefix + name.upper()] = _text(value)


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, dict) else str(value)
