"""What the benchmarks write: sections that name their weights, the newest of each alone."""

import re
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import results

    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    yield results
    for name in ("results", "domains"):
        sys.modules.pop(name, None)


@pytest.fixture
def domains(results, monkeypatch):
    import domains

    monkeypatch.setattr(domains, "RESULTS", results.RESULTS)
    return domains


def test_the_newest_section_takes_the_place_of_the_older(results):
    for title, body in (("One", "first"), ("Two", "second"), ("One", "third")):
        results.publish(title, body)
    found = results.sections(results.RESULTS)
    assert list(found) == ["One", "Two"]
    assert "third" in found["One"] and "first" not in results.RESULTS.read_text()
    assert f"tiny {results.tiny_weights()}." in found["Two"]
    assert results.RESULTS.read_text().startswith("# Measurements\n\n## One\n\n")


def test_sections_of_other_weights_are_stale(domains, results, monkeypatch):
    names = list(domains.MEASUREMENTS)
    assert domains.stale(names) == names
    for name in ("tiny", "real"):
        results.publish(domains.MEASUREMENTS[name].title, "a table")
    assert domains.stale(names) == [name for name in names if name not in ("tiny", "real")]
    monkeypatch.setattr(domains, "tiny_weights", lambda: "0123456789")
    assert domains.stale(names) == names


def test_what_builds_on_another_measurement_follows_it(domains):
    names = list(domains.MEASUREMENTS)
    groups = list(domains.chains(names))
    assert sorted(name for group in groups for name in group) == sorted(names)
    for second, first in domains.AFTER.items():
        group = next(group for group in groups if second in group)
        assert group.index(first) == group.index(second) - 1
    assert ["clicks"] in list(domains.chains(["clicks", "tiny"]))


def test_each_measurement_names_the_section_that_its_script_writes(domains):
    for what in domains.MEASUREMENTS.values():
        named = re.findall(r"(?:benchmarks|recipes)/\S+\.(?:py|yaml)", " ".join(what.commands))
        scripts = [BENCHMARKS.parent / name for name in named]
        assert scripts and all(script.exists() for script in scripts)
        if what.published:
            constant = re.split("camouflage|, moda", what.title)[0]
            assert re.search(rf'publish\(f?"{re.escape(constant)}', scripts[-1].read_text())


def test_a_failing_command_is_named_and_publishes_nothing(domains, results, monkeypatch, tmp_path):
    broken = domains.Measurement("Broken", ("python -c 'raise SystemExit(3)'",), published=False)
    monkeypatch.setitem(domains.MEASUREMENTS, "broken", broken)
    places = {"data": str(tmp_path), "runs": str(tmp_path), "extra": ""}
    assert "SystemExit" in domains.measure("broken", places)
    assert not results.RESULTS.exists()
    printing = domains.Measurement("Prints", ("python -c 'print(1234)'",), published=False)
    monkeypatch.setitem(domains.MEASUREMENTS, "printing", printing)
    assert domains.measure("printing", places) is None
    assert "```\n1234\n```" in results.sections(results.RESULTS)["Prints"]
