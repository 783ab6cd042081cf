"""Execute a notebook with papermill and render it as a page: whole or not at all, with one sentence when it fails."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
from filelock import FileLock, Timeout
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from emstudy import params, paths, store, warm
from emstudy.errors import UserError, refused

TEMPLATE = Path(__file__).with_name("page")


class PrivateKernel(AsyncKernelManager):
    """A kernel that talks over sockets of its own: TCP ports are drawn by chance, and runs side by side would collide."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.transport = "ipc"
        self.ip = str(Path(tempfile.mkdtemp(prefix="k", dir=os.environ["IPYTHONDIR"])) / "k")

    def format_kernel_cmd(self, extra_arguments=None):
        if warm.ADDRESS in os.environ:  # make runs where kernels are forked
            return [sys.executable, "-I", "-S", warm.__file__, self.connection_file]
        return super().format_kernel_cmd(extra_arguments)

    async def start_kernel(self, **kwargs):
        # cells' output comes as messages; all else is the kernel's own, as a traceback when a socket closed before it did
        await super().start_kernel(stderr=subprocess.DEVNULL, **kwargs)


def parameters(notebook: Path) -> dict:
    """The parameters that a notebook takes. Raises UserError when it is not there."""
    if not notebook.exists():
        raise UserError(f"{paths.show(notebook)} is not there")
    return papermill.inspect_notebook(str(notebook))


def check(notebook: Path, values: dict, where: str) -> None:
    """Hold the values against the notebook's parameters cell: papermill itself would only warn of an unknown one."""
    known = set(parameters(notebook))
    for name in values.keys() - known:
        raise UserError(f"{where}: {notebook.name} has no parameter '{name}'; it takes {', '.join(sorted(known))}")
    for name in known - values.keys():
        raise UserError(f"{where}: missing the parameter '{name}' of {notebook.name}")


def execute(notebook: Path, values_file: Path, output: Path) -> None:
    """Run a notebook with the parameters of a YAML file. The output appears under its name only when every cell has run.

    Raises UserError that names notebook, cell and cause; what ran so far is kept beside it as <output>.failed.ipynb.
    """
    values = params.read_yaml(values_file)
    check(notebook, values, paths.show(values_file))
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix="em-", ignore_cleanup_errors=True)
    try:
        # the system lets go of a lock when its holder dies, however it dies
        with scratch as folder, FileLock(output.with_name(f".{output.stem}.lock"), timeout=0):
            os.environ["IPYTHONDIR"] = folder  # a reader's own IPython profile has no say in a study
            _execute(notebook, values, output)
    except Timeout:
        raise UserError(
            f"{paths.show(output)} is being made by another run: wait until that one has ended, or stop it"
        ) from None


def _execute(notebook: Path, values: dict, output: Path) -> None:
    partial, failed = output.with_suffix(".partial.ipynb"), output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    started = time.time()
    say(f"{notebook.stem}  {paths.show(output.parent)}")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=values,
            kernel_name="python3",
            cwd=str(paths.NOTEBOOKS),
            progress_bar=False,
            stderr_file=sys.stderr,
            kernel_manager_class=PrivateKernel,
            shutdown_kernel="immediate",  # what a notebook writes is whole by then; taking torch apart takes a second
        )
    except PapermillExecutionError as error:
        partial.replace(failed)
        cause = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        if why := refused(error.evalue):
            cause = f"{why}; mend that and run again"
        elif error.ename == "OutOfMemoryError":
            cause = "the GPU's memory is full: lower train_batch_size or sample_batch_size of the model in params/models/, or free the GPU"
        raise UserError(
            f"{notebook.name} failed for {paths.show(output.parent)} in cell {error.exec_count}: {cause}\n  as far as it came: {paths.show(failed)}"
        ) from None
    except DeadKernelError:
        partial.replace(failed)
        raise UserError(
            f"{notebook.name} failed for {paths.show(output.parent)}: its kernel died, most likely for want of memory\n  as far as it came: {paths.show(failed)}"
        ) from None
    except BaseException:
        # the task that ran the cell is waited for no more, and would print how it ended
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        partial.unlink(missing_ok=True)
        raise
    partial.replace(output)
    say(f"{notebook.stem}  {paths.show(output.parent)}  done in {time.time() - started:.0f} s")


def say(line: str) -> None:
    """One line of progress, on stderr like the bars."""
    print(line, file=sys.stderr, flush=True)


def render(executed: Path, page: Path, title: str, home: str) -> Path:
    """Render an executed notebook as a page that needs no network: plotly.js lies once in reports/assets, for all studies' pages.

    home is the relative path from the page to the folder of its study's index.html.
    """
    from nbconvert import HTMLExporter  # here: running a notebook, which is done often, needs neither
    from plotly.offline import get_plotlyjs

    exporter = HTMLExporter(extra_template_basedirs=[str(TEMPLATE.parent)], template_name=TEMPLATE.name)
    notebook = nbformat.read(executed, as_version=4)
    script = paths.REPORTS / "assets" / "plotly.min.js"
    about = {"title": title, "home": home, "script": paths.link(page.parent, script)}
    body, _ = exporter.from_notebook_node(notebook, resources={"page": about})
    store.write_if_changed(script, get_plotlyjs())
    return store.write(page, body)
