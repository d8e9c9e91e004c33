"""MoDA around four inner methods, and the protocols that it is compared with, on seven real domains in order.

Each run is `accelerate launch recipes/continual.py` in a folder of its own under --out: first on six domains, then
with `shadow` as the seventh, in the same folder. Finished runs are not repeated and broken ones go on, so the tables
can be filled over several calls.

    python benchmarks/continual_domains.py --data ../shared/data --extra '--precision bf16 --num_workers 0'
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from results import publish, table
from series import ROOT, series_arguments, spread


DOMAINS = ("polyp", "nuclei", "magnetic_tile", "road_aerial", "em_neuron", "camouflage", "shadow")
# Membranes alone; of street scenes the road alone, which is in every image, its unlabelled pixels ignored.
LABEL_MAPS = {
    "em_neuron": {1: 1, 2: 0, 3: 0, 4: 0},
    "camvid": {0: 255, 4: 1, **dict.fromkeys((1, 2, 3, 5, 6, 7, 8, 9, 10, 11), 0)},
}
NATURAL = "camvid"
STEPS = {"--max_steps": "150", "--eval_every": "50", "--checkpoint_every": "150"}  # unless `--extra` has others
CACHED = {"cache_embeddings": True}
HQ = {"method": "decoder", "method_args": {"decoder": "hq"}, **CACHED}
INNER: dict[str, dict[str, Any]] = {
    "hq": HQ,
    "sam_adapter": {"method": "sam_adapter"},
    "conv_lora": {"method": "conv_lora"},
    "decoder": {"method": "decoder", **CACHED},
}
RUNS = [
    *((protocol, "hq") for protocol in ("naive", "joint", "er", "lwf", "ewc", "l2p")),
    *(("moda", inner) for inner in INNER),
]
REVERSED = [("naive", "hq"), ("joint", "hq"), ("moda", "hq"), ("moda", "sam_adapter")]
METRICS = {
    "Last IoU": "last_iou",
    "Avg IoU": "avg_iou",
    "FF IoU": "ff_iou",
    "Last BIoU": "last_biou",
    "FF BIoU": "ff_biou",
    "natural IoU": "natural_iou",
    "routing": "routing_accuracy",
    "oracle Last IoU": "oracle_last_iou",
}


def run(name: str, protocol: str, inner: str, domains: tuple[str, ...], seed: int, args: argparse.Namespace):
    """Runs on `domains` unless that is done; the content of continual.json, or None if it failed."""
    kept = args.out / f"{name}-{len(domains)}.json"
    if not kept.exists() and not args.table:
        folder = args.out / name
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
        command += ["--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))]
        command += ["recipes/continual.py", "--protocol", protocol, "--seed", str(seed), "--output_dir", str(folder)]
        command += ["--domains", *(json.dumps(domain(one, args.data)) for one in domains)]
        command += ["--natural", json.dumps(domain(NATURAL, args.data)), "--augment", "none"]
        for key, value in INNER[inner].items():
            command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        given = shlex.split(args.extra)
        command += [word for flag, value in STEPS.items() if flag not in given for word in (flag, value)] + given
        print(shlex.join(command), flush=True)
        start = time.perf_counter()
        if subprocess.run(command, cwd=ROOT, check=False).returncode == 0:
            shutil.copy(folder / "continual.json", kept)
            print(f"{name}, {len(domains)} domains: {time.perf_counter() - start:.0f} s", flush=True)
    return json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None


def domain(name: str, data: Path) -> dict[str, Any]:
    maps = {"label_map": LABEL_MAPS[name], "mask_values": "index"} if name in LABEL_MAPS else {}
    return {"name": name, "dataset": str(data / name), **maps}


def rows(found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[list[str]]:
    """A row a protocol and inner method: mean ± standard deviation over the seeds."""
    result = []
    for (protocol, inner), runs in found.items():
        cells = [[one[key] for one in runs if one.get(key) is not None] for key in METRICS.values()]
        method = "-" if protocol == "l2p" else inner
        result.append([protocol, method, *(spread(cell) if cell else "-" for cell in cells), str(len(runs))])
    return result


def confusion(results: dict[str, Any]) -> str:
    """Where a router sends the test images, as a table."""
    lines = [[name, *map(str, counts)] for name, counts in results["confusion"].items()]
    return table(["test images of", *results["confusion_columns"]], lines)


def main() -> None:
    parser = series_arguments(__doc__, "runs/continual", DOMAINS)
    parser.add_argument("--protocols", nargs="+", help="of the runs to make; default all")
    parser.add_argument("--inner", nargs="+", help="inner methods of the runs to make; default all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [
        (protocol, inner)
        for protocol, inner in RUNS
        if protocol in (args.protocols or [protocol]) and inner in (args.inner or [inner])
    ]
    parts = {
        "without shadow": DOMAINS[:-1],
        "all seven": DOMAINS,
    }
    found: dict[str, dict] = {title: defaultdict(list) for title in [*parts, "reversed"]}
    missing = []

    def keep(title: str, name: str, protocol: str, inner: str, domains: tuple[str, ...], seed: int) -> None:
        results = run(name, protocol, inner, domains, seed, args)
        if results is None:
            missing.append(f"{name} ({title})")
        else:
            found[title][protocol, inner].append(results)

    # Seed by seed, so that an interrupted series still compares all protocols.
    for seed in args.seeds:
        for protocol, inner in wanted:
            for title, domains in parts.items():
                keep(title, f"{protocol}-{inner}-{seed}", protocol, inner, domains, seed)
        for protocol, inner in REVERSED if seed == args.seeds[0] else ():
            if (protocol, inner) in wanted:
                keep("reversed", f"reversed-{protocol}-{inner}-{seed}", protocol, inner, DOMAINS[::-1], seed)
    if not any(found.values()):
        sys.exit("no run has finished")
    header = ["protocol", "inner", *METRICS, "seeds"]
    body = "\n\n".join(f"### {title}\n\n{table(header, rows(one))}" for title, one in found.items() if one)
    for title, one in found.items():
        if one.get(("moda", "hq")):
            body += f"\n\nRouting, {title}, seed {args.seeds[0]}:\n\n{confusion(one['moda', 'hq'][0])}"
    note = "Promptless, on the test images at original size; mean ± standard deviation over the seeds. "
    note += "natural: the road of camvid, never trained on. Weights of EWC (1e5) and LwF (3): the defaults, best of "
    note += "1, 1e2, 1e3, 1e4, 1e5 and of 1, 3, 10 on polyp, nuclei and road_aerial, 100 steps, seed 0."
    note += f" Missing: {', '.join(missing)}." if missing else ""
    publish("Continual learning on real domains", f"{body}\n\n{note}")


if __name__ == "__main__":
    main()
