"""Known weaknesses of the pinned packages, from the open database that PyPI's and GitHub's advisories go into."""

import re
from pathlib import Path

import requests

from emstudy import paths
from emstudy.errors import UserError

DATABASE = "https://api.osv.dev/v1/querybatch"
CONSTRAINTS = paths.ROOT / "lib" / "constraints.txt"


def pins(path: Path = CONSTRAINTS) -> dict[str, str]:
    """{package: version} of a constraints file."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return dict(re.split("==", line, maxsplit=1) for line in lines if line)


def known(pinned: dict[str, str], database: str = DATABASE) -> dict[str, list[str]]:
    """{'package version': ids of its advisories} for those that have any. Source: https://google.github.io/osv.dev/post-v1-querybatch/

    Raises UserError when the database can't be asked, so that silence is never taken for safety.
    """
    asked = [{"package": {"name": n, "ecosystem": "PyPI"}, "version": v} for n, v in pinned.items()]
    try:
        reply = requests.post(database, json={"queries": asked}, timeout=60)
        reply.raise_for_status()
        results = reply.json()["results"]
        found = [[v["id"] for v in r.get("vulns") or []] for r in results]
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{database} gave no answer ({type(error).__name__}): nothing was checked, try again with a network"
        ) from None
    if len(found) != len(asked):
        raise UserError(f"{database} answered {len(found)} of {len(asked)} questions: nothing was checked, try again")
    return {f"{n} {v}": ids for (n, v), ids in zip(pinned.items(), found, strict=True) if ids}


def main(database: str = DATABASE) -> str:
    """The finding in a sentence. Raises UserError, which lists them, when a pinned package has known weaknesses."""
    pinned = pins()
    if found := known(pinned, database):
        listed = "\n".join(f"  {package}: {', '.join(ids)}" for package, ids in found.items())
        raise UserError(
            f"{len(found)} of {len(pinned)} pinned packages have known weaknesses:\n{listed}\nraise their pins in {paths.show(CONSTRAINTS)}"
        )
    return f"none of the {len(pinned)} pinned packages has a known weakness"
