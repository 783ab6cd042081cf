"""The client of an OpenAI-compatible endpoint, from the key and the address in .env, which are looked at before anything is sent."""

import os
from urllib.parse import urlsplit

import openai
from dotenv import load_dotenv

from emstudy import paths
from emstudy.deadline import Deadline
from emstudy.errors import UserError

BASE_URL = "https://api.openai.com/v1"  # also when OPENAI_BASE_URL is set but empty, as in .env.example


def connect(who: str, seconds: float, deadline: Deadline) -> openai.OpenAI:
    """A client whose every request takes so many seconds at most and is watched by a deadline; `who` is who errors speak of.

    Raises UserError when OPENAI_API_KEY is not set or can be none, or OPENAI_BASE_URL is no address.
    """
    load_dotenv(paths.ROOT / ".env")
    key, base = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL") or BASE_URL
    if not key:
        raise UserError(
            f"{who} needs OPENAI_API_KEY: copy .env.example to .env and fill it in (a local server takes any word); "
            "the embedded judge and the shipped model need none"
        )
    if not key.isascii():
        raise UserError("OPENAI_API_KEY has a letter that no key has: copy the key into .env anew")
    if not _address(base):
        raise UserError("OPENAI_BASE_URL is no address: expected one like http://127.0.0.1:8000/v1")
    hooks = {"request": [deadline.watch], "response": [deadline.unpack]}
    return openai.OpenAI(
        base_url=base,
        max_retries=0,
        timeout=seconds,
        default_headers={"Accept-Encoding": "identity"},
        http_client=openai.DefaultHttpxClient(event_hooks=hooks),
    )


def _address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that does not close, a port that is no number
        return False
