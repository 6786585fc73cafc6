"""Read experiments as earlier versions wrote them in weights files: one flat record."""

from collections.abc import Mapping
from typing import Any

from srlib.core.parts import Part
from srlib.systems.base import SCHEMA, kinds, names_of


def earlier(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an experiment's parts from a flat record; KeyError for another record."""
    examples, prediction = _examples(flat)
    parts = {"examples": examples, "prediction": prediction, "game": _game(flat)}
    parts |= {"network": _some(flat, "Network"), "training": _some(flat, "Training")}
    return {**_some(flat, "Experiment"), **parts, "schema": SCHEMA}


def _some(flat: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields of a part, named by its class, that a record holds among others."""
    names = names_of(kinds(Part)[kind]) & flat.keys()
    return {name: flat[name] for name in names} | {"kind": kind}


def _examples(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Examples and prediction, which share their numbers."""
    generation, mixture = flat.get("generation"), flat.get("mixture")
    if not generation:
        kind = "CoarseToFine" if flat.get("lr_grid") else "SameGrid"
        return _some(flat, "ScanPatches"), {"kind": kind}
    inputs = [{**acquisition, "kind": "Acquisition"} for acquisition in generation["inputs"]]
    flat = {**flat, "generation": {**generation, "inputs": inputs, "kind": "Generation"}}
    if mixture:
        flat["mixture"] = {**mixture, "kind": "Mixture"}
        return _some(flat, "RandomDegradations"), _some(mixture, "AnyFactor")
    classes, laplace = bool(flat["segmenter"]), flat["loss"] == "laplace"
    examples = _some(flat, "SyntheticScans") | {"with_classes": classes}
    return examples, _some(flat, "IsotropicSpacing") | {"laplace": laplace}


def _game(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The game, whose name was another one."""
    game = flat.get("adversarial")
    if not game:
        return {"kind": "Supervised"}
    kind = game.get("game", "wasserstein").title().replace("_", "")
    return _some({"critic_steps": flat.get("critic_steps"), **game}, kind)
