"""The Batch API of OpenAI-compatible endpoints: half the price, replies within a day, and a restart waits for the same batch."""

import hashlib
import json
import time
from dataclasses import replace

import openai
from tqdm import tqdm

from emstudy.errors import UserError
from emstudy.replies import Reply, read

PRICE = 0.5  # of the usual one
MOST = 50_000  # requests a batch, by OpenAI's rules
FAILED = ("failed", "expired", "cancelled")
BATCH = ("id", "status")  # what is read of one
PAUSES = (1, 2, 5, 10, 30)  # seconds between questions after a batch; the last one repeats


def complete(client, requests: dict[str, dict], label: str, empty: bool) -> None:
    """Have all requests (by the key they are filed under) answered in batches; replies go to client.replies as batches end.

    client: an endpoint.Client. empty: whether a reply without text is an answer. Raises UserError when a batch fails or its money
    is not there; what came before is kept.
    """
    keys = sorted(requests)
    with tqdm(total=len(keys), desc=f"{label}, in a batch", unit="reply") as bar:
        for start in range(0, len(keys), MOST):
            part = {k: requests[k] for k in keys[start : start + MOST]}
            try:
                _complete(client, part, bar, start, empty)
            except (openai.APIError, ValueError) as error:  # ValueError: an answer that is no JSON, or of another shape
                raise client.fault(error) from None
            bar.update(start + len(part) - bar.n)


def _complete(client, part: dict[str, dict], bar: tqdm, before: int, empty: bool) -> None:
    """Have what a part of the requests lacks answered in one batch."""
    # the name is that of the whole part, and not of what it lacks: that changes while replies are stored
    name, todo = hashlib.sha256("".join(part).encode()).hexdigest()[:32], _lacking(client, part)
    if not todo:
        return
    most = PRICE * sum(client.most(r) for r in todo.values())
    sent = _find(client, name)  # before the budget is asked for money that is gone
    what = f"a batch of {len(todo)} requests for up to {most:.2f} USD"
    client.ledger.claim(name, most, what=what, sent=bool(sent))
    try:
        if not _lacking(client, part):  # another run has just had this batch
            return
        sent = sent or _find(client, name)
        for batch in sent:
            if batch.status in FAILED:  # by a run that ended before it could look at what was answered
                _store(client, batch, part, empty)
        under_way = next((b for b in sent if b.status not in FAILED), None)
        if under_way is None and not (todo := _lacking(client, part)):
            return
        batch = _wait(client, name, under_way or _create(client, name, todo), bar, before)
        _store(client, batch, part, empty)
        if batch.status in FAILED:
            why = "; ".join(e.message or "" for e in (batch.errors.data or [])) if batch.errors else ""
            raise UserError(
                f"{client.who}: batch {batch.id} {batch.status}: {client.short(why) or 'no reason given'}; replies that came are kept, run again to send the rest anew"
            )
    finally:
        client.ledger.release(name)


def _lacking(client, part: dict[str, dict]) -> dict[str, dict]:
    return {k: r for k, r in part.items() if client.replies.get(k) is None}


def _find(client, name: str) -> list:
    """The batches of these very requests that earlier runs sent."""
    try:
        page = client.client.batches.list(limit=100)
    except AttributeError:  # the client's own, of a text where it looks for a list
        raise ValueError("asked for its batches, it answered with something else: has it the Batch API?") from None
    return [b for b in page if (getattr(b, "metadata", None) or {}).get("emstudy") == name and _known(b, *BATCH)]


def _known(answer, *fields: str):
    """A batch or a file as the endpoint described it. Raises ValueError for an answer that is something else, as a page of a proxy."""
    if not all(isinstance(getattr(answer, f, None), str) for f in fields):
        raise ValueError(f"asked for a batch, it answered with {str(answer)[:80]!r}")
    return answer


def _create(client, name: str, todo: dict[str, dict]):
    lines = [
        {"custom_id": k, "method": "POST", "url": "/v1/chat/completions", "body": request}
        for k, request in todo.items()
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = _known(client.client.files.create(file=("requests.jsonl", text.encode()), purpose="batch"), "id")
    return _known(
        client.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"emstudy": name},
        ),
        *BATCH,
    )


def _wait(client, name: str, batch, bar: tqdm, before: int):
    """Ask after a batch until it ends, well or not, moving the bar. Raises UserError when nobody answers for the patience."""
    heard, turn = time.monotonic(), 0
    while batch.status != "completed" and batch.status not in FAILED:
        time.sleep(PAUSES[min(turn, len(PAUSES) - 1)])
        turn += 1
        client.ledger.renew(name)
        try:
            batch, heard = _known(client.client.batches.retrieve(batch.id), *BATCH), time.monotonic()
        except (openai.APIError, ValueError) as error:
            if time.monotonic() - heard > client.patience:
                raise UserError(
                    f"{client.who}: batch {batch.id} is under way, but {client.short(error)}; run again later, it is waited for"
                ) from None
        if batch.request_counts:
            bar.update(before + batch.request_counts.completed - bar.n)
    return batch


def _store(client, batch, part: dict[str, dict], empty: bool) -> None:
    """Keep what a batch answered. What is no use is kept for its bill where no request looks for it, and stays to be asked again."""
    if not batch.output_file_id:
        return
    # not splitlines: JSON may hold other line ends inside a text
    lines = client.client.files.content(batch.output_file_id).text.split("\n")
    rows = [row for line in lines if (row := answered(line, empty))]
    ready = batch.request_counts.completed if batch.request_counts else 0
    if len(rows) < ready:  # asked one by one the others would be paid for twice
        raise ValueError(f"{ready} replies of batch {batch.id} are ready, its file holds {len(rows)}")
    with client.replies.alone():  # all of them, or none when something ends this halfway
        for key, reply in rows:
            if key in part:
                place = f"{key} {batch.id}" if reply.finish_reason == "error" else key
                client.replies.put(place, client.who, part[key], client.counted(part[key], reply))


def answered(line: str, empty: bool) -> tuple[str, Reply] | None:
    """(key, reply) of one line of a batch's results; None where it holds none, or is cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match row:
        case {"custom_id": str(key), "response": {"status_code": 200, "body": body}}:
            return key, replace(read(body, empty=empty), price=PRICE)
    return None
