"""Errors are data: what they carry arrives everywhere, and nothing looks into their text."""

import ast
import copy
import errno
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sam_adapt.config.arguments import from_values, read_yaml
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.dataset import size_mismatch
from hf_sam_adapt.data.encoding import MaskEncoding, check_threshold, parse_label_map
from hf_sam_adapt.data.palettes import resolve_palette
from hf_sam_adapt.distributed import SampleLoader
from hf_sam_adapt.errors import UserError, exit_status
from hf_sam_adapt.files import check_domain_name, write_json
from hf_sam_adapt.names import check_id2label
from hf_sam_adapt.upload import push_again


PACKAGE = Path(__file__).parents[1] / "hf_sam_adapt"
FULL = {"problem": "is bad", "key": "image_size", "where": "a.yaml", "fix": "do better", "code": "size"}


@pytest.mark.parametrize("left_out", [(), ("key",), ("where", "code"), ("fix",), ("key", "where", "fix", "code")])
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_a_copy_carries_everything(left_out, copied):
    fields = {name: value for name, value in FULL.items() if name not in left_out}
    error = UserError(**fields)
    again = copied(error)
    assert type(again) is UserError and str(again) == str(error)
    assert again.fields == error.fields == dict.fromkeys(FULL) | fields and again.code == error.code


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "is bad"),
        ({"key": "lr"}, "lr: is bad"),
        ({"where": Path("a/b.png")}, "a/b.png: is bad"),
        ({"fix": "do better"}, "is bad; do better"),
        ({"key": "lr", "where": "x.yaml", "fix": "do better", "code": "never shown"}, "lr: x.yaml: is bad; do better"),
    ],
)
def test_text(fields, text):
    assert str(UserError("is bad", **fields)) == text


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "input"),
        ("image_size", "image-size"),
        ("method_args.scale", "method-args-scale"),
        ("box, point", "box"),
    ],
)
def test_the_code_is_that_of_the_key_unless_given(key, code):
    assert UserError("is bad", key=key).code == code
    assert UserError("is bad", key=key, code="given").code == "given"


def test_who_knows_more_changes_fields():
    error = UserError("is bad", where="a.png", fix="do better")
    assert str(error.within("domain x")) == "domain x: a.png: is bad; do better"
    assert str(UserError("is bad").within("domain x")) == "domain x: is bad"
    changed = error.replace(key="adapter", where=None)
    assert str(changed) == "adapter: is bad; do better" and changed.code == "adapter"
    assert str(error) == "a.png: is bad; do better"


def test_a_push_keeps_what_the_hub_wants():
    error = push_again(UserError("no access", fix="log in", code="token"), "push x", Path("x"))
    assert str(error) == "push: no access; log in. x is untouched; push again with: push x" and error.code == "token"
    assert str(push_again(UserError("no access"), "push x")) == "push: no access; push again with: push x"


def failing(error):
    raise error


def test_exit_status(capsys):
    assert exit_status(lambda: failing(UserError("two\n lines", key="lr", fix="join them"))) == 2
    assert capsys.readouterr().err == "error: lr: two lines; join them\n"
    assert exit_status(lambda: failing(KeyboardInterrupt())) == 130
    assert (exit_status(lambda: None), exit_status(lambda: 1)) == (0, 1)
    with pytest.raises(ValueError, match="a bug"):
        exit_status(lambda: failing(ValueError("a bug")))


def test_what_the_system_refuses_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert exit_status(lambda: (tmp_path / "file/x").write_text("")) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/x: Not a directory\n"
    assert exit_status(lambda: write_json(tmp_path, {})) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"
    assert exit_status(lambda: failing(OSError(errno.ENOSPC, "No space left on device"))) == 2
    assert capsys.readouterr().err == "error: No space left on device\n"
    for error in (OSError("a library's"), BrokenPipeError(errno.EPIPE, "Broken pipe")):
        with pytest.raises(type(error)):
            exit_status(lambda error=error: failing(error))


