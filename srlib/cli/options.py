"""Options that several commands share."""

import click

FACTOR = {"nargs": 3, "type": float, "metavar": "X Y Z"}
ALIGN = click.Choice(["center", "corners"])
DEVICE = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps.")
PROFILE = click.option("--profile", default="quick", help="Budget: smoke, quick or paper.")
COHORT = click.option(
    "--cohort", default="csv/example.csv", help="Manifest (CSV) of the scans to use."
)
SEED = click.option("--seed", default=0)
CSV_OUT = click.option("--out", required=True, help="The CSV to write.")
FORCE = click.option("--force", is_flag=True, help="Replace what is there.")
