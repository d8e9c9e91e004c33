"""The recipe of a continual run: a training recipe, and the domains that it is repeated on in order."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..files import check_domain_name
from ..names import DRAWN, MaskValues
from .arguments import from_values, option
from .paths import DATASET
from .recipe import Recipe


NATURAL = "natural"  # name of the data set that is evaluated only


@dataclass(frozen=True)
class Domain:
    """A data set with a name; None = as the recipe says.

    Attributes:
        name: of letters, digits, `-` and `_`; also that of its folder and, in a pool, of its adapter.
        dataset, mask_suffix, mask_values, mask_threshold, label_map, group_by: as in `Recipe`.
    """

    name: str
    dataset: str
    mask_suffix: str | None = None
    mask_values: MaskValues | None = None
    mask_threshold: float | None = None
    label_map: dict[int, int] | None = None
    group_by: str | None = None

    @classmethod
    def read(cls, value: dict | str, key: str) -> Domain:
        """A domain from a mapping of its fields, the short form `{name: dataset}`, or a data set alone.

        Args:
            key: where the value stands in the recipe, for errors.
        """
        if isinstance(value, str):
            value = {"dataset": value}
        elif len(value) == 1 and "dataset" not in value:
            (short, dataset), *_ = value.items()
            value = {"name": short, "dataset": dataset}
        if value.get("dataset") is None:
            raise UserError(f"{value} names no dataset", key=key, fix="give name: … and dataset: …, or name: dataset")
        named = value.get("name") or Path(str(value["dataset"]).removeprefix(DRAWN)).name
        domain = from_values(cls, {**value, "name": named}, key)
        try:
            check_domain_name(domain.name, [])
        except UserError as error:
            raise error.replace(key=key) from error
        if domain.name == NATURAL:
            raise UserError(
                f"the name {NATURAL!r} is kept for the data set that is evaluated only",
                key=key,
                fix="choose another",
            )
        return domain

    def plain(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass
class ContinualRecipe(Recipe):
    """Everything that decides a continual run; `method`, budget and all the rest hold for each task.

    Raises:
        UserError: a value outside its range, naming key and value.
    """

    domains: list[dict | str] = option(
        [], "Domains in order, each `name: dataset`, synthetic:<domain>, or a mapping.", path=DATASET
    )
    natural: dict | str | None = option(
        None, "A data set that is evaluated after each task and never trained on.", path=DATASET
    )
    protocol: Literal["moda", "naive", "joint", "er", "lwf", "ewc", "l2p", "olora"] = option(
        "moda", "How earlier domains are kept while the next one is learned."
    )
    learning_rates: list[float] | None = option(
        None, "Highest learning rate of each task, one a domain; unset = learning_rate for all."
    )
    protocol_args: dict = option({}, "Settings of the protocol, e.g. --protocol_args.weight 3.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.domains:
            raise UserError(
                "missing", key="domains", fix="list them in order, each as name: dataset or synthetic:<domain>"
            )
        if self.tile is not None:
            raise UserError("a continual run takes whole images", key="tile", fix="leave it out")
        for key, value in (("dataset", self.dataset), ("num_labels", self.num_labels), ("palette", self.palette)):
            if value is not None:
                hint = "name data sets under domains" if key == "dataset" else "a continual run segments one class"
                raise UserError(f"{value}: {hint}", key=key, fix=f"leave {key} out")
        if self.resume_from_checkpoint not in (None, "latest"):
            raise UserError(
                "a continual run always goes on where it stopped", key="resume_from_checkpoint", fix="leave it out"
            )
        domains = [Domain.read(value, f"domains[{index}]") for index, value in enumerate(self.domains)]
        self.domains = [domain.plain() for domain in domains]
        names = [domain.name for domain in domains]
        if self.natural is not None:
            self.natural = Domain.read(self.natural, "natural").plain()
        if self.learning_rates is not None and (self.protocol == "joint" or len(self.learning_rates) != len(names)):
            tasks = 1 if self.protocol == "joint" else len(names)
            raise UserError(
                f"{len(self.learning_rates)} for {tasks} tasks of protocol {self.protocol}",
                key="learning_rates",
                fix="give one a domain, for joint learning_rate alone",
            )
        for rate in self.learning_rates or ():
            if not 0 <= rate < math.inf:
                raise UserError(f"{rate} is not a finite number of at least 0", key="learning_rates")
        repeated = [name for index, name in enumerate(names) if name in names[:index]]
        if repeated:
            raise UserError(f"{repeated[0]} is there twice", key="domains", fix="give each domain a name of its own")

    def read_domains(self) -> list[Domain]:
        """The domains in order."""
        return [Domain.read(value, "domains") for value in self.domains]

    def read_natural(self) -> Domain | None:
        """The data set that is evaluated only, under the name `natural`."""
        if self.natural is None:
            return None
        return dataclasses.replace(Domain.read(self.natural, "natural"), name=NATURAL)

    def task(self, domain: Domain, folder: Path, **changes: Any) -> Recipe:
        """The recipe of a training on one domain.

        Args:
            folder: of the run; one that an interrupted training has left is continued.
            changes: further keys.
        """
        keys = {field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)}
        resume = "latest" if (folder / "recipe.yaml").exists() else None
        of_domain = {key: value for key, value in domain.plain().items() if key != "name"}
        of_domain |= {"push_to_hub": False}
        names = [one.name for one in self.read_domains()]
        if self.learning_rates is not None and domain.name in names:
            of_domain["learning_rate"] = self.learning_rates[names.index(domain.name)]
        return Recipe(**(keys | of_domain | {"output_dir": str(folder), "resume_from_checkpoint": resume} | changes))
