"""Serve a run on this machine: `digr serve runs/quickstart`, or `python -m serve.run runs/quickstart`.

It starts a Ray of its own and the application of `serve.app` in it. On a cluster, use `serve deploy serve/config.yaml`.
"""

import difflib
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from serve.asking.terminal import tell
from serve.settings import AppArguments, VersionSettings

EDGE_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Names what Ray Serve's proxy puts around its routing; read where Ray is started."""


def serve(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run, local or s3://.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Settings of serve/settings.py, such as ranker=off.")
    ] = None,
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Address to listen on; others than this machine are answered with keys_file only."),
    ] = "127.0.0.1",
) -> None:
    """Serve a run on this machine until Ctrl-C."""
    try:
        arguments = read_arguments(run_folder, settings or [])
        check_servable(arguments)
        check_port(host, port)
    except ValueError as error:
        tell(f"error: {error}")
        raise typer.Exit(2) from None
    serve_until_interrupt(arguments, host, port)


def read_arguments(run_folder: str, settings: Sequence[str]) -> AppArguments:
    """Read `name=value` words as fields of `AppArguments`, or of the one version that is served.

    Raises:
        ValueError: a word has no `=`, a name is unknown (the nearest known one is named), or a value is not allowed.
    """
    of_version = set(VersionSettings.model_fields) - {"run_dir"}
    known = of_version | (set(AppArguments.model_fields) - {"run_dir", "models", "default_model"})
    values: dict[str, str] = {}
    for word in settings:
        name, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"{word!r}: expected NAME=VALUE, for example ranker=off")
        if name not in known:
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{word!r}: there is no setting {name!r}; the nearest one is {nearest}, all are in serve/settings.py"
            )
        values[name] = value
    try:
        version = VersionSettings.model_validate(
            {"run_dir": run_folder} | {name: values.pop(name) for name in of_version & set(values)}
        )
        return AppArguments.model_validate({"run_dir": run_folder, "models": {"main": version}} | values)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, wrong['loc']))} = {wrong['input']!r}: {wrong['msg']}") from None


def check_servable(arguments: AppArguments) -> None:
    """Refuse a folder that is no run which can be served, and keys that cannot be read, before Ray is started.

    Raises:
        ValueError: the message says what is missing and which command makes it.
    """
    arguments.resolved()  # refuses a state_dir that cannot be one
    for version in arguments.models.values():
        if "://" not in version.run_dir and not Path(version.run_dir).is_dir():
            raise ValueError(
                f"{version.run_dir}: no such folder; give the folder of a finished run, as `digr run quickstart` makes it"
            )
    from serve.items.catalogue import check_run  # brings PyTorch along
    from serve.keys import read_keys

    for version in arguments.models.values():
        check_run(version)
    if arguments.keys_file:
        read_keys(Path(arguments.keys_file))


def check_port(host: str, port: int) -> None:
    """Refuse an address where this machine cannot listen.

    Raises:
        ValueError: something else listens there, or the address is not of this machine.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}:{port} ({error.strerror}); stop what listens there, or give another --port"
        ) from None


def serve_until_interrupt(arguments: AppArguments, host: str, port: int) -> None:
    """Start Ray and the application, and stop both at Ctrl-C or when loading fails."""
    os.environ.setdefault(EDGE_VARIABLE, "serve.edge:middlewares")
    import ray
    from ray import serve as ray_serve

    from serve.app import app
    from serve.middleware.callers import NO_KEYS

    ray.init(address="local", include_dashboard=False)
    try:
        ray_serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
        ray_serve.run(app(arguments), name="digr")
        tell(
            f"serving {arguments.models['main'].run_dir} at http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C stops it"
        )
        if not arguments.keys_file:
            tell(NO_KEYS)
        threading.Event().wait()
    except KeyboardInterrupt:
        tell("stopping")
    finally:
        ray_serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    command = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    command.command()(serve)
    command()
