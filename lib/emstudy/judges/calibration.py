"""Make the embedded judge's probabilities right, on rows that it was never trained on."""

import torch
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from emstudy import params, paths
from emstudy.judges import diet, embedded


def calibrate(rows: list[diet.Graded], logits: torch.Tensor, heads: embedded.Heads) -> None:
    """Fit each dimension's scale and cut points, the direction kept, by maximum likelihood on rows never trained on.

    The many steps of training hardly move the cut points, so it is here that probabilities become right; ranks stay as they are.
    Platt (1999) with a cut point a limit. logits: (rows, dimensions, limits).
    """
    below, known = (torch.tensor(x, dtype=torch.float64) for x in zip(*[g.targets() for g in rows], strict=True))
    first, steps = (p.detach().double().requires_grad_() for p in (heads.first, heads.steps))
    position = (embedded.cuts(first, steps)[:, :1] - logits[..., :1].double()).detach()
    scale = torch.ones_like(first, requires_grad=True)
    fitting = torch.optim.LBFGS([scale, first, steps], max_iter=1000, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        fitting.zero_grad()
        found = embedded.cuts(first, steps) - scale * position
        out = (binary_cross_entropy_with_logits(found, below, reduction="none") * known).sum() / known.sum()
        out.backward()
        return out

    before = loss().item()
    fitting.step(loss)
    print(f"calibration: scale {scale.flatten().tolist()}, loss {before:.4f} -> {loss().item():.4f}")
    with torch.no_grad():
        heads.direction.weight *= scale
        heads.first.copy_(first)
        heads.steps.copy_(steps)


def scale(what: diet.Diet) -> None:
    """Calibrate the judge in data/judge/ as it is used, merged and in the arithmetic of this machine."""
    found = embedded.version(paths.JUDGE)
    judge = embedded.EmbeddedJudge(params.judge("embedded").model_copy(update={"version": found}))
    below = judge.below([g.question for g in what.calibration], [g.answer for g in what.calibration], "calibration")
    calibrate(what.calibration, below.double().logit(eps=1e-12), judge.heads)
    save_file(judge.heads.state_dict(), paths.JUDGE / "heads.safetensors")
