"""Experiments as weights files of earlier versions described them: one flat record."""

from collections.abc import Mapping

from srlib.systems.base import SCHEMA

# field of the flat record -> what it is now, where that is not of the same name
PARTS: dict[str, tuple[str, ...]] = {
    "network": ("model", "width", "model_args"),
    "training": (
        "max_steps", "batch_size", "learning_rate", "loss", "optimizer", "optimizer_args", "bias_rate", "schedule",
        "schedule_args", "precision", "loss_crop", "dice_weight",
    ),
    "scans": (
        "patch_size", "n_train", "more_tasks", "sampling", "stride", "border", "samples", "min_foreground", "per_patch",
    ),
    "own": (
        "name", "task", "contrast", "reference", "intensity", "frame", "given", "start", "start_critic", "segmenter",
        "task_settings",
    ),
}  # fmt: skip
GAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "wasserstein": (
        "Wasserstein",
        ("weight", "per_generator", "extra_every", "extra", "constraint", "strength", "slope"),
    ),
    "least_squares": ("LeastSquares", ("weight", "labels", "slope")),
    "cross_entropy": ("CrossEntropy", ("weight", "labels", "moves")),
}


def earlier(flat: Mapping[str, object]) -> dict[str, object]:
    """A flat record as the fields of parts; KeyError when it is none."""

    def some(part: str, kind: str, **more: object) -> dict[str, object]:
        return {name: flat[name] for name in PARTS[part] if name in flat} | {"kind": kind} | more

    generation, mixture, game = flat.get("generation"), flat.get("mixture"), flat.get("adversarial")
    examples, prediction = some("scans", "ScanPatches"), {"kind": "SameGrid"}
    if flat.get("lr_grid"):
        prediction["kind"] = "CoarseToFine"
    if generation:
        inputs = [{**acquisition, "kind": "Acquisition"} for acquisition in generation["inputs"]]
        generation = {**generation, "inputs": inputs, "kind": "Generation"}
        examples = {name: flat[name] for name in ("patch_size", "n_train")} | {
            "generation": generation
        }
    if mixture:
        examples |= {
            "kind": "RandomDegradations",
            "samples": flat["samples"],
            "mixture": {**mixture, "kind": "Mixture"},
        }
        prediction = {
            "kind": "AnyFactor",
            "isotropic": mixture["isotropic"],
            "thick": mixture["thick"],
        }
    elif generation:
        spacing, laplace = {"spacing_mm": flat["spacing_mm"]}, flat["loss"] == "laplace"
        examples |= {"kind": "SyntheticScans", "with_classes": bool(flat["segmenter"]), **spacing}
        output = {"output": flat["output"], "laplace": laplace}
        prediction = {"kind": "IsotropicSpacing", "generation": generation, **spacing, **output}
    played = {"kind": "Supervised"}
    if game:
        kind, names = GAMES[game.get("game", "wasserstein")]
        played = {"kind": kind} | {name: game[name] for name in names if name in game}
        if kind == "Wasserstein":
            played["critic_steps"] = flat["critic_steps"]
    return {
        **some("own", "Experiment"),
        "schema": SCHEMA,
        "network": some("network", "Network"),
        "training": some("training", "Training"),
        "examples": examples,
        "game": played,
        "prediction": prediction,
    }
