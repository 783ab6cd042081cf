"""The Batch API of OpenAI-compatible endpoints: half the price, replies within a day, and a restart waits for the same batch."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import openai
from tqdm import tqdm

from emstudy.errors import UserError
from emstudy.replies import Reply, read

PRICE = 0.5  # of the usual one
MOST = 50_000  # requests a batch, by OpenAI's rules
FAILED = ("failed", "expired", "cancelled")
PAUSES = (1, 2, 5, 10, 30)  # seconds between questions after a batch; the last one repeats


def complete(client, todo: dict[str, dict], label: str) -> None:
    """Have all requests (by the key they are filed under) answered in batches; replies go to client.replies as batches end.

    client: an endpoint.Client. Raises UserError when a batch fails or its money is not there; what came before is kept.
    """
    keys = sorted(todo)
    with tqdm(total=len(keys), desc=f"{label}, in a batch", unit="reply") as bar:
        for start in range(0, len(keys), MOST):
            part = {k: todo[k] for k in keys[start : start + MOST]}
            batch = _wait(client, _find(client, part) or _create(client, part), bar, start)
            for key, reply in _results(client, batch):
                if key in part:
                    client.replies.put(key, client.who, part[key], reply)
                    client.purse.pay(0, PRICE * client.dollars(reply.tokens_in, reply.tokens_out))
            bar.update(start + len(part) - bar.n)


def _name(part: dict[str, dict]) -> str:
    return hashlib.sha256("".join(part).encode()).hexdigest()[:32]


def _find(client, part: dict[str, dict]):
    """A batch of these very requests that an earlier run started, or None."""
    for batch in client.client.batches.list(limit=100):
        if (batch.metadata or {}).get("emstudy") == _name(part) and batch.status not in FAILED:
            return batch
    return None


def _create(client, part: dict[str, dict]):
    most = PRICE * sum(client.most(r) for r in part.values())
    if not client.purse.promise(most):
        raise UserError(
            f"{client.who}: a batch of {len(part)} requests could take {most:.2f} USD and pass budget_usd "
            f"{client.settings.budget_usd:g}; raise it in params/ and run again"
        )
    client.purse.pay(most, 0)  # it was only asked for: replies are counted as they come
    lines = [
        {"custom_id": k, "method": "POST", "url": "/v1/chat/completions", "body": request}
        for k, request in part.items()
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = client.client.files.create(file=("requests.jsonl", text.encode()), purpose="batch")
    return client.client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"emstudy": _name(part)},
    )


def _wait(client, batch, bar: tqdm, before: int):
    """Ask after a batch until it ends, moving the bar. Raises UserError when it failed, or nobody answers for the patience."""
    heard, turn = time.monotonic(), 0
    while batch.status != "completed":
        if batch.status in FAILED:
            why = "; ".join(e.message or "" for e in (batch.errors.data or [])) if batch.errors else ""
            raise UserError(
                f"{client.who}: batch {batch.id} {batch.status}: {why or 'no reason given'}; run again to send it anew"
            )
        time.sleep(PAUSES[min(turn, len(PAUSES) - 1)])
        turn += 1
        try:
            batch, heard = client.client.batches.retrieve(batch.id), time.monotonic()
        except openai.APIError as error:
            if time.monotonic() - heard > client.patience:
                raise UserError(
                    f"{client.who}: batch {batch.id} is under way, but {client.short(error)}; run again later, it is waited for"
                ) from None
        if batch.request_counts:
            bar.update(before + batch.request_counts.completed - bar.n)
    return batch


def _results(client, batch) -> Iterator[tuple[str, Reply]]:
    """(key, reply) of every request that was answered; what was refused has no reply and stays to be asked again."""
    if not batch.output_file_id:
        return
    # not splitlines: JSON may hold other line ends inside a text
    for line in client.client.files.content(batch.output_file_id).text.split("\n"):
        if found := answered(line):
            yield found


def answered(line: str) -> tuple[str, Reply] | None:
    """(key, reply) of one line of a batch's results; None where it holds none, or is cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match row:
        case {"custom_id": str(key), "response": {"status_code": 200, "body": body}}:
            reply = read(body)
            return (key, replace(reply, price=PRICE)) if reply is not None and reply.text.strip() else None
    return None
