"""The Batch API of OpenAI-compatible endpoints: half the price, replies within a day, and a restart waits for the same batch."""

import json
import math
import time
from dataclasses import replace

import openai
from tqdm import tqdm

from emstudy import paths
from emstudy.errors import UserError
from emstudy.replies import Reply, read

PRICE = 0.5  # of the usual one
MOST = 50_000  # requests a batch, by OpenAI's rules
UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")
FAILED = ("failed", "expired", "cancelled")
PAUSES = (1, 2, 5, 10, 30)  # seconds between questions after a batch; the last one repeats
LONGEST = 25 * 3600  # seconds that a batch is waited for: it promises a day
FILE = 3600  # seconds for a file of requests or replies


def complete(client, requests: dict[str, dict], label: str, empty: bool) -> None:
    """Collect the batches that hold any of the requests (by the key they are filed under), whoever sent them, and where the settings
    say so have the others answered in batches too; replies go to client.replies as batches end.

    client: an endpoint.Client. empty: whether a reply without text is an answer. Raises UserError when a batch fails or its money
    is not there; what came before is kept.
    """
    left = dict(sorted(requests.items()))
    try:
        while True:
            while batches := client.ledger.batches(left):
                for name, (number, keys) in batches.items():
                    if _collect(client, name, number, {k: left[k] for k in keys}, label, empty):
                        # what a batch left open is not put into another: it is asked one by one
                        left = {k: r for k, r in left.items() if k not in set(keys)}
            if not client.settings.batch:
                return
            most = {k: PRICE * client.most(r) for k, r in left.items()}
            name, keys = client.ledger.take(most, MOST)
            if not keys:
                return
            _send(client, name, {k: left[k] for k in keys})
    except openai.NotFoundError as error:
        raise UserError(
            f"{client.who} at {client.address}: {client.short(error)}; if it has no Batch API, set batch: false in params/ and run again"
        ) from None
    except (
        openai.APIError,
        TimeoutError,
        ValueError,
        RecursionError,
    ) as error:  # the last two: no JSON, or another shape
        raise client.fault(error) from None


def _send(client, name: str, todo: dict[str, dict]) -> None:
    """Have the endpoint begin a batch. When it was not asked to or said no, or none of this name is there, its claims go."""
    lines = [
        {"custom_id": k, "method": "POST", "url": "/v1/chat/completions", "body": request}
        for k, request in todo.items()
    ]
    text, asked = "".join(json.dumps(line) + "\n" for line in lines), False
    try:
        upload = ("requests.jsonl", text.encode())
        file = client.deadline.call(lambda: client.client.files.create(file=upload, purpose="batch"), FILE)
        body = {"input_file_id": getattr(file, "id", None), "endpoint": "/v1/chat/completions"}
        if not isinstance(body["input_file_id"], str):
            raise ValueError(f"asked to keep a file, it answered with {file}")
        body |= {"completion_window": "24h", "metadata": {"emstudy": name}}
        asked = True
        batch = _shown(client.deadline.call(lambda: client.client.post("/batches", body=body, cast_to=object)))
        client.ledger.sent(name, batch["id"])
    except Exception as error:
        status = getattr(error, "status_code", 500)
        said_no = 400 <= status < 500 and status != 408  # 408: it waited too long, and may have begun all the same
        if not asked or said_no or not _adopt(client, name):
            client.ledger.drop(name, todo)
            raise


def _adopt(client, name: str) -> bool:
    """Look for a batch that may have been sent though nobody noted its id; is it there? Not where the endpoint has no batches at all."""
    try:
        answer = client.deadline.call(lambda: client.client.get("/batches?limit=100", cast_to=object))
    except openai.NotFoundError:
        return False
    match answer:
        case {"data": list(found)}:
            for batch in found:
                match batch:
                    case {"id": str(number), "metadata": {"emstudy": str(said)}} if said == name:
                        client.ledger.sent(name, number)
                        return True
            return False
        case _:
            raise ValueError(f"asked for its batches, it answered with {answer}: has it the Batch API?")


def _shown(answer: object) -> dict:
    """A batch as the endpoint described it. Raises ValueError for an answer that is something else, as a page of a proxy."""
    match answer:
        case {"id": str(), "status": str(status)} if status in (*UNDER_WAY, "completed", *FAILED):
            return answer
    raise ValueError(f"asked for a batch, it answered with {answer}")


