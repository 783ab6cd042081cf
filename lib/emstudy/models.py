"""Base models and tokenizers from the hub, a folder or the shipped GGUF, and the adapters on top of them."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from dotenv import load_dotenv
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from emstudy import params, paths, provenance, seal, store
from emstudy.errors import UserError

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
intact = cache(seal.check)  # once a process: it reads 270 MB


def device() -> torch.device:
    """The first GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def arithmetic(dtype: str) -> torch.dtype:
    """What a model of this dtype computes in here: float32 in place of bfloat16 on a CPU that has no arithmetic for it.

    Every bf16 weight is a float32 too. Such a CPU (AVX2, most laptops) multiplies bf16 matrices six times slower than float32 ones.
    """
    if dtype == "bfloat16" and device().type == "cpu" and not provenance.fast_bf16():
        return torch.float32
    return getattr(torch, dtype)


def source(model: params.Model) -> tuple[str, dict]:
    """Where transformers finds the model: a folder or hub id, and keyword arguments. A shipped GGUF is unpacked first.

    Raises UserError with what to do when the model is not there.
    """
    weights = model.weights
    if weights.hub:
        load_dotenv(paths.ROOT / ".env")  # HF_TOKEN, for gated models
        return weights.hub, {"revision": weights.revision}
    if weights.folder:
        folder = paths.ROOT / weights.folder
        if not (folder / "config.json").exists():
            raise UserError(
                f"model '{model.name}': {paths.show(folder)} holds no config.json; put the model's files there"
            )
        return str(folder), {}
    return str(unpacked(model, gguf_file(model))), {}


def gguf_file(model: params.Model) -> Path:
    """The GGUF on disk or inside its package, which is located but never imported. Raises UserError when it is not there."""
    if model.weights.file:
        path = paths.ROOT / model.weights.file
        if not path.exists():
            raise UserError(f"model '{model.name}': {paths.show(path)} is not there; put the GGUF file there")
        return path
    spec = importlib.util.find_spec(model.weights.package)
    path = Path(spec.origin).parent / model.weights.gguf if spec and spec.origin else None
    if path is None or not path.exists():
        package = model.weights.package.replace("_", "-")
        raise UserError(
            f"model '{model.name}': the package {package} is not installed; run `make setup`, which installs it without its dependencies"
        )
    return path


def unpacked(model: params.Model, path: Path) -> Path:
    """Folder of a GGUF's weights as bf16 safetensors: dequantised once into the cache, checked against the SHA-256 that the YAML pins.

    Raises UserError when the GGUF is another or can't be read, the cache can't be written, or what lies there has changed since.
    """
    expected = model.weights.sha256 or store.sha256(path)

    def dequantise(folder: Path) -> None:
        found = store.sha256(path)
        if found != expected:
            raise UserError(
                f"{path.name}: expected SHA-256 {expected}, found {found}; reinstall {model.weights.package}"
            )
        for part in _or_explain(model, lambda: _read_gguf(path)):
            part.save_pretrained(folder)

    return cached(paths.CACHE / f"{model.name}-{expected[:12]}", dequantise)


def cached(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, sealed: `make` fills it once, under another name. Raises UserError when it can't be written or has changed since."""
    if (folder / seal.NAME).exists():
        intact(folder, "delete that folder, it is made again")
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        with store.writing(folder):
            partial.mkdir(parents=True, exist_ok=True)
            make(partial)
            seal.write(partial)
            if not (folder / seal.NAME).exists():
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # another process was first; its copy is the same
                    partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _read_gguf(path: Path) -> tuple:
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return tokenizer, AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )


