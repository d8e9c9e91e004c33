"""What `metrics.json` says of data and machine."""

import datasets
import pytest
import torch

from hf_sam_adapt.data import SegmentationData
from hf_sam_adapt.data.notes import Note
from hf_sam_adapt.files import publish
from hf_sam_adapt.training.provenance import data_facts, environment_facts


SHA = "89abcdef0123456789abcdef0123456789abcdef"


class Split(list):
    table = None


def data(name, files=None, notes=(), **splits):
    train = Split([0, 1, 2])
    train.table = datasets.Dataset.from_dict({"id": ["0"]})
    train.table.info.download_checksums = files
    splits = {"train": train, "val": None, "test": None} | splits
    return SegmentationData(**splits, num_labels=None, id2label={}, mask_values="binary", name=name, notes=list(notes))


def test_of_a_folder_only_the_name(tmp_path):
    (tmp_path / "polyps").mkdir()
    facts = data_facts(
        data(f"{tmp_path}/polyps/", notes=[Note.about("{} is odd", f"{tmp_path}/polyps/")], test=Split([0]))
    )
    assert (facts["name"], facts["source"], facts["images"]) == ("polyps", "folder", {"train": 3, "test": 1})
    assert facts["revision"] is facts["classes"] is None and str(tmp_path) not in str(facts)
    assert facts["notes"] == ["polyps is odd"]


@pytest.mark.parametrize(
    ("files", "revision"),
    [
        ({f"hf://datasets/owner/set@{SHA}/data/train.parquet": {}, f"hf://datasets/owner/set@{SHA}/b": {}}, SHA),
        ({f"hf://datasets/owner/set@{SHA}/a": {}, f"hf://datasets/owner/set@{SHA[::-1]}/b": {}}, None),
        ({"https://example.org/file": {}}, None),
        (None, None),
    ],
)
def test_of_the_hub_the_commit_that_was_read(files, revision):
    facts = data_facts(data("owner/set", files))
    assert (facts["name"], facts["source"], facts["revision"]) == ("owner/set", "hub", revision)


def test_drawn_and_in_memory():
    assert data_facts(data("synthetic:polyp"))["source"] == "drawn"
    assert data_facts(data("DatasetDict"))["source"] == "memory"
    mixture = data("owner/set")
    mixture.train = Split([0])
    assert data_facts(mixture)["revision"] is None


def test_machine():
    one, two = (environment_facts(torch.device("cpu"), count) for count in (1, 2))
    assert one["versions"]["torch"] == torch.__version__ and "cores" in one["hardware"]
    assert two["hardware"] == f"2 processes, each on {one['hardware']}"


def test_a_folder_among_the_files_of_a_run_replaces_its_namesake(tmp_path):
    for text in ("old", "new"):
        inside = tmp_path / "written" / ".eval_results"
        inside.mkdir(parents=True)
        (inside / f"{text}.yaml").write_text(text)
        (tmp_path / "run").mkdir(exist_ok=True)
        publish(tmp_path / "written", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/.eval_results").iterdir()] == ["new.yaml"]
