"""The command that hands a model on: `export-model`. It needs no Prefect."""

from pathlib import Path

from cyclopts import App
from rich.console import Console

from flows.outputs import NewFile

_out = Console()


def add_to(app: App) -> None:
    """Put this command into the program."""
    app.command(export_model)


def export_model(source: Path, out: NewFile) -> None:
    """Write a backbone as an ONNX file, checked against torch by onnxruntime. Needs the extra `onnx`.

    Parameters
    ----------
    source:
        A run (its last round), a round, a training, or a file of weights.
    out:
        The .onnx file to write. `purify run CRAWL RUN --embedder OUT` takes it.
    """
    from pipeline.export_model import export_onnx

    embedder, error = export_onnx(source, out)
    _out.print(
        f"{out}: {embedder.name}, {embedder.input_px} px, {embedder.dim} dimensions; features as torch's to {error:.0e}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
