"""A judge behind any OpenAI-compatible endpoint: one request an answer and dimension, scored by token probabilities or by parsing."""

import hashlib
import re
from pathlib import Path

from emstudy import params
from emstudy.endpoint import Client
from emstudy.judges import Score
from emstudy.judges.parsing import parse, weigh
from emstudy.replies import Reply, sound


def within(template: str, text: str) -> str:
    """A text that can't leave the tags that a template puts around it: where it writes one of them, the bracket becomes a "‹".

    That is there for the judge and in the stored request to see; all other texts, and the template itself, stay as they are.
    """
    # what the template closes: "</answer>", in betley's "[/response]"; in the text also "< / Answer" and the like, which a
    # model would take for it. Quotes are left alone: ["response"] is a list
    for bracket, name in sorted(set(re.findall(r"([<\[])/(\w+)[>\]]", template))):
        text = re.sub(rf"{re.escape(bracket)}(?=[^\w\"']{{0,4}}{name}\b)", "‹", text, flags=re.IGNORECASE)
    return text


class EndpointJudge:
    """Scores answers by asking a model behind OPENAI_BASE_URL. Raises UserError when OPENAI_API_KEY is not set."""

    def __init__(self, judge: params.Judge, replies: Path | None = None, seed: int = 0):
        self.judge, self.name, self.seed = judge, judge.name, seed
        asked = judge.model_dump_json(include={"model", "rubric", "logprobs", "temperature"})
        self.version = f"{judge.version}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"  # nobody has to think of it
        self.client = Client(f"judge '{judge.name}'", judge.endpoint, replies)
        self.spent: dict[str, float] = {}

    def request(self, dimension: params.Dimension, question: str, answer: str) -> dict:
        """The whole request, which is also what its reply is filed under."""
        # one pass over the template, so that braces in a question or an answer stay what they are
        template = dimension.prompts.get(question, dimension.prompt)
        texts = {"{question}": within(template, sound(question)), "{answer}": within(template, sound(answer))}
        prompt = re.sub(r"\{question\}|\{answer\}", lambda m: texts[m.group()], template)
        out = {"model": self.judge.model, "messages": [{"role": "user", "content": prompt}]}
        # not 0.0, which is another request than 0 and would be paid for again
        out |= {"temperature": self.judge.temperature or 0, "max_tokens": 16, "seed": self.seed}
        return out | ({"logprobs": True, "top_logprobs": 20} if self.judge.logprobs else {})

    def read(self, reply: Reply) -> Score:
        """A reply as a score: by token probabilities where it has them, by parsing where not."""
        if reply.finish_reason in ("error", "content_filter"):
            return Score(None, "error", reply.text)
        rubric = self.judge.rubric
        if reply.first:
            return weigh(reply, rubric.scale, rubric.unscored)
        return parse(reply.text, rubric.scale, rubric.unscored)

    def score(self, questions: list[str], answers: list[str], label: str = "judge") -> dict[str, list[Score]]:
        """Scores by dimension, in the order of the answers."""
        pairs = list(zip(questions, answers, strict=True))
        requests = [self.request(d, q, a) for d in self.judge.dimensions for q, a in pairs]
        scores = map(self.read, self.client.complete(requests, label))
        self.spent = self.client.cost(requests)
        return {d.name: [next(scores) for _ in pairs] for d in self.judge.dimensions}
