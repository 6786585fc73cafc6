"""Read experiments as earlier versions wrote them in weights files: one flat record."""

from collections.abc import Mapping
from typing import Any

from srlib.systems.base import SCHEMA

# slot -> its fields in the flat record
FIELDS = {
    "network": "model width model_args",
    "training": "max_steps batch_size learning_rate loss optimizer optimizer_args bias_rate "
    "schedule schedule_args precision loss_crop dice_weight",
    "scans": "patch_size n_train more_tasks sampling stride border samples min_foreground "
    "per_patch",
    "own": "name task contrast reference intensity frame given start start_critic segmenter "
    "task_settings",
}
# value of the field game -> class, and its fields
GAMES = {
    "wasserstein": (
        "Wasserstein",
        "weight per_generator extra_every extra constraint strength slope",
    ),
    "least_squares": ("LeastSquares", "weight labels slope"),
    "cross_entropy": ("CrossEntropy", "weight labels moves"),
}


def earlier(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an experiment's parts from a flat record; KeyError for another record."""
    examples, prediction = _examples(flat)
    return {
        **_some(flat, FIELDS["own"], "Experiment"),
        "schema": SCHEMA,
        "network": _some(flat, FIELDS["network"], "Network"),
        "training": _some(flat, FIELDS["training"], "Training"),
        "examples": examples,
        "game": _game(flat),
        "prediction": prediction,
    }


def _some(flat: Mapping[str, Any], names: str, kind: str) -> dict[str, Any]:
    """The fields of a part that a record holds, with the name of its class."""
    return {name: flat[name] for name in names.split() if name in flat} | {"kind": kind}


def _examples(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Examples and prediction, which share their numbers."""
    generation, mixture = flat.get("generation"), flat.get("mixture")
    if not generation:
        kind = "CoarseToFine" if flat.get("lr_grid") else "SameGrid"
        return _some(flat, FIELDS["scans"], "ScanPatches"), {"kind": kind}
    inputs = [{**acquisition, "kind": "Acquisition"} for acquisition in generation["inputs"]]
    drawn = {"generation": {**generation, "inputs": inputs, "kind": "Generation"}}
    if mixture:
        examples = _some(flat, "patch_size n_train samples", "RandomDegradations")
        examples["mixture"] = {**mixture, "kind": "Mixture"}
        return examples | drawn, _some(mixture, "isotropic thick", "AnyFactor")
    examples = _some(flat, "patch_size n_train spacing_mm", "SyntheticScans")
    prediction = _some(flat, "spacing_mm output", "IsotropicSpacing")
    prediction["laplace"] = flat["loss"] == "laplace"
    return {**examples, **drawn, "with_classes": bool(flat["segmenter"])}, prediction | drawn


def _game(flat: Mapping[str, Any]) -> dict[str, Any]:
    game = flat.get("adversarial")
    if not game:
        return {"kind": "Supervised"}
    kind, names = GAMES[game.get("game", "wasserstein")]
    steps = {"critic_steps": flat["critic_steps"]} if kind == "Wasserstein" else {}
    return _some(game, names, kind) | steps
