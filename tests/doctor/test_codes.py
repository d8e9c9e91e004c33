"""Codes are what programs read: none of them changes, and there are no others."""

import re
from pathlib import Path

from corpus import FAULTS

import hf_sam_adapt
from hf_sam_adapt.doctor.findings import CODES


STABLE = """
affine-mismatch alpha annotations bit-depth channels class-missing class-share contradiction duplicate empty-mask
few-images flat-image frames full-mask group-by ignored-mask inverted-mask label-map layout leakage lossy-mask
mask-values missing-image missing-mask missing-slices mixed-crs mixed-encoding near-duplicate nodata normalization
not-finite odd-file odd-size orientation other-grid palette refused same-stem size-mismatch soft-edges spacing
split-shift tiny-object truncated unreadable
"""


def test_the_codes_are_these():
    assert sorted(CODES) == STABLE.split()
    of_volumes = {"affine-mismatch", "missing-slices", "spacing"}  # planted in tests/volumes/test_volume_doctor.py
    of_rasters = {"mixed-crs", "nodata", "other-grid", "truncated"}  # in test_rasters.py
    assert CODES == {fault.code for fault in FAULTS.values()} | of_volumes | of_rasters | {"refused"}


def test_no_other_code_is_given():
    source = "".join(path.read_text() for path in Path(hf_sam_adapt.__file__).parent.glob("doctor/*.py"))
    given = re.findall(r"Finding\(\s*(?:ERROR|WARNING|severity), \"([a-z-]+)\"|\.warn\(\"([a-z-]+)\"", source)
    assert len(given) > 20 and {first or second for first, second in given} <= CODES


def test_no_message_is_parsed():
    source = "".join(path.read_text() for path in Path(hf_sam_adapt.__file__).parent.glob("doctor/*.py"))
    assert "str(error)" not in source and "partition(" not in source
