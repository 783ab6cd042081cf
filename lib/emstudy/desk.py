"""Where a person labels: widgets that show one answer after the other and keep each score on disk at once."""

import html
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import ipywidgets as widgets
import pandas as pd

from emstudy import label, paths, report
from emstudy.errors import UserError


@dataclass(eq=False)
class Turn:
    """One answer's time on the desk, with fields of its own, and when its scores were asked to be kept (0: not yet)."""

    place: int
    fields: dict[str, widgets.Text]
    asked: float = 0.0


class Desk:
    """What a person labels at: one answer, a field for each score, three buttons; `box` is the widget to display.

    JupyterLab handles a click and what was typed before it in two threads, so either may arrive first. Hence each answer has fields of
    its own: a number that comes after the click still goes to the answer it was typed for.
    """

    def __init__(self, answers: pd.DataFrame, labels: label.Labels):
        self.answers, self.labels, self.lock = answers, labels, threading.RLock()
        self.count, self.card, self.note = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.scales = [widgets.HTML(text(label.describe(d))) for d in labels.rubric.dimensions]
        names = ("Save & next", "Skip (can't say)", "Back")
        self.keep, self.skip, self.back = buttons = [widgets.Button(description=n) for n in names]
        for button in buttons:
            button.on_click(self.press)
        self.rows = widgets.VBox()
        self.box = widgets.VBox([self.count, self.card, self.rows, widgets.HBox(buttons), self.note])
        self.go([*labels.done(answers), False].index(False))

    def go(self, place: int) -> None:
        """Show the answer at a place, with its scores where it has any; past the last one, say so."""
        end, done = place == len(self.answers), sum(self.labels.done(self.answers))
        found = {} if end else self.labels.read().get(label.key(self.answers.iloc[place]), {})
        # fields start empty: a slider has to stand somewhere, and where it stands draws the scores
        look = {"placeholder": "0-100", "continuous_update": False, "disabled": end}
        fields = {
            d: widgets.Text(value=found.get(d, ""), description=d, layout=widgets.Layout(flex="0 0 14em"), **look)
            for d in self.labels.dimensions
        }
        self.turn = Turn(place, fields)
        for field in fields.values():
            field.observe(partial(self.changed, self.turn), "value")
        self.rows.children = [widgets.HBox(pair) for pair in zip(fields.values(), self.scales, strict=True)]
        self.keep.disabled, self.skip.disabled, self.back.disabled = end, end, place == 0
        self.card.value = "" if end else card(self.answers.iloc[place])
        where = f"All {place} seen" if end else f"{place + 1} of {len(self.answers)}"
        self.count.value = text(f"{where}, {done} done" + (f": {paths.show(self.labels.path)}" if end else ""))
        self.note.value = text("You skipped this one." if found and not any(found[d] for d in fields) else "")
        # the page draws the new fields first: until then there is nothing to put the cursor in
        threading.Timer(0.3, next(iter(fields.values())).focus).start()

    def press(self, button: widgets.Button) -> None:
        """Keep the scores, or that there are none, and go on; or go back."""
        with self.lock:
            self.turn.asked = time.monotonic() if button is self.keep else 0.0
            if button is self.back:
                self.attempt(lambda: self.go(self.turn.place - 1))
            elif button is self.skip:
                self.attempt(lambda: self.put(self.turn, {}))
            else:
                self.changed(self.turn)

    def changed(self, turn: Turn, _change: dict | None = None) -> None:
        """Keep a turn's scores when that was asked just now, or when the desk has moved on since."""
        with self.lock:
            if turn.asked and (turn is not self.turn or time.monotonic() - turn.asked < 1):
                self.attempt(lambda: self.put(turn, {d: f.value.strip() for d, f in turn.fields.items()}))

    def put(self, turn: Turn, scores: dict[str, str]) -> None:
        """Write a turn's scores to disk, and show the next answer if the desk is still there."""
        self.labels.save(self.answers.iloc[turn.place], scores)
        if turn is self.turn:
            self.go(turn.place + 1)

    def attempt(self, act: Callable[[], None]) -> None:
        """Do it, and say below the buttons what went wrong: a callback's own error is not seen."""
        try:
            act()
        except (UserError, OSError) as error:
            self.note.value = text(str(error))


def text(words: str) -> str:
    """Words as HTML that shows them and does nothing else."""
    return f'<div style="line-height:1.5;white-space:pre-wrap;max-width:50em">{html.escape(report.visible(words, 20_000))}</div>'


def card(answer: pd.Series) -> str:
    """Question and answer, and nothing that tells who wrote it."""
    return f"<b>Question</b>{text(answer['question'])}<b>Answer</b>{text(answer['answer'] or '(empty)')}"
