"""The notebook: the same as its page, and it runs from the first cell to the last, on `tiny` and a local Hub."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from local_hub import LocalHub


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("make_notebook", ROOT / ".ci/notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_is_that_of_its_page(generator):
    assert (ROOT / generator.NOTEBOOK).read_text() == generator.written(generator.PAGE), "run make notebook"
    found = generator.notebook(generator.PAGE)
    page = (ROOT / generator.PAGE).read_text()
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == len(re.findall(r"^```\w+$", page, re.MULTILINE))
    assert cells[0]["source"] == ["%pip install 'hf-sam-adapt[train]'"]
    for cell in found["cells"]:
        if cell["cell_type"] == "markdown":
            assert not re.search(r"\]\((?!https?:|#)", "".join(cell["source"]))


def test_the_page_leads_to_the_notebook_in_colab(generator):
    page = (ROOT / generator.PAGE).read_text()
    owner = generator.REPOSITORY.removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{owner}/blob/main/{generator.NOTEBOOK}" in page


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(generator, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / generator.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    # What pip would install is installed; two steps show as much as two hundred.
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith("%pip")]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(r"--max_steps \d+", "--max_steps 2", cell.source)
            cell.source = re.sub(r"^!(.*)$", r"!\1 || touch failed", cell.source, flags=re.MULTILINE)
    with LocalHub() as hub:
        for key, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(key, value)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        monkeypatch.setenv("PATH", path)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
        assert "adapter_model.safetensors" in hub.files("me/fifty-polyps")
    assert not (tmp_path / "failed").exists(), "\n".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(re.search(r"adapted +0\.\d{3}", output.get("text", "")) for output in outputs)
    assert (tmp_path / "from_the_hub/00_mask.png").is_file()
