"""How the experts of a Conv-LoRA adapter were used over a training: counts while it runs, a plot at its end."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..tuners.conv_lora.layer import active_experts
from ..tuners.conv_lora.routing import normalised_entropy


ROWS = 100  # of a whole training


class ExpertMeter:
    """Adds up how often each layer took each expert, and writes a row about every hundredth of the training.

    Args:
        rows: where rows go: `{"step", "layers", "noisy", "clean"}`, the last two ints [layer][expert]: `noisy` as
            taken in training, `clean` as `eval_routing="argmax"` would take them.
        total_steps: of the training.
    """

    def __init__(self, rows: list[dict], total_steps: int) -> None:
        self.rows, self.every = rows, max(1, total_steps // ROWS)
        self.counts: torch.Tensor | None = None

    def record(self, step: int, model: nn.Module) -> None:
        """Count the last forward; `step` is the number of optimizer steps done."""
        layers = active_experts(model)
        used = [(name, e.last_counts) for name, e in layers if e.last_counts is not None]
        if not used or len({counts.shape[1] for _, counts in used}) > 1:
            return
        counts = torch.stack([counts for _, counts in used])  # (layers, 2, M)
        self.counts = counts if self.counts is None else self.counts + counts
        if step % self.every == 0:
            noisy, clean = self.counts.unbind(1)
            names = [name for name, _ in used]
            self.rows.append({"step": step, "layers": names, "noisy": noisy.tolist(), "clean": clean.tolist()})
            self.counts = None


def save_expert_plot(rows: list[dict], path: Path) -> None:
    """Draw the shares of the experts over the training, and the entropy of their use.

    Args:
        rows: of `ExpertMeter`.
        path: PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    for axis, kind, title in ((axes[0], "noisy", "taken in training"), (axes[1], "clean", "without noise (argmax)")):
        counts = torch.tensor([row[kind] for row in rows]).sum(1)  # (rows, M)
        shares = counts / counts.sum(1, keepdim=True)
        axis.stackplot(steps, shares.T.numpy(), labels=[f"expert {i + 1}" for i in range(counts.shape[1])])
        axis.set(title=title, xlabel="step", ylabel="share, all layers", ylim=(0, 1))
    axes[1].legend(fontsize=6, loc="upper right")
    for kind, label in (("noisy", "taken in training"), ("clean", "without noise")):
        entropies = [[normalised_entropy(torch.tensor(layer)) for layer in row[kind]] for row in rows]
        axes[2].plot(steps, [sum(values) / len(values) for values in entropies], label=label)
    axes[2].set(title="entropy of use, mean over layers", xlabel="step", ylim=(0, 1.05))
    axes[2].legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=110)
