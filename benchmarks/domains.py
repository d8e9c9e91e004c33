"""Everything that is measured with the weights of `tiny`, on drawn and real domains, in order.

A section of RESULTS.md names the weights that it was measured with; what names others is stale and made anew, in runs
of a folder of its own. Finished trainings are not repeated and broken ones are resumed, so it may be stopped any time.

    python benchmarks/domains.py --data ../shared/data --list
    python benchmarks/domains.py --data ../shared/data --parallel 2
    python benchmarks/domains.py --data ../shared/data --only demo quickstart --steps 300

After it: README's figures and the pages that quote RESULTS.md are still written by hand; the tests of the cards name
each figure that RESULTS.md no longer has.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from results import RESULTS, publish, sections, tiny_weights


ROOT = Path(__file__).parents[1]
COMMAND = "python -m hf_sam_adapt.cli"


@dataclass(frozen=True)
class Measurement:
    """What one name stands for.

    Attributes:
        title: of its section in RESULTS.md.
        commands: of this Python, in order and from the root of the project; `{data}`, `{runs}`, `{seeds}` and
            `{extra}` stand for the folders, the seeds and the flags of trainings, `{flags}` for those without steps.
        published: whether the last command writes the section; else it is what that command prints.
        after: called with the folder of the runs when all commands are done.
    """

    title: str
    commands: tuple[str, ...]
    published: bool = True
    after: Callable[[Path], None] | None = None


def copy_quickstart_picture(runs: Path) -> None:
    """README shows the samples of the quickstart."""
    shutil.copy(runs / "quickstart" / "samples.png", ROOT / "docs" / "quickstart.png")


def series(script: str, folder: str, flags: str = "") -> str:
    """Command of a series of trainings on the real domains."""
    places = f"--data {{data}} --out {{runs}}/{folder}"
    return f"python benchmarks/{script}.py {places} {flags} --seeds {{seeds}} --extra {{extra}}"


MEASUREMENTS = {
    "tiny": Measurement(
        "The embedded SAM `tiny`", ("python recipes/evaluate_tiny.py --data {data}",), published=False
    ),
    "demo": Measurement(
        "Adapters of the demo",
        (
            f"{COMMAND} train --config recipes/demo_radar_fields.yaml --output_dir {{runs}}/demo/radar-fields",
            f"{COMMAND} train --config recipes/demo_land_cover.yaml --output_dir {{runs}}/demo/land-cover",
            f"{COMMAND} continual --config recipes/demo_three_domains.yaml --output_dir {{runs}}/demo/three-domains",
            "python recipes/demo_adapters.py {runs}/demo",
        ),
        published=False,
    ),
    "quickstart": Measurement(
        "Quickstart",
        (f"{COMMAND} train --config recipes/quickstart.yaml --output_dir {{runs}}/quickstart",),
        published=False,
        after=copy_quickstart_picture,
    ),
    "real": Measurement("Real domains", (series("real_domains", "real"),)),
    "conv_lora": Measurement("Conv-LoRA on real domains", (series("conv_lora_domains", "real"),)),
    "classes": Measurement("Classes on real domains", (series("class_domains", "classes"),)),
    "mixed": Measurement("One adapter for every prompt", (series("mixed_prompts", "mixed"),)),
    "clicks": Measurement("Clicks, and whether the adapter listens", (series("clicks", "mixed", "--domains polyp"),)),
    "iou": Measurement("SAM's estimate of a mask's IoU", (series("iou_estimate", "iou"),)),
    "placement": Measurement("Placement of SAM-Adapter's prompts", (series("placement", "placement"),)),
    "continual": Measurement("Continual learning on real domains", (series("continual_domains", "continual"),)),
    "router": Measurement(
        "Router: heads, features and threshold", ("python benchmarks/router_heads.py --data {data}",)
    ),
    "soft": Measurement(
        "Soft mixing of domains, moda-sam_adapter-0",
        ("python benchmarks/soft_mixing.py --run {runs}/continual/moda-sam_adapter-0 --names camouflage shadow",),
    ),
    "speckle": Measurement(
        "Frequencies against speckle",
        ("python benchmarks/speckle_sweep.py --out {runs}/speckle --seeds {seeds} --extra {extra}",),
    ),
    "train_and_test": Measurement(
        "Training and test images of camouflage",
        (
            "python benchmarks/train_and_test.py --data {data} --out {runs}/train_and_test --domain camouflage "
            " --extra {flags}",
        ),
    ),
}
# The adapters of `mixed` are tested by `clicks`, and a pool of `continual` by `soft`.
AFTER = {"clicks": "mixed", "soft": "continual", "conv_lora": "real"}


def chains(names: list[str]) -> Iterator[list[str]]:
    """The names in groups that may run at the same time; within a group one follows the other."""
    followers = {first: second for second, first in AFTER.items() if first in names and second in names}
    for name in names:
        if name not in followers.values():
            chain = [name]
            while chain[-1] in followers:
                chain.append(followers[chain[-1]])
            yield chain


def stale(names: list[str]) -> list[str]:
    """Those whose section is missing or names other weights than today's."""
    text = sections(RESULTS)
    return [name for name in names if tiny_weights() not in text.get(MEASUREMENTS[name].title, "")]


def measure(name: str, places: dict[str, str]) -> str | None:
    """Run the commands of one measurement; returns the one that failed, or None."""
    what = MEASUREMENTS[name]
    printed = ""
    for command in what.commands:
        # The shell's line has quoted folders; RESULTS.md shows them as they were given.
        quoted = {place: text if place == "seeds" else shlex.quote(text) for place, text in places.items()}
        line = command.format(**quoted)
        print(line, flush=True)
        words = [sys.executable, *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        printed = done.stdout
        print(printed, flush=True)
        if done.returncode:
            return line
    if not what.published:
        publish(what.title, f"```\n{printed.strip()}\n```", command="; ".join(what.commands).format(**places))
    if what.after is not None:
        what.after(ROOT / places["runs"])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each domain")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="parent of the folder of these weights' runs")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="default: all")
    parser.add_argument("--steps", type=int, default=300, help="of every training of a series (default: 300)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of a series (default: 0 1 2)")
    parser.add_argument("--extra", default="--num_workers 0", help="other flags for every training of a series")
    parser.add_argument("--parallel", type=int, default=1, help="measurements at the same time (default: 1)")
    parser.add_argument("--list", action="store_true", help="say what is stale, and do nothing")
    args = parser.parse_args()
    names = stale(args.only)
    for name in args.only:
        print(f"{'stale' if name in names else 'newest'}: {name} ({MEASUREMENTS[name].title})")
    if args.list:
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.parallel)))
    places = {
        "data": os.path.relpath(args.data, ROOT),
        "runs": os.path.relpath(args.runs / tiny_weights(), ROOT),
        "seeds": " ".join(map(str, args.seeds)),
        "flags": args.extra,
        "extra": f"--max_steps {args.steps} {args.extra}",
    }
    with ThreadPoolExecutor(args.parallel) as executor:
        groups = executor.map(lambda chain: [measure(name, places) for name in chain], chains(names))
        failed = [line for group in groups for line in group if line]
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


if __name__ == "__main__":
    main()
