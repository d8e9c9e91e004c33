"""Names of the classes as users write them."""

from collections.abc import Mapping, Sequence

import yaml

from ..errors import UserError


def read_id2label(value: Mapping | Sequence[str] | str | None) -> dict[int, str] | None:
    """Class -> name, of such a mapping, of names in the order of the classes, or of `soil,crop,weed`.

    Raises:
        UserError: anything else.
    """
    if value is None:
        return None
    try:
        if not isinstance(value, (Mapping, str)) and len(value) == 1:  # of a flag
            (value,) = value
        if isinstance(value, str):
            value = yaml.safe_load(value) if value.lstrip().startswith(("{", "[")) else value.split(",")
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {int(key): str(name).strip() for key, name in pairs}
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{value!r} must map classes to names, such as {{0: background, 1: road}}, or list the names",
            key="id2label",
        ) from error


def check_id2label(id2label: Mapping[int, str], num_labels: int) -> None:
    """Raise `UserError` unless each class has a name and nothing else has."""
    missing = [str(label) for label in range(num_labels) if not id2label.get(label)]
    if missing:
        raise UserError(
            f"no name for class {', '.join(missing)} of num_labels {num_labels}",
            key="id2label",
            fix=f"name each, 0 to {num_labels - 1}, the background included",
        )
    more = sorted(set(id2label) - set(range(num_labels)))
    if more:
        problem = f"class {more[0]} ({id2label[more[0]]}) is not below num_labels {num_labels}"
        raise UserError(problem, key="id2label")
