"""Emergent misalignment, measured: a thin library that the notebooks read like prose."""

import logging
import sys
import warnings

__version__ = "0.1.0"

# what libraries tell their own developers is noise on a reader's page
warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|torch")
warnings.filterwarnings("ignore", message="IProgress not found")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# whoever reads a notebook imports jsonschema, which would first compile a grammar of internet addresses: a second, and no use here
sys.modules.setdefault("rfc3987_syntax", None)
