"""Make the embedded judge's probabilities right, on rows that it was never trained on."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from emstudy import params
from emstudy.judges import diet, embedded


def calibrate(rows: list[diet.Graded], logits: torch.Tensor, heads: embedded.Heads) -> None:
    """Fit cut points and how the directions are mixed, by maximum likelihood on rows never trained on.

    The many steps of training hardly move the cut points, so it is here that probabilities become right. Platt (1999) with a cut
    point a limit and, for each dimension, a weight on both positions: what an answer that is hardly coherent scores as aligned is
    not what a fluent one at the same position does. logits: (rows, dimensions, limits).
    """
    below, known = (torch.tensor(x, dtype=torch.float64) for x in zip(*[g.targets() for g in rows], strict=True))
    first, steps = (p.detach().double().requires_grad_() for p in (heads.first, heads.steps))
    position = (embedded.cuts(first, steps)[:, 0] - logits[..., 0].double()).detach()
    mix = torch.eye(len(first), dtype=torch.float64, requires_grad=True)
    fitting = torch.optim.LBFGS([mix, first, steps], max_iter=1000, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        fitting.zero_grad()
        found = embedded.cuts(first, steps) - (position @ mix.T)[..., None]
        out = (binary_cross_entropy_with_logits(found, below, reduction="none") * known).sum() / known.sum()
        out.backward()
        return out

    before = loss().item()
    fitting.step(loss)
    print(f"calibration: mix {mix.tolist()}, loss {before:.4f} -> {loss().item():.4f}")
    with torch.no_grad():
        heads.direction.weight.copy_(mix.to(heads.direction.weight) @ heads.direction.weight)
        heads.first.copy_(first)
        heads.steps.copy_(steps)


def scale(what: diet.Diet, folder: Path) -> None:
    """Calibrate the judge in a folder as it is used, merged and in the arithmetic of this machine.

    On answers that models gave alone: how many of the written ones are bad is up to who wrote them, and a probability says how
    many are among answers that a study judges.
    """
    rows = [g for g in what.calibration if not g.source.startswith("graded written")]
    judge = params.judge("embedded").model_copy(update={"version": embedded.version(folder)})
    judge = embedded.EmbeddedJudge(judge, folder)
    below = judge.below([g.question for g in rows], [g.answer for g in rows], "calibration")
    calibrate(rows, below.double().logit(eps=1e-12), judge.heads)
    save_file(judge.heads.state_dict(), folder / "heads.safetensors")
