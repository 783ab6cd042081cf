"""Records without defaults, and YAML files read into them: errors name the file, the key, what was expected and what was found."""

import difflib
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from emstudy import paths
from emstudy.errors import UserError

MOST_VALUES = 100_000  # in a YAML; the question file of Betley et al. has 737
NAME = r"^[a-z0-9][a-z0-9._-]*$"
Name = Field(pattern=NAME)


def _short(place: str | Path) -> str | Path:
    """A path that a file system can hold: asking for one that is longer is an error of its own there."""
    if len(str(place).encode()) > 1000 or any(len(part.encode()) > 255 for part in Path(place).parts):
        raise ValueError("expected a path of at most 1,000 bytes, 255 a name")
    return place


File = Annotated[str, AfterValidator(_short)]  # named from a folder of the project
Place = Annotated[Path, AfterValidator(_short)]


class Strict(BaseModel):
    """A record without defaults: what a YAML does not say is asked for, what it says too much is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


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
            found = "" if e["type"] == "value_error" else f" (found {reprlib.repr(e['input'])})"
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


class Loader(yaml.SafeLoader):
    """Plain values only, and no more of them than MOST_VALUES once aliases are written out: ten lines of nested ones can stand for billions."""

    def compose_document(self):
        """Count before anything is made."""
        node = super().compose_document()
        if _size(node, {}) > MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"aliases stand for more than {MOST_VALUES:,} values")
        return node


class Once(Loader):
    """Each key once: of two, YAML takes the second and says nothing. Files of others, which are read as they are, may do that."""

    def compose_mapping_node(self, anchor):
        """Count the keys as they are written: later on those of other mappings may be merged in."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key in [k for k, _ in node.value if isinstance(k, yaml.ScalarNode)]:
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"'{key.value}' stands there twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Values below a node with its aliases written out; infinite when it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = node.value if isinstance(node.value, list) else []
        flat = [n for p in parts for n in (p if isinstance(p, tuple) else (p,))]
        known[id(node)] = 1 + sum(_size(n, known) for n in flat)
    return known[id(node)]


def parse_yaml(path: Path, once: bool = False) -> Any:
    """What a YAML file says. Raises UserError when it is broken, FileNotFoundError when it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, Once) if once else yaml.load(text, Loader)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{paths.show(path)} can't be read: {error.strerror}") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a date without a 31st, brackets in brackets in brackets
        raise UserError(f"{paths.show(path)} is not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict:
    """A YAML mapping from disk. Raises UserError when it is absent, broken or no mapping."""
    try:
        values = parse_yaml(path, once=True)
    except FileNotFoundError:
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{paths.show(path)} is not there; {path.parent.name} at hand: {have}") from None
    if not isinstance(values, dict):
        raise UserError(f"{paths.show(path)}: expected keys and values, found {type(values).__name__}")
    return values


def load(kind: type[T], folder: str, name: str, values: dict | None = None) -> T:
    """The record params/<folder>/<name>.yaml; its name is the file's."""
    path = paths.PARAMS / folder / f"{name}.yaml"
    values = read_yaml(path) if values is None else values
    if "name" in values:
        raise UserError(f"{paths.show(path)}: unknown key 'name': the file's own name is used, remove the key")
    return check(kind, {"name": name, **values}, paths.show(path))
