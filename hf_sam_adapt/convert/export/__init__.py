"""An adapted SAM for other programs: ONNX, `torch.export`, segment-anything's checkpoints, transformers' folders."""

from .run import Export, export


__all__ = ["Export", "export"]
