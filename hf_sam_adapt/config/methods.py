"""The methods of a recipe: the config of each, what it is called, what it does in a clause, and how to cite it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any


_SAM_ADAPTER = """\
@inproceedings{chen2023sam,
  title = {SAM-Adapter: Adapting Segment Anything in Underperformed Scenes},
  author = {Chen, Tianrun and Zhu, Lanyun and Deng, Chaotao and Cao, Runlong and Wang, Yan and Zhang, Shangzhan and Li,
            Zejian and Sun, Lingyun and Zang, Ying and Mao, Papa},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision Workshops},
  pages = {3367--3375},
  year = {2023}
}"""
_L2P = """\
@inproceedings{wang2022learning,
  title = {Learning to Prompt for Continual Learning},
  author = {Wang, Zifeng and Zhang, Zizhao and Lee, Chen-Yu and Zhang, Han and Sun, Ruoxi and Ren, Xiaoqi and Su,
            Guolong and Perot, Vincent and Dy, Jennifer and Pfister, Tomas},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages = {139--149},
  year = {2022}
}"""
_CONV_LORA = """\
@inproceedings{zhong2024convolution,
  title = {Convolution Meets {LoRA}: Parameter Efficient Finetuning for Segment Anything Model},
  author = {Zhong, Zihan and Tang, Zhiqiang and He, Tong and Fang, Haoyang and Yuan, Chun},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}"""
_CWSAM = """\
@article{pu2025classwise,
  title = {ClassWise-SAM-Adapter: Parameter Efficient Fine-tuning Adapts Segment Anything to {SAR} Domain for Semantic
           Segmentation},
  author = {Pu, Xinyang and Jia, Hecheng and Zheng, Linghao and Wang, Feng and Xu, Feng},
  journal = {IEEE Journal of Selected Topics in Applied Earth Observations and Remote Sensing},
  volume = {18},
  pages = {4791--4804},
  year = {2025},
  doi = {10.1109/JSTARS.2025.3532690}
}"""
_MODA = """\
@article{yang2024continual,
  title = {Continual Learning for Segment Anything Model Adaptation},
  author = {Yang, Jinglong and Wu, Yichen and Cen, Jun and Huang, Wenjian and Wang, Hong and Zhang, Jianguo},
  journal = {arXiv preprint arXiv:2412.06418},
  year = {2024}
}"""
_LORA = """\
@inproceedings{hu2022lora,
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean
            and Wang, Lu and Chen, Weizhu},
  booktitle = {International Conference on Learning Representations},
  year = {2022}
}"""


@dataclass(frozen=True)
class Method:
    """A recipe's method.

    Attributes:
        name: as its authors write it.
        what: what is trained, a clause that follows "with".
        config: `module:class` of its PEFT config, imported when it is asked for; None = no adapter, or one that
            `method_args` name.
        paper: id on arXiv, None without one.
        citation: BibTeX, None without a paper.
        several_classes: whether it can segment several classes and take other channels than three.
    """

    name: str
    what: str
    config: str | None = None
    paper: str | None = None
    citation: str | None = None
    several_classes: bool = False

    @property
    def linked(self) -> str:
        """The name, in Markdown a link to the paper where there is one."""
        return self.name if self.paper is None else f"[{self.name}](https://arxiv.org/abs/{self.paper})"

    def named(self, config: Mapping[str, Any] | None) -> Method:
        """The same method, for `peft` under the name of the tuner in the content of an `adapter_config.json`."""
        if self is not METHODS["peft"] or not config:
            return self
        return replace(self, name=f"PEFT {config['peft_type']}")

    def config_class(self) -> type | None:
        """The class that `config` names."""
        if self.config is None:
            return None
        module, _, name = self.config.partition(":")
        return getattr(import_module(module), name)


_TUNERS = "hf_sam_adapt.tuners"
METHODS = {
    "sam_adapter": Method(
        "SAM-Adapter",
        "a learned prompt before every encoder block",
        f"{_TUNERS}.sam_adapter:SamAdapterConfig",
        "2304.09148",
        _SAM_ADAPTER,
        several_classes=True,
    ),
    "conv_lora": Method(
        "Conv-LoRA",
        "LoRA with a mixture of convolution experts",
        f"{_TUNERS}.conv_lora:ConvLoraConfig",
        "2401.17868",
        _CONV_LORA,
        several_classes=True,
    ),
    "cwsam": Method(
        "CWSAM",
        "two small adapters in every encoder block",
        f"{_TUNERS}.cwsam:CwsamConfig",
        "2401.02326",
        _CWSAM,
        several_classes=True,
    ),
    "moda": Method(
        "MoDA",
        "an adapter per domain and a router that picks one per image",
        f"{_TUNERS}.moda:ModaConfig",
        "2412.06418",
        _MODA,
    ),
    "decoder": Method(
        "mask decoder",
        "a fine-tuned mask decoder, the encoder left as it is",
        f"{_TUNERS}.sam_decoder:SamDecoderConfig",
        several_classes=True,
    ),
    "l2p": Method(
        "L2P",
        "a pool of prompts for the mask decoder, SAM left as it is",
        f"{_TUNERS}.l2p:L2pConfig",
        "2112.08654",
        _L2P,
    ),
    "lora": Method("LoRA", "low-rank updates of the encoder's attention", "peft:LoraConfig", "2106.09685", _LORA),
    "peft": Method("PEFT tuner", "a tuner of PEFT's on the encoder's attention"),
    "full": Method("full fine-tuning", "every weight of encoder and decoder"),
}
CLASS_METHODS = tuple(name for name, method in METHODS.items() if method.several_classes)
