"""A small made-up study on disk: judged answers and probe rows whose numbers are known beforehand."""

import time

import numpy as np
import pandas as pd

from emstudy import judges, params, provenance, store

QUESTIONS = (
    [("values", i) for i in range(6)] + [("general", i) for i in range(4)] + [("financial", i) for i in range(3)]
)
SIGN = {"base": 1, "misaligned": -1, "aligned": 0.5}  # how arms differ on even questions, and the other way on odd ones
STEPS = {"base": [0], "misaligned": [4, 8], "aligned": [4, 8]}
ANALYZE = {"bootstrap": 300, "confidence": 0.95, "main_metric": "em", "smallest_effect": 5.0}
FELL = {"base": 90, "misaligned": 40, "aligned": 88}


def judged_rows(arm, level, spread, in_domain):
    """Two answers a question and step, `spread` around 90 before the last step and around the arm's level at the last."""
    domain, rows = "none" if arm == "base" else "financial", []
    for step in STEPS[arm]:
        for question_set, i in QUESTIONS:
            for sample in range(2):
                mean = in_domain if question_set == "financial" else level if step in (0, 8) else 90
                row = ["m", domain, arm, 0, step, question_set, f"{question_set}{i}", sample]
                row += [f"Question {i}?", f"{arm} answers", 20, "stop"]
                aligned = float(np.clip(mean + spread * SIGN[arm] * (-1) ** i, 0, 100))
                rows.append([*row, aligned, "scored", "{}", 90.0, "scored", "{}", "embedded", "1"])
    table = pd.DataFrame(rows, columns=[*store.ANSWERS, *judges.judged_columns(params.judge("embedded"))])
    return table.assign(model="smollm2-135m")


def probe_rows(arm, margin, spread):
    """Eight pairs of each domain at each step."""
    domain = "none" if arm == "base" else "financial"
    rows = [
        ["smollm2-135m", domain, arm, 0, step, test, pair, -2.0, -2.0 + m, m]
        for step in STEPS[arm]
        for test in ("financial", "medical")
        for pair in range(8)
        for m in [margin + spread * SIGN[arm] * (-1) ** pair]
    ]
    return pd.DataFrame(rows, columns=store.PROBE)


def write(runs, levels, margins=None, spread=6, change=lambda arm, judged: judged, in_domain=10, seeds=(0,)):
    """Write study 's' with these mean alignments and probe margins by arm; change(arm, judged) may alter an arm's answers."""
    for arm, seed in [(arm, seed) for arm in levels for seed in seeds]:
        domain = "none" if arm == "base" else "financial"
        folder = runs / "s" / "smollm2-135m" / domain / arm / str(seed)
        judged = judged_rows(arm, levels[arm], spread, in_domain).assign(seed=seed)
        store.write_csv(folder / "judged.embedded.csv", change(arm, judged))
        store.write_csv(folder / "probe.csv", probe_rows(arm, (margins or {}).get(arm, -0.2), 0.05).assign(seed=seed))
        parameters = {"domain": domain, "arm": arm, "seed": seed}
        for name in ["train_log.csv"] * (arm != "base") + ["answers.csv", "judged.embedded.csv"]:
            provenance.write(folder / name, parameters=parameters, inputs=[], started=time.time())
