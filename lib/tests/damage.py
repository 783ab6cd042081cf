"""Files and values that are nearly right: what a disk, an editor or a stranger makes of them; and an end for readers that find none."""

import signal
from contextlib import contextmanager

from hypothesis import strategies as st

PIECES = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n\n", b'"', b"'", b",", b"{", b"]", b"\\ud800", b"\xed\xa0\x80", b"NaN", b"-1", b"1e999",
    b"9" * 5000, b"[" * 3000, b"null", b": ", b"&a [*a]", b"<<: *a", b"!!python/object/apply:os.getcwd []", b"\t", b"- ", b"{}", b"2020-99-99", b"\xe2\x80\xae",
]  # fmt: skip
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from([10**400, "\x00", "../x", "", "x" * 500])
)  # fmt: skip
ANY = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)  # fmt: skip


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file with a few places overwritten, cut out, doubled or filled with what readers stumble over; or no such file at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=60))
    out = whole
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(out))), draw(st.integers(0, 40))
        new = draw(st.sampled_from([b"", out[at : at + size] * 2, *PIECES]) | st.binary(max_size=3))
        out = out[:at] + new + out[at + size :]
    return out[: draw(st.integers(0, len(out)))] if draw(st.integers(0, 4)) == 0 else out


@st.composite
def twisted(draw, value):
    """A value with one of its parts exchanged for something else, gone, or under another name."""
    if not value or not isinstance(value, dict | list) or draw(st.integers(0, 4)) == 0:
        return draw(ANY)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, what = draw(st.sampled_from(keys)), draw(st.integers(0, 5))
    out = value.copy()
    if what == 0:
        out.pop(key)
    elif what == 1 and isinstance(value, dict):
        out[draw(st.text(max_size=5))] = out.pop(key)
    else:
        out[key] = draw(twisted(value[key]))
    return out


class Hang(BaseException):
    """A reader that was still at it after so long; no reader's own `except` takes it for something else."""


@contextmanager
def in_time(seconds: float = 10):
    """End what takes longer. A damaged file of a few kilobytes takes milliseconds."""

    def ring(*_):
        raise Hang(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
