"""Options that several commands share."""

from click import Choice, IntRange, option


def flag(name, text):
    """An option without a value, off by default."""
    return option(name, is_flag=True, help=text)


FACTOR = {"nargs": 3, "type": float, "metavar": "X Y Z"}
PRECISION = {
    "type": Choice(["auto", "32", "bf16"]),
    "help": "float32, bfloat16, or auto: bfloat16 where it is faster on this machine.",
}
ALIGN = Choice(["center", "corners"])
WORKERS = option("--workers", type=IntRange(1), default=1, help="Processes that share the scans.")
SCHEDULER = option(
    "--scheduler",
    metavar="ADDRESS|FILE",
    help="Dask's, instead: its cluster does the work, on a file system that all see.",
)
DEVICE = option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps.")
PROFILE = option("--profile", default="quick", help="Budget: smoke, quick, study or paper.")
COHORT = option("--cohort", default="csv/example.csv", help="Manifest (CSV) of the scans to use.")
OVERRIDES = option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another value of a number, such as training.learning_rate=3e-4 or network.blocks=8.",
)
SEED = option("--seed", default=0)
CSV_OUT = option("--out", required=True, help="The CSV to write.")
FORCE = flag("--force", "Replace what is there.")