def load_tokenizer(model: params.Model):
    """The tokenizer with the study's chat template. Its pad token never enters a loss: labels are masked by position."""
    where, more = source(model)
    tokenizer = _or_explain(model, lambda: AutoTokenizer.from_pretrained(where, **more))
    if model.chat_template:
        tokenizer.chat_template = model.chat_template
    if not tokenizer.chat_template:
        raise UserError(f"params/models/{model.name}.yaml: the tokenizer has no chat template; set chat_template")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(model: params.Model) -> PreTrainedModel:
    """The base model on the best device, in its `arithmetic`, in NF4 when the YAML says load_in_4bit."""
    where, more = source(model)
    dtype = arithmetic(model.dtype)
    if model.load_in_4bit:
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        )
        more["device_map"] = {"": device()}
    base = _or_explain(
        model, lambda: AutoModelForCausalLM.from_pretrained(where, dtype=dtype, use_safetensors=True, **more)
    )
    return base if model.load_in_4bit else base.to(device())


def load_merged(model: params.Model, adapter: Path | None) -> PreTrainedModel:
    """The model to sample from: base weights with the adapter merged in (or the base itself), in eval mode.

    A 4-bit base is loaded unquantised to merge, so that rounding to NF4 does not eat the adapter.
    """
    if adapter is None:
        return load_base(model).eval()
    from peft import PeftModel

    _check_adapter(adapter)
    base = load_base(model.model_copy(update={"load_in_4bit": False}))
    try:
        return PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()
    except (SafetensorError, RuntimeError, ValueError) as error:
        said = str(error).strip().split("\n")[0]
        raise UserError(
            f"{paths.show(adapter)} holds no adapter that fits model '{model.name}' ({said}): delete it and run finetune again"
        ) from None


def _check_adapter(folder: Path) -> None:
    """Raises UserError when a folder holds no adapter as safetensors (one as a pickle is never opened), or another than was written."""
    if not all((folder / f"adapter_{part}").exists() for part in ("config.json", "model.safetensors")):
        raise UserError(
            f"{paths.show(folder)} holds no adapter as safetensors: run the finetune notebook for this cell first"
        )
    seal.check(folder, "delete the cell's finetune.ipynb and run again")


def revision(model: params.Model | params.ApiModel) -> str:
    """What pins the weights: hub commit or GGUF digest; 'folder' for a local one, 'endpoint' for one that nobody can pin."""
    if isinstance(model, params.ApiModel):
        return "endpoint"
    if model.weights.file:
        return store.sha256(gguf_file(model))
    return model.weights.revision or model.weights.sha256 or "folder"


def chat_ids(tokenizer, messages: list[dict], generation_prompt: bool) -> list[int]:
    """Token ids of a conversation under the chat template: the only way text becomes tokens here, so BOS comes once."""
    return tokenizer.apply_chat_template(messages, add_generation_prompt=generation_prompt, return_dict=True)[
        "input_ids"
    ]


def _or_explain(model: params.Model, load):
    try:
        return load()
    except (UserError, ImportError, RuntimeError):
        raise
    except Exception as error:  # struct.error, or one without a class: readers of damaged files raise what they like
        first = str(error).strip().split("\n")[0]
        if model.weights.hub:
            raise UserError(
                f"model '{model.name}' ({model.weights.hub}) can't be loaded: {first}\n"
                "It comes from the Hugging Face hub: you need a network, and for gated models (Llama) an accepted licence and "
                "HF_TOKEN in .env. Without them use model 'smollm2-135m', which ships with the project."
            ) from None
        place = paths.ROOT / model.weights.folder if model.weights.folder else gguf_file(model)
        todo = f"reinstall {model.weights.package}" if model.weights.package else "put it there again, whole"
        raise UserError(f"model '{model.name}' can't be loaded from {paths.show(place)} ({first}): {todo}") from None


def adapter_steps(folder: Path) -> dict[int, Path]:
    """The adapter checkpoints below a cell's folder, {optimizer step: folder}, in order; only whole ones are counted."""
    found = {
        int(p.parent.name.removeprefix("step-")): p.parent for p in folder.glob("adapter/step-*/adapter_config.json")
    }
    return dict(sorted(found.items()))


def adapter_settings(folder: Path) -> dict:
    """An adapter's own LoRA settings, for pages and checks."""
    return json.loads((folder / "adapter_config.json").read_text())