class Samples(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise self.error
        return index


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("collate", [None, list])
def test_an_error_of_a_worker_process_arrives_as_it_was(workers, batch_size, collate):
    if batch_size is None and collate is list:
        collate = int
    loader = SampleLoader(Samples(UserError(**FULL)), batch_size=batch_size, collate_fn=collate, num_workers=workers)
    with pytest.raises(UserError) as raised:
        list(loader)
    assert raised.value.fields == FULL
    assert len(loader) == {None: 4, 1: 4, 3: 2}[batch_size]


def test_other_errors_of_a_worker_keep_their_traceback():
    with pytest.raises(RuntimeError, match="Traceback"):
        list(SampleLoader(Samples(RuntimeError("a bug")), num_workers=1))


BAD = {
    "recipe key": (lambda tmp: from_values(Recipe, {"dateset": "x"}), None, "unknown-key"),
    "number": (lambda tmp: from_values(Recipe, {"max_steps": "many"}), "max_steps", "max-steps"),
    "too small": (lambda tmp: Recipe(batch_size=0), "batch_size", "batch-size"),
    "no config": (lambda tmp: read_yaml(tmp / "no.yaml"), None, "config"),
    "no folder": (lambda tmp: load_segmentation_dataset(str(tmp / "gone")), "dataset", "dataset"),
    "no domain": (lambda tmp: load_segmentation_dataset("synthetic:moon"), "dataset", "dataset"),
    "label_map": (lambda tmp: parse_label_map({1: 256}), "label_map", "label-map"),
    "threshold": (lambda tmp: check_threshold(-1, "auto"), "mask_threshold", "mask-threshold"),
    "palette": (lambda tmp: resolve_palette("nobody's"), "palette", "palette"),
    "names": (lambda tmp: check_id2label({0: "a"}, 2), "id2label", "id2label"),
    "lossy": (lambda tmp: MaskEncoding("index").decode(np.ones((2, 2), np.uint8), True, "m"), None, "lossy-mask"),
    "sizes": (lambda tmp: failing(size_mismatch("m.png", (1, 2), (3, 4))), None, "size-mismatch"),
    "mask alone": (lambda tmp: load_segmentation_dataset(alone(tmp)), None, "missing-mask"),
    "domain name": (lambda tmp: check_domain_name("../x", []), None, "input"),
}


def alone(folder):
    for part, name in (("images", "a"), ("images", "b"), ("masks", "a")):
        (folder / part).mkdir(exist_ok=True)
        (folder / part / f"{name}.png").write_bytes(b"")
    return str(folder)


@pytest.mark.parametrize("what", BAD)
def test_keys_and_codes_are_stable(what, tmp_path):
    act, key, code = BAD[what]
    with pytest.raises(UserError) as raised:
        act(tmp_path)
    assert (raised.value.key, raised.value.code) == (key, code)


def readings(source: str) -> Iterator[int]:
    """Lines that compare, cut or search `str(<what an except clause caught>)`."""
    tree = ast.parse(source)
    caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)}

    def is_text(node: ast.AST) -> bool:
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str"
        return called and any(isinstance(value, ast.Name) and value.id in caught for value in node.args)

    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            parts = [node.value]
        if any(is_text(part) for part in parts):
            yield node.lineno


@pytest.mark.parametrize(
    "use",
    [
        "'bad' in str(error)",
        "str(error) == 'bad'",
        "str(error).partition(':')",
        "str(error).removeprefix('x: ')",
        "str(error).replace('a', 'b')",
        "str(error)[:3]",
    ],
)
def test_a_message_that_is_looked_into_is_noticed(use):
    source = f"try:\n    act()\nexcept UserError as error:\n    print({use})\n"
    assert list(readings(source)) == [4]
    assert not list(readings(source.replace(use, "str(error)")))


def test_nothing_looks_into_a_message():
    found = {
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "errors.py"
        for line in readings(path.read_text(encoding="utf-8"))
    }
    assert not found
