"""Answers of a model behind an OpenAI-compatible endpoint: the same questions, the same table, no weights."""

from emstudy import params
from emstudy.endpoint import Client
from emstudy.errors import UserError
from emstudy.sample import Answer, Ask, seed_of


def request(name: str, ask: Ask, settings: params.Evaluate, seed: int) -> dict:
    """The whole request. The API has no top_k; it is left to the endpoint, as the page says."""
    out = {"model": name, "messages": ask.messages, "max_tokens": settings.max_new_tokens, "seed": seed % 2**31}
    return {**out, "temperature": settings.temperature, "top_p": settings.top_p}


def sample(
    model: params.ApiModel, cell: params.Cell, todo: list[Ask], settings: params.Evaluate, seed: int, label: str
) -> list[Answer]:
    """Answers to all questions; what the endpoint's filter withholds is an empty answer with finish_reason 'content_filter'.

    Raises UserError when requests failed; the replies that came are kept, so that a second run asks for the rest alone.
    """
    client = Client(f"model '{model.name}'", model.endpoint)
    each = [(ask, i) for ask in todo for i in range(ask.samples)]
    name = params.served_as(model, cell)
    requests = [request(name, a, settings, seed_of(seed, a.question_set, a.question_id, i)) for a, i in each]
    replies = client.complete(requests, label, empty=True)
    failed = [r for r in replies if r.finish_reason == "error"]
    if failed:
        raise UserError(
            f"model '{model.name}': {len(failed)} of {len(replies)} requests failed, the last with: {failed[-1].text}; run again, the other replies are kept"
        )
    out = []
    for (ask, i), r in zip(each, replies, strict=True):
        text = "" if r.finish_reason == "content_filter" else r.text.strip()
        out.append(Answer(ask, i, text, r.tokens_out, r.finish_reason))
    return out
