"""Emergent misalignment, measured: a thin library that the notebooks read like prose."""

import logging
import sys
import warnings

__version__ = "0.1.0"

# what libraries tell their own developers is noise on a reader's page
warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|torch")
warnings.filterwarnings("ignore", message="IProgress not found")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# to read a notebook, jsonschema would compile a grammar of internet addresses, longer than all else takes that starts one
sys.modules.setdefault("rfc3987_syntax", None)
