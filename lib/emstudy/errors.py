"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake that its reader can mend: the message says what was expected, what was found, where, and what to do next."""

    def _render_traceback_(self):
        """Show Jupyter the sentence alone: for a user's mistake, the library's own frames are noise."""
        return [f"{type(self).__name__}: {self}"]
