"""Every planted fault is found and named, alone and together; a clean data set gives nothing."""

import shutil

import pytest
from corpus import COLOURS, FAULTS, KEYS, change, make_corpus, paint, store_arrays

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.doctor import examine_dataset
from hf_sam_adapt.doctor.findings import ERROR, WARNING
from hf_sam_adapt.errors import UserError


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return {count: make_corpus(tmp_path_factory.mktemp("clean") / "data", count, count) for count in (1, 2)}


@pytest.fixture
def corpus(clean, tmp_path):
    def copy(classes: int = 1):
        return shutil.copytree(clean[classes], tmp_path / "data")

    return copy


def refused(root, keys) -> bool:
    """Whether a training would end with an error, before it or in any of its epochs."""
    keys = {name: value for name, value in keys.items() if name != "normalization"}
    try:
        data = load_segmentation_dataset(root, **keys)
        for split in (data.train, data.val, data.test):
            for index in range(len(split)):
                split[index]
    except UserError:
        return True
    return False


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"mask_values": "index"},
        {"group_by": "^([a-z]+_[0-9]+)"},
        {"num_labels": 3},
        {"palette": COLOURS},
        {"channels": 4},
    ],
)
def test_a_clean_data_set_gives_nothing(corpus, keys):
    root = corpus(2 if "num_labels" in keys or "palette" in keys else 1)
    if "palette" in keys:
        paint(root)
    if "channels" in keys:
        store_arrays(root)
    diagnosis = examine_dataset(root, **KEYS, **keys)
    assert diagnosis.findings.lines() == [] and diagnosis.ok
    assert not refused(root, keys)
    assert all(usable.all() for usable in diagnosis.readable.values())
    assert sum(map(len, diagnosis.readable.values())) == 55


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_alone(corpus, name):
    fault = FAULTS[name]
    root = corpus(fault.classes)
    file = fault.plant(root, "train_07", "train_21")
    diagnosis = examine_dataset(root, **KEYS, **fault.keys)
    found = diagnosis.findings.ordered()
    severity = ERROR if fault.error else WARNING
    assert {(one.severity, one.code) for one in found} == {(severity, fault.code)}, diagnosis.findings.lines()
    assert len(found) == 1 or not file, diagnosis.findings.lines()
    assert found[0].file.endswith(file) and found[0].value and found[0].fix
    assert diagnosis.ok is not fault.error
    if fault.code not in (
        "leakage",
        "class-missing",
        "normalization",
        "group-by",
    ):  # nothing that a training looks for
        assert refused(root, fault.keys) is fault.error


def test_no_foreground_at_all(corpus):
    root = corpus()
    for path in (root / "train/masks").iterdir():
        change(path, lambda mask: mask * 0)
    lines = examine_dataset(root, **KEYS, limit=3).findings.lines()
    assert "foreground is in no training mask, but in val and test" in lines[0] and len(lines) == 2
    assert "train_00.png and 43 more: no foreground" in lines[1]


def test_all_faults_together(corpus):
    root, planted, keys = corpus(), {}, {}
    together = {name: fault for name, fault in FAULTS.items() if not fault.alone and not fault.keys}
    together["patient_in_both"] = FAULTS["patient_in_both"]
    keys = FAULTS["patient_in_both"].keys
    for number, (name, fault) in enumerate(together.items()):
        planted[name] = fault.plant(root, f"train_{number:02d}", f"train_{number:02d}")
    diagnosis = examine_dataset(root, **KEYS, **keys, limit=0)
    found = diagnosis.findings.ordered()
    for name, fault in together.items():
        severity = ERROR if fault.error else WARNING
        fitting = [one for one in found if (one.severity, one.code) == (severity, fault.code)]
        assert any(one.file.endswith(planted[name]) for one in fitting), (name, diagnosis.findings.lines())
    assert [one.severity for one in found] == sorted((one.severity for one in found), key=[ERROR, WARNING].index)
    assert len({fault.code for fault in FAULTS.values()}) >= 20
