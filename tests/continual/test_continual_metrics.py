"""Continual metrics on the matrices of the CoSAM authors' own log."""

import numpy as np
import pytest

from hf_sam_adapt.continual.metrics import average, forgetting, forward, last, summary
from hf_sam_adapt.continual.report import print_continual


# Rows: after each of eight tasks; columns: eight test sets, and natural images.
IOU = """
.7578 .7659 .6777 .4901 .4069 .3313 .2902 .1657 .5084
.7431 .7536 .6715 .4670 .3776 .2634 .1057 .0569 .4004
.7355 .7654 .6669 .5194 .3563 .1782 .0462 .0448 .3334
.6680 .6680 .5845 .7177 .7996 .7533 .6565 .6725 .7206
.7027 .6755 .5952 .6922 .8451 .7454 .6557 .7668 .7705
.6782 .7264 .5907 .6765 .8169 .8056 .6477 .7407 .7008
.7167 .7647 .6406 .6695 .8226 .7280 .7097 .7271 .7651
.6863 .7781 .6437 .6456 .8214 .6919 .6755 .7873 .7190
"""
BIOU = """
.7578 .7659 .6777 .4765 .3848 .2356 .1843 .1023 .4395
.7431 .7536 .6715 .4606 .3550 .1717 .0760 .0343 .3578
.7355 .7654 .6669 .5119 .3402 .1448 .0462 .0296 .3214
.6678 .6680 .5845 .6759 .6027 .5286 .3485 .4459 .5962
.7026 .6755 .5952 .6427 .7592 .5490 .3690 .5220 .6422
.6779 .7264 .5907 .6273 .7205 .6343 .3657 .4885 .6011
.7167 .7647 .6406 .6212 .7185 .5463 .4468 .5017 .6525
.6863 .7781 .6437 .5992 .7164 .5176 .4041 .5633 .6027
"""


def read(text):
    return np.array([[float(cell) for cell in line.split()] for line in text.strip().splitlines()])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(IOU, (0.7162, 0.7180, 0.0448, 0.0465, 0.7190)), (BIOU, (0.6136, 0.6832, 0.0499, 0.0516, 0.6027))],
)
def test_the_published_log(text, wanted):
    log = read(text)
    matrix, natural = log[:, :8], log[:, 8]
    found = last(matrix), average(matrix), forgetting(matrix), forgetting(matrix, best=True), natural[-1]
    assert np.round(found, 4) == pytest.approx(wanted, abs=1e-9)


def test_what_was_not_seen_does_not_count():
    matrix = read(IOU)[:, :8]
    seen = np.where(np.triu(np.ones_like(matrix), 2) > 0, np.nan, matrix)
    assert summary(seen, "iou") == summary(matrix, "iou")
    assert forward(seen) == pytest.approx(np.mean([matrix[k, k + 1] for k in range(7)]))


def test_one_task_has_nothing_to_forget():
    assert summary(np.array([[0.4]]), "iou") == {
        "last_iou": 0.4,
        "avg_iou": 0.4,
        "ff_iou": None,
        "ff_max_iou": None,
        "forward_iou": None,
    }


def test_isolated_tasks_forget_exactly_nothing():
    row = np.random.default_rng(0).random(5)
    assert forgetting(np.tile(row, (5, 1))) == 0 == forgetting(np.tile(row, (5, 1)), best=True)


@pytest.mark.parametrize("protocol", ["naive", "joint", "moda"])
@pytest.mark.parametrize("natural", [True, False])
def test_the_table_says_its_metrics_in_words(capsys, protocol, natural):
    rows = [[0.5, 0.6]] if protocol == "joint" else [[0.7, 0.1], [0.5, 0.6]]
    results = {"protocol": protocol, "method": "decoder", "prompt": "none", "domains": ["one", "two"]}
    for name in ("iou", "biou"):
        results |= {"last_" + name: 0.55} if protocol == "joint" else summary(np.array(rows), name)
        results |= {f"matrix_{name}": rows, f"zero_shot_{name}": [0.2, 0.3]}
        if natural:
            results |= {f"natural_{name}": 0.4, f"natural_curve_{name}": [0.4] * len(rows)}
            results |= {f"natural_zero_shot_{name}": 0.45}
    if protocol == "moda":
        results |= {"routing_accuracy": 0.9, "oracle_last_iou": 0.56, "oracle_ff_iou": 0.01}
    print_continual(results)
    shown = " ".join(capsys.readouterr().out.split())
    assert "after all tasks (Last)" in shown and "0.550" in shown
    assert ("natural images" in shown) == natural
    if protocol == "joint":
        assert "forgetting" not in shown
    else:
        assert "forgetting: lost since a domain's own task (FF) │ 0.200" in shown
        assert "on the next domain, before it is learned" in shown
    assert ("forgetting 0.010" in shown) == (protocol == "moda")
