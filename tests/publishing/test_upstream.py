"""The reports of faults elsewhere: each script still fails as it says, and the proposal's script passes."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
REPORTS = sorted((ROOT / "docs/upstream").glob("*.md"))
FAULTS = [path for path in REPORTS if path.stem not in ("README", "conv_lora_variant")]


def script(path):
    (block,) = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return compile(block, path.name, "exec")


@pytest.mark.parametrize("path", FAULTS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_the_fault_is_still_there(path):
    """Where this fails, the library has mended it: remove the report and what steps around the fault."""
    text = path.read_text()
    assert all(f"**{word}**" in text for word in ("Expected", "Found", "Mend"))
    name = re.search(r"\*\*Found\*\*: `(\w+)", text)[1]
    with pytest.raises(Exception) as raised:
        exec(script(path), {"__name__": "report"})
    assert type(raised.value).__name__ == name, raised.value


def test_the_proposal_computes_what_this_package_does():
    exec(script(ROOT / "docs/upstream/conv_lora_variant.md"), {"__name__": "proposal"})


def test_every_report_is_listed():
    index = (ROOT / "docs/upstream/README.md").read_text()
    assert [path.name for path in REPORTS if path.name != "README.md" and f"]({path.name})" not in index] == []
