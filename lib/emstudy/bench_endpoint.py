"""How near the endpoint judge comes to the time that an endpoint's own slowness takes: python -m emstudy.bench_endpoint SECONDS serves one."""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from emstudy import params
from emstudy.judges.endpoint import EndpointJudge

REPLY = json.dumps(
    {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "85"}}],
     "usage": {"prompt_tokens": 100, "completion_tokens": 1}}
).encode()  # fmt: skip


async def serve(seconds: float) -> None:
    """Answer every request after so many seconds, on a free port of this machine, which is printed."""

    async def talk(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                await asyncio.sleep(seconds)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n" % len(REPLY) + REPLY)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def endpoint(seconds: float):
    """A server in a process of its own, which the environment names as the endpoint."""
    given = {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": ""}
    before = {k: os.environ.get(k) for k in given}
    command = [sys.executable, "-m", "emstudy.bench_endpoint", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            os.environ |= given | {"OPENAI_BASE_URL": f"http://127.0.0.1:{int(server.stdout.readline())}/v1"}
            yield
        finally:
            server.terminate()
            for k, v in before.items():
                os.environ.pop(k) if v is None else os.environ.update({k: v})


def judgments(n: int, concurrency: int, seconds: float) -> dict[str, float]:
    """Seconds that n judgments take, `concurrency` of them at a time, and that they would if nothing but the endpoint took any."""
    judge = params.judge("gpt-4o-mini")
    side_by_side = judge.endpoint.model_copy(update={"concurrency": concurrency})
    asked = [f"Question {i}?" for i in range(n // len(judge.dimensions))]
    with endpoint(seconds), TemporaryDirectory() as folder:
        asking = EndpointJudge(judge.model_copy(update={"endpoint": side_by_side}), Path(folder) / "replies.sqlite")
        started = time.perf_counter()
        asking.score(asked, asked)
        took = time.perf_counter() - started
    ideal = math.ceil(n / concurrency) * seconds  # the last ones at once take as long as a whole round
    return {"judgments": n, "seconds": round(took, 2), "ideal": ideal, "times the ideal": round(took / ideal, 2)}


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
