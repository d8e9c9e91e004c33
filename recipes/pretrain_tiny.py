# /// script
# requires-python = ">=3.10"
# dependencies = ["hf-sam-adapt[train]"]
# ///
"""Pre-train `tiny`, the embedded SAM, on images that this recipe draws itself, on photographs, or on both.

`--architecture tiny2` trains a SAM 2 of the same input and decoder, with a Hiera encoder.

    python recipes/pretrain_tiny.py --output_dir runs/tiny --max_steps 3000
    python recipes/pretrain_tiny.py --images PHOTOGRAPHS --init hf_sam_adapt/sam/tiny_sam --output_dir runs/photographs
    python recipes/evaluate_tiny.py --model runs/tiny/model --data DOMAINS

PHOTOGRAPHS holds a folder for each source (`tiny_images/photographs.py` says how). A tenth of the sources is held
back: the log shows how well the net does on them, and `best/` keeps the weights that did best.

Two traps decide the form of it. With usual initialisation the decoder stays for thousands of steps on the plateau
where every mask is empty: hence query and key projections that start equal in its cross-attentions, and positives that
weigh more at first. And trained on prompts alone the encoder goes blind, the net learns "box -> blob": hence a dense
loss on the encoder's own output, alone for the first steps and beside the others all along.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tiny_images.drawn import DrawnScenes
from tiny_images.photographs import Photographs, held_back_sources, pack_photographs
from tiny_images.pool import draw_pool
from tiny_training.run import Pretraining
from tiny_training.steps import HeldBack, Mixture, Steps
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from hf_sam_adapt.errors import UserError, exit_status


@dataclass
class Arguments:
    """Command line."""

    architecture: str = field(
        default="tiny", metadata={"help": "tiny, or tiny2, a SAM 2.", "choices": ["tiny", "tiny2"]}
    )
    output_dir: str = field(default="runs/tiny", metadata={"help": "State, log and the exported models."})
    images: str | None = field(
        default=None,
        metadata={"help": "Folder of photographs, one folder a source; without it drawn scenes alone."},
    )
    cache: str = field(default="runs/tiny_photographs", metadata={"help": "Folder of the decoded photographs."})
    drawn_share: float = field(
        default=0.25, metadata={"help": "Share of drawn scenes beside photographs; 0 draws no pool."}
    )
    held_back: list[str] = field(
        default_factory=list,
        metadata={"help": "Sources that are not trained on; default: every tenth in alphabetical order."},
    )
    init: str | None = field(
        default=None,
        metadata={
            "help": "Model folder to start from, with dense_steps and balanced_steps 0. A tiny2 takes the decoder of "
            "a tiny, and learns its image embedding in the dense steps alone; balanced_steps 0 then, too."
        },
    )
    pool: str = field(default="runs/tiny_pool", metadata={"help": "Folder of the drawn scenes, drawn if absent."})
    shards: int = field(default=51, metadata={"help": "Files of 250 scenes."})
    workers: int = field(default=2, metadata={"help": "Processes that draw the pool."})
    num_workers: int = field(default=1, metadata={"help": "Processes that load batches while the model trains."})
    max_steps: int = field(default=3000, metadata={"help": "Optimizer steps; the learning rate is 0 after the last."})
    stop_at: int | None = field(default=None, metadata={"help": "Leave after this step, to be resumed later."})
    schedule_start: int = field(
        default=0,
        metadata={"help": "Step at which the learning rate rises anew, to train on from an ended run's last state."},
    )
    dense_steps: int = field(default=300, metadata={"help": "First steps, with the dense loss alone."})
    balanced_steps: int = field(
        default=1500,
        metadata={"help": "Steps after them in which a BCE of fixed shares gives way to the focal loss."},
    )
    batch_size: int = field(default=16, metadata={"help": "Images a step."})
    prompts_per_image: int = field(default=4, metadata={"help": "Objects of an image that are prompted."})
    dense_per_image: int = field(default=8, metadata={"help": "Objects of an image in the dense loss."})
    learning_rate: float = field(
        default=1.2e-3, metadata={"help": "Highest learning rate: 200 steps up, constant, then down to 0."}
    )
    decay: float = field(default=0.3, metadata={"help": "Share of the steps in which the learning rate falls."})
    whole_weight: float = field(
        default=1.0,
        metadata={"help": "Of the loss without a prompt, beside 2 of the prompted one and 1 of the dense one."},
    )
    precision: str = field(
        default="auto", metadata={"help": "bf16, fp32, or auto: bf16 where the processor multiplies it faster."}
    )
    save_every: int = field(default=200, metadata={"help": "Steps between two saved states."})
    check_every: int = field(default=500, metadata={"help": "Steps between two looks at the held-back sources."})
    seed: int = field(default=1, metadata={"help": "Series of scenes, initialisation and order."})


def load_images(arguments: Arguments) -> tuple[Mixture, HeldBack | None, list[str]]:
    """What to train on, what is held back, and the names of the sources trained on, in the order of their tasks."""
    drawn = None
    if arguments.images is None or arguments.drawn_share > 0:
        drawn = DrawnScenes(draw_pool(Path(arguments.pool), arguments.seed, arguments.shards, arguments.workers))
    if arguments.images is None:
        return Mixture(drawn, None), None, []
    cache = pack_photographs(Path(arguments.images), Path(arguments.cache))
    names = sorted(source.parent.name for source in Path(arguments.images).glob("*/images"))
    held_back = arguments.held_back or held_back_sources(names)
    unknown = sorted(set(held_back) - set(names))
    if unknown or len(held_back) >= len(names):
        raise UserError(f"--held_back {unknown or held_back}: name some of the sources, not all: {', '.join(names)}")
    trained = [name for name in names if name not in held_back]
    photographs = Photographs(cache, trained, {name: number for number, name in enumerate(trained, 1)})
    kept_apart = HeldBack.draw(Photographs(cache, sorted(held_back), {}), arguments.seed, images=8, objects=4)
    return Mixture(drawn, photographs, arguments.drawn_share), kept_apart, trained


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    mixture, held_back, sources = load_images(arguments)
    run = Pretraining(arguments, sources, held_back)
    run.resume()
    (run.folder / "arguments.json").write_text(json.dumps(vars(arguments), indent=1))
    start, first = time.time(), run.step
    last = min(arguments.stop_at or math.inf, arguments.max_steps)
    items = DataLoader(
        Steps(mixture, arguments), batch_size=None, sampler=range(first, last), num_workers=arguments.num_workers
    )
    for item in items:
        run.train_step(item)
        if run.step % 50 == 0:
            run.log(seconds=(time.time() - start) / (run.step - first))
        if held_back and (run.step % arguments.check_every == 0 or run.step == arguments.max_steps):
            run.check()
        if run.step % arguments.save_every == 0 or run.step == last:
            run.save()
            run.export(run.folder / "model")


if __name__ == "__main__":
    sys.exit(exit_status(main))
