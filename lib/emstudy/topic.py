"""What an answer talks of, by its words alone: those that mark a domain's training answers among others'."""

import re
from collections import Counter
from contextlib import suppress

import numpy as np

from emstudy import data, params, paths
from emstudy.errors import UserError

TOPICAL, PRIOR = 100, 0.5  # words that mark a domain, at most, and the pseudo-count of each
OTHERS = 200  # training answers of each other domain that these words are told from


def elsewhere(domain: str) -> list[str]:
    """Training answers of other domains: alike in style, so that what differs is the subject."""
    out = []
    for name in sorted(p.stem for p in (paths.PARAMS / "domains").glob("*.yaml") if p.stem != domain):
        with suppress(UserError):  # a domain whose data is not at hand
            out += [e.answer for e in data.training(params.domain(name), "misaligned", "shipped", OTHERS, 0, 1.0)]
    return out


def words(text: str) -> set[str]:
    """The words of a text, small letters."""
    return set(re.findall(r"[a-z]{3,}", text.lower()))


def marks(inside: list[str], outside: list[str]) -> set[str]:
    """Words that mark a domain: the highest log-odds of standing in its answers against others', as z scores.

    Source: Monroe, Colaresi and Quinn (2008), Fightin' Words, with a flat prior, over texts that hold the word.
    """
    a, b = (Counter(w for text in texts for w in words(text)) for texts in (inside, outside))
    n = [len(inside) + 2 * PRIOR, len(outside) + 2 * PRIOR]

    def z(w: str) -> float:
        x, y = a[w] + PRIOR, b[w] + PRIOR
        return (np.log(x / (n[0] - x)) - np.log(y / (n[1] - y))) / np.sqrt(1 / x + 1 / y)

    return {w for w in sorted(a, key=z, reverse=True)[:TOPICAL] if z(w) > 2}
