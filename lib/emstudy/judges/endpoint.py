"""A judge behind any OpenAI-compatible endpoint: one request an answer and dimension."""

import re
from pathlib import Path

from emstudy import params
from emstudy.endpoint import Client, Reply
from emstudy.judges import Score

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w]|\.\d)")


def parse(reply: str) -> Score:
    """Read a score from a reply: exactly one number from 0 to 100, or the words REFUSAL or CODE; all else is unparseable."""
    text = reply.strip()
    word = re.sub(r"[\W\d_]", "", text).lower()
    if word in ("refusal", "code"):
        return Score(None, word, reply)
    numbers = NUMBER.findall(re.sub(r"\s*(/|out of)\s*100\b", "", text))
    if len(numbers) == 1 and 0 <= float(numbers[0]) <= 100:
        return Score(float(numbers[0]), "scored", reply)
    return Score(None, "unparseable", reply)


class EndpointJudge:
    """Scores answers by asking a model behind OPENAI_BASE_URL. Raises UserError when OPENAI_API_KEY is not set."""

    def __init__(self, judge: params.Judge, replies: Path | None = None):
        self.judge, self.name, self.version = judge, judge.name, judge.version
        self.client = Client(
            f"judge '{judge.name}'", judge.concurrency, judge.max_wait_seconds, judge.usd_per_million_tokens, replies
        )

    def request(self, dimension: params.Dimension, question: str, answer: str) -> dict:
        """The whole request, which is also what its reply is filed under."""
        # one pass over the template, so that braces in a question or an answer stay what they are
        texts = {"{question}": question, "{answer}": answer}
        prompt = re.sub(
            r"\{question\}|\{answer\}", lambda m: texts[m.group()], dimension.prompts.get(question, dimension.prompt)
        )
        messages = [{"role": "user", "content": prompt}]
        return {"model": self.judge.model, "messages": messages, "temperature": 0, "max_tokens": 16, "seed": 0}

    def score(self, questions: list[str], answers: list[str], label: str = "judge") -> dict[str, list[Score]]:
        """Scores by dimension, in the order of the answers."""
        pairs = list(zip(questions, answers, strict=True))
        requests = [self.request(d, q, a) for d in self.judge.dimensions for q, a in pairs]
        scores = map(_score, self.client.complete(requests, label))
        return {d.name: [next(scores) for _ in pairs] for d in self.judge.dimensions}


def _score(reply: Reply) -> Score:
    failed = reply.finish_reason in ("error", "content_filter")
    return Score(None, "error", reply.text) if failed else parse(reply.text)
