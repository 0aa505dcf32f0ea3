"""Commands about the managed online endpoint on Azure. They ask Azure ML, not the host, as whoever is signed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from dropforge.cli.app import AsJson, app
from dropforge.cli.shown import row, show, table
from dropforge.domain.errors import BadInput
from dropforge.settings import settings

if TYPE_CHECKING:
    from dropforge.adapters.azure.aml_endpoint import EndpointOperator

endpoint = typer.Typer(
    name="endpoint",
    help="The managed online endpoint on Azure: its deployments, their traffic and instances.",
    no_args_is_help=True,
)
app.add_typer(endpoint)

Deployment = Annotated[str, typer.Argument(help="The deployment's name, as `dropforge endpoint status` shows it.")]


def _operator() -> EndpointOperator:
    chosen = settings()
    if chosen.azureml is None or chosen.azureml.endpoint is None or not chosen.storage:
        raise BadInput(
            "the endpoint is the one of the app's settings: set DROPFORGE_AML_WORKSPACE, DROPFORGE_AML_ENDPOINT, "
            "DROPFORGE_STORAGE and DROPFORGE_SERVE_IMAGE as they are there (`azd env get-values` shows them)"
        )
    # A second to load, for these commands only.
    from dropforge.adapters.azure.aml_endpoint import EndpointOperator

    return EndpointOperator(chosen.azureml, chosen.storage)


@endpoint.command()
def status(as_json: AsJson = False) -> None:
    """The deployments with their image, state, instances and traffic."""
    operator = _operator()
    show(operator.told(), as_json, _status)


def _status(told: dict[str, Any]) -> RenderableType:
    held = "; held: traffic was set by hand" if told["held"] else ""
    made = table("deployment", "state", "#instances", "type", "#traffic", "#mirror", "")
    made.title = f"{told['endpoint']}: {told['state']}{held}"
    for each in told["deployments"]:
        wanted = "wanted" if each["wanted"] else ""
        cells = (each["name"], each["state"], each["instances"], each["instance_type"], each["traffic"], each["mirror"])
        row(made, *cells, wanted)
    return made


@endpoint.command()
def traffic(
    shares: Annotated[list[str], typer.Argument(help="<deployment>=<percent>, summing to 100.", metavar="SHARES")],
) -> None:
    """Divide the requests, and hold the endpoint: no rollout moves traffic until `release`."""
    _operator().set_traffic(dict(_share(each) for each in shares))


def _share(text: str) -> tuple[str, int]:
    name, _, percent = text.partition("=")
    if not name or not percent.isascii() or not percent.isdigit():
        raise BadInput(f"{text!r} is no share of the traffic; wanted <deployment>=<percent>, as in s1a2b3c4d=90")
    return name, int(percent[:9])


@endpoint.command()
def mirror(deployment: Deployment, percent: Annotated[int, typer.Argument(min=0, max=50, help="0 ends it.")]) -> None:
    """Copy a share of the requests to a deployment, whose answers are dropped; holds the endpoint."""
    _operator().set_mirror(deployment, percent)


@endpoint.command()
def scale(
    instances: Annotated[int, typer.Argument(min=1, max=100)],
    deployment: Annotated[str | None, typer.Option(help="Default: the only one with traffic.")] = None,
) -> None:
    """Give a deployment so many instances."""
    _operator().scale(instances, deployment)


@endpoint.command("roll-back")
def roll_back() -> None:
    """All traffic back to the deployment before the one that the settings want; holds the endpoint."""
    show({"deployment": (name := _operator().roll_back())}, False, lambda _: f"All traffic goes to {name}.")


@endpoint.command()
def release() -> None:
    """Let rollouts go on: the next deployment of a model brings the endpoint to what the settings want."""
    _operator().release()
