"""The notebook of the documentation: it runs, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "platform" / "docs" / "slide_to_heatmap.ipynb"


def test_the_notebook_is_kept_without_outputs_and_uses_the_api_alone() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 8
    for number, cell in enumerate(code):
        compile(cell.source, f"cell {number}", "exec")
        assert (cell.outputs, cell.execution_count) == ([], None)
        imports = [line for line in cell.source.splitlines() if "import " in line]
        assert not [line for line in imports if "mstar." in line]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, as a reader would run it; its last cell shows the heatmap."""
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [
        number
        for number, cell in enumerate(cells)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
    assert pictures[-1] == len(cells) - 1
    said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "attention" in said
    assert (tmp_path / "notebook-out" / "features").is_dir()
