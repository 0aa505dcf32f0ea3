"""Dropforge. What a job calls by the package's name alone is here; everything else is imported where it is used."""


def run_node() -> None:
    """What a Databricks job calls: see `training.wheel_task`."""
    from dropforge.training.wheel_task import main

    main()
