"""Send metrics of a training to MLflow or Weights & Biases, if configured; neither is a dependency."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from digr.config import Config

PrintRecord = Callable[[Mapping[str, Any]], None]


@contextmanager
def tracked(config: Config, name: str, print_record: PrintRecord) -> Iterator[PrintRecord]:
    """Yield a function that prints a record and logs its numbers at the record's step.

    Args:
        name: name of the tracker's run.

    Raises:
        ValueError: the tracker is not installed.
    """
    tracker, project = config.run.tracker, config.run.tracker_project
    if tracker == "none":
        yield print_record
        return
    try:
        library = importlib.import_module(tracker)
    except ModuleNotFoundError as error:
        raise ValueError(f'run.tracker = "{tracker}": {error}; pip install {tracker}, or set run.tracker = "none"') from error
    settings = config.model_dump(mode="json", include={"policy", "train", "sft", "grpo", "tasks"})
    run_name = f"{name} {config.run.variant}".strip()
    if tracker == "mlflow":
        if config.run.tracker_uri:
            library.set_tracking_uri(config.run.tracker_uri)
        library.set_experiment(project)
        with library.start_run(run_name=run_name):
            library.log_dict(settings, "config.json")
            yield _both(print_record, lambda numbers, step: library.log_metrics(numbers, step=step))
    else:
        with library.init(project=project, name=run_name, config=settings) as run:
            yield _both(print_record, lambda numbers, step: run.log(numbers, step=step))


def _both(print_record: PrintRecord, log: Callable[[dict[str, float], int], Any]) -> PrintRecord:
    def report(record: Mapping[str, Any]) -> None:
        print_record(record)
        # MLflow does not allow "@" in names
        log({key.replace("@", "_at_"): float(value) for key, value in record.items() if key != "step"}, int(record["step"]))

    return report
