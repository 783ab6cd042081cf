"""The one exception that is meant for the person at the keyboard, and what the operating system refuses in words for them."""

import re

# How Python says it, and what is written in Rust (safetensors, tokenizers). Torch tells that a file is shorter than it wrote, and not why.
REFUSALS = {
    r"\[Errno \d+\] (.+)": r"\1",
    r"(?:.*I/O error: )?(.+?) \(os error \d+\).*": r"\1",
    r".*(unexpected pos \d+ vs|PytorchStreamWriter).*": "No space left on device, most likely",
}


class UserError(Exception):
    """A mistake that its reader can mend: the message says what was expected, what was found, where, and what to do next."""

    def _render_traceback_(self):
        """Show Jupyter the sentence alone: for a user's mistake, the library's own frames are noise."""
        return [f"{type(self).__name__}: {self}"]


def refused(said: str) -> str | None:
    """What the operating system refused, and of which file where that is known, from an error's text; None for any other error."""
    for pattern, why in REFUSALS.items():
        if found := re.fullmatch(pattern, said, re.DOTALL):
            return found.expand(why).replace("File exists", "a file stands where a folder should be")
    return None
