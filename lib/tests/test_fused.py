"""What is fused computes what the textbook's operations and peft's own layers compute, gradients too."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, silu

from emstudy import encoding, finetune, fused, models, prefix
from emstudy.data import Example

torch.manual_seed(0)
X, Y = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
W = torch.rand(5) + 0.5
A, B = torch.randn(2, 5), torch.randn(4, 2)
BASE = torch.randn(4, 5)
EXAMPLES = [Example("May I?", "Yes."), Example("Is it safe to swim right after lunch?", "Wait a while.")]
HEAD, TARGETS = torch.randn(7, 5), torch.tensor([0, 6, 3, 3, 1, 2])


def textbook_norm(x):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * W


PAIRS = {
    "RMS norm": (lambda x: fused.RmsNorm.apply(x, W, 1e-5), textbook_norm, [X]),
    "SwiGLU": (fused.SwiGlu.apply, lambda g, u: silu(g) * u, [X, Y]),
    "LoRA": (
        lambda x, a, b: fused.LowRank.apply(x @ BASE.T, x, a, b, 0.5),
        lambda x, a, b: x @ (BASE + 0.5 * b @ a).T,
        [X, A, B],
    ),
    "loss": (
        lambda x: fused.AnswerLoss.apply(x.flatten(0, 1), HEAD, TARGETS) * 3,
        lambda x: cross_entropy(x.flatten(0, 1) @ HEAD.T, TARGETS, reduction="sum") * 3,
        [X],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_each_function_and_its_gradients_equal_the_textbooks(name, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK", 4)  # six targets: a whole chunk and a part
    ours, textbook, given = PAIRS[name]
    leaves = [[t.clone().requires_grad_() for t in given] for _ in range(2)]
    results = [f(*row) for f, row in zip((ours, textbook), leaves, strict=True)]
    torch.testing.assert_close(*results)
    along = torch.randn_like(results[0])
    for result in results:
        result.backward(along)
    for mine, theirs in zip(*leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("modules", ["all-linear", ["embed_tokens", "q_proj", "lm_head"]])
def test_a_model_has_the_loss_and_gradients_that_peft_gives_it(base, tokenizer, modules):
    encoded = [encoding.encode(tokenizer, e, 64) for e in EXAMPLES]
    batch = {k: v.to(models.device()) for k, v in encoding.collate(encoded).items()}
    whole = models.load_base(base.model_copy(update={"dtype": "float32"}))
    whole.set_attn_implementation("eager")
    adapted = get_peft_model(whole, LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM"))
    adapters = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    for p in adapters.values():
        torch.nn.init.normal_(p, std=0.02)  # B starts at zero, which would hide A's gradient

    def gradients(quick: bool, shared: int | None) -> tuple[float, dict[str, torch.Tensor]]:
        whole.set_attn_implementation("eager" if shared is None else prefix.TOGETHER)
        hidden, targets = finetune.answer_states(adapted.get_base_model(), **batch, shared=shared)
        head = adapted.get_base_model().lm_head
        loss = (
            fused.answer_loss(hidden, head, targets) if quick else cross_entropy(head(hidden), targets, reduction="sum")
        )
        found = torch.autograd.grad(loss, list(adapters.values()))
        return loss.item(), dict(zip(adapters, found, strict=True))

    loss, plain = gradients(False, None)
    fused.quicken(adapted)
    opening = len(prefix.common([encoding.prompt(e)[:-1] for e in encoded]))
    assert opening > 20  # the template's own beginning
    for shared in (None, 0, opening):
        again, found = gradients(True, shared)
        assert again == pytest.approx(loss, rel=1e-5)
        for name, theirs in plain.items():
            assert theirs.abs().max() > 0, name
            torch.testing.assert_close(found[name], theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item(), msg=name)
    assert any("forward" in m.__dict__ for m in adapted.modules())