def _collect(client, name: str, number: str | None, requests: dict[str, dict], label: str, empty: bool) -> bool:
    """Wait for a batch and keep its replies to these requests. False where there is none to wait for yet, or after all."""
    if number is None:  # its run is about to send it, or was killed then
        if client.ledger.sending(name):
            client.ledger.pause()
        elif not _adopt(client, name):
            client.ledger.drop(name, requests)
        return False
    try:
        batch = _wait(client, number, label)
        _store(client, name, batch, requests, empty)
    except openai.NotFoundError:
        client.ledger.drop(name, requests)
        raise UserError(
            f"{client.who}: batch {number}, or the file of its replies, is not there any more; run again to send it anew"
        ) from None
    if batch["status"] in FAILED:
        match batch:
            case {"errors": {"data": list(errors)}}:
                why = "; ".join(str(e.get("message") if isinstance(e, dict) else e) for e in errors)
            case _:
                why = ""
        raise UserError(
            f"{client.who}: batch {number} {batch['status']}: {client.short(why) or 'no reason given'}; replies that came are kept, run again to send the rest anew"
        )
    return True


def _wait(client, number: str, label: str) -> dict:
    """Ask after a batch until it ends, well or not. Raises UserError when nobody answers for the patience, or it takes longer than a day."""
    begun = heard = time.monotonic()
    batch, turn = {"status": "in_progress"}, 0
    with tqdm(desc=f"{label}, in a batch", unit="reply") as bar:
        while batch["status"] in UNDER_WAY:
            client.ledger.pause(PAUSES[min(turn, len(PAUSES) - 1)] if turn else 0)
            turn += 1
            try:
                batch = _shown(client.deadline.call(lambda: client.client.get(f"/batches/{number}", cast_to=object)))
                heard = time.monotonic()
            except (openai.APIError, TimeoutError, ValueError, RecursionError) as error:
                if isinstance(error, openai.NotFoundError | openai.AuthenticationError):
                    raise
                if time.monotonic() - heard > client.patience:
                    raise UserError(
                        f"{client.who}: batch {number} is under way, but {client.short(error)}; run again later, it is waited for"
                    ) from None
            if time.monotonic() - begun > LONGEST:
                raise UserError(
                    f"{client.who}: batch {number} is {batch['status']} for longer than a day; run again later"
                )
            match batch.get("request_counts"):
                case {"completed": int(done), "total": int(total)}:
                    bar.total = total
                    bar.update(done - bar.n)
    return batch


def _store(client, name: str, batch: dict, requests: dict[str, dict], empty: bool) -> None:
    """Keep what a batch answered. What is no use is kept for its bill where no request looks for it, and stays to be asked again."""
    match batch.get("request_counts"):
        case {"completed": int(ready)}:
            pass
        case _:
            ready = 0
    file, lines = batch.get("output_file_id"), []
    if isinstance(file, str):
        # not splitlines: JSON may hold other line ends inside a text
        lines = client.deadline.call(lambda: client.client.files.content(file).text, FILE, math.inf).split("\n")
    rows = [row for line in lines if (row := answered(line, empty))]
    # asked one by one, those that are ready and not in the file would be paid for twice
    short = len(rows) < ready and (file or batch["status"] == "completed")
    with client.replies.alone():  # all of them, or none when something ends this halfway
        for key, reply in rows:
            if reply and key in requests:
                place = f"{key} {batch['id']}" if reply.finish_reason == "error" else key
                client.replies.put(place, client.who, requests[key], client.counted(requests[key], reply))
        client.ledger.drop(name, [key for key, _ in rows] if short else requests)
    if short:
        raise UserError(
            f"{client.who}: {ready} replies of batch {batch['id']} are ready, its file holds {len(rows)}; run again later, those that came are kept. "
            f"Should it stay so, this has the others asked anew, and paid for again: sqlite3 {paths.show(client.replies.path)} "
            f"\"DELETE FROM claims WHERE batch = '{batch['id']}'\""
        )


def answered(line: str, empty: bool) -> tuple[str, Reply | None] | None:
    """(key, reply) of one line of a batch's results, (key, None) where it was refused; None where the line holds neither, or is cut off."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match row:
        case {"custom_id": str(key), "response": {"status_code": 200, "body": body}}:
            return key, replace(read(body, empty=empty), price=PRICE)
        case {"custom_id": str(key)}:
            return key, None
    return None
