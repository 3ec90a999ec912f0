"""When and where: the Prefect flow, its tasks, and the `purify` command. Prefect is imported here and nowhere else."""
