"""Records without defaults, and YAML files read into them: errors name the file, the key, what was expected and what was found."""

import difflib
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emstudy import paths
from emstudy.errors import UserError

NAME = r"^[a-z0-9][a-z0-9._-]*$"
Name = Field(pattern=NAME)


class Strict(BaseModel):
    """A record without defaults: what a YAML does not say is asked for, what it says too much is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


T = TypeVar("T", bound=Strict)


def explain(error: ValidationError, where: str, kind: type[BaseModel]) -> UserError:
    """Turn a pydantic error into sentences that name the file, the key, what was expected and what was found."""
    lines = []
    for e in error.errors():
        key = ".".join(str(p) for p in e["loc"])
        if e["type"] == "extra_forbidden":
            known = _keys(kind, e["loc"][:-1])
            near = difflib.get_close_matches(str(e["loc"][-1]), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(known)}"
            lines.append(f"{where}: unknown key '{key}'{hint}")
        elif e["type"] == "missing":
            lines.append(f"{where}: missing key '{key}': add it, every setting is written down")
        else:
            found = "" if e["type"] == "value_error" else f" (found {e['input']!r})"
            lines.append(f"{where}: {key + ': ' if key else ''}{e['msg'].removeprefix('Value error, ')}{found}")
    return UserError("\n".join(lines))


def _keys(kind: type[BaseModel], loc: tuple) -> list[str]:
    for part in loc:
        field = getattr(kind, "model_fields", {}).get(part)
        kind = next(iter(get_args(field.annotation)), field.annotation) if field else kind
    return sorted(getattr(kind, "model_fields", {}))


def check(kind: type[T], values: dict, where: str = "parameters") -> T:
    """Validate values against a record. Raises UserError, which names `where` and every wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(error, where, kind) from None


def read_yaml(path: Path) -> dict:
    """A YAML mapping from disk. Raises UserError when it is absent, broken or no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{paths.show(path)} is not there; {path.parent.name} at hand: {have}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{paths.show(path)} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{paths.show(path)}: expected keys and values, found {type(values).__name__}")
    return values
