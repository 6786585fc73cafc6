"""Read experiments as earlier versions wrote them in weights files: one flat record."""

from collections.abc import Mapping
from typing import Any

from srlib.core.parts import Part
from srlib.systems.base import SCHEMA, kinds, names_of


def earlier(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an experiment's parts from a flat record; KeyError for another record."""
    generation, mixture, game = map(flat.get, ("generation", "mixture", "adversarial"))
    named = {**flat, **(mixture or {}), **(game or {})}
    parts = {"network": "Network", "training": "Training", "game": "Supervised"}
    if game:  # whose name was another one
        parts["game"] = game.get("game", "wasserstein").title().replace("_", "")
    if generation:
        inputs = [{**acquisition, "kind": "Acquisition"} for acquisition in generation["inputs"]]
        named["generation"] = {**generation, "inputs": inputs, "kind": "Generation"}
    if mixture:
        named["mixture"] = {**mixture, "kind": "Mixture"}
        parts |= {"examples": "RandomDegradations", "prediction": "AnyFactor"}
    elif generation:
        named |= {"with_classes": bool(flat["segmenter"]), "laplace": flat["loss"] == "laplace"}
        parts |= {"examples": "SyntheticScans", "prediction": "IsotropicSpacing"}
    else:
        prediction = "CoarseToFine" if flat.get("lr_grid") else "SameGrid"
        parts |= {"examples": "ScanPatches", "prediction": prediction}
    found = {slot: _some(named, kind) for slot, kind in parts.items()}
    return {**_some(flat, "Experiment"), **found, "schema": SCHEMA}


def _some(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields of a part, named by its class, that a record holds among others."""
    names = names_of(kinds(Part)[kind]) & record.keys()
    return {name: record[name] for name in names} | {"kind": kind}
