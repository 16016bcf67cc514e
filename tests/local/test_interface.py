"""The embedded engine's clients have the methods of the installed SDK's, with the same arguments in the same order."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import tinker

from tinkertools import local
from tinkertools.local.rest import RestClient
from tinkertools.local.service import ServiceClient
from tinkertools.local.training import TrainingClient

CLIENTS: list[type] = [ServiceClient, TrainingClient, RestClient]

# What needs a server, or is newer than what the embedded engine has.
ABSENT = {
    "ServiceClient": {"holder", "get_telemetry", "get_console_url", "copy_weights", "create_custom_loss"},
    "TrainingClient": {
        "get_telemetry", "get_console_url", "save_weights_external", "save_weights_external_async",
    },
    "RestClient": {
        "get_telemetry", "whoami", "search_sessions",
        *(
            name + twin
            for twin in ("", "_async")
            for name in (
                "get_checkpoint_archive_url", "get_checkpoint_archive_url_from_tinker_path", "get_sampler",
                "get_external_weights_urls", "get_billing_usage", "get_audit_log", "copy_weights",
                "export_session_trace", "assign_session_project", "get_current_checkpoint_storage_usage",
            )
        ),
    },
}  # fmt: skip

# Where ours takes other arguments than the newest SDK, on purpose.
DIFFERENT = {
    "ServiceClient.__init__": "store, device and models are ours",
    "ServiceClient.close": "the status has a default, and cancel is ours",
    "TrainingClient.__init__": "made by the service client",
    "RestClient.__init__": "made by the service client",
}

# Older SDKs have fewer arguments.
NEWEST = hasattr(tinker, "AdminClient")


def sdk_class(name: str) -> type:
    home = {"ServiceClient": "service", "TrainingClient": "training", "RestClient": "rest"}[name]
    found: type = getattr(importlib.import_module(f"tinker.lib.public_interfaces.{home}_client"), name)
    return found


def arguments(method: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize("ours", CLIENTS)
def test_every_method_of_the_sdk_is_there_or_listed_as_absent(ours: type) -> None:
    theirs = sdk_class(ours.__name__)
    public = {name for name in vars(theirs) if not name.startswith("_")}
    assert public - set(dir(ours)) <= ABSENT[ours.__name__]
    assert not ABSENT[ours.__name__] & set(dir(ours))


@pytest.mark.parametrize("ours", CLIENTS)
def test_arguments_have_the_names_the_order_and_the_defaults_of_the_sdk(ours: type) -> None:
    theirs = sdk_class(ours.__name__)
    for name, method in vars(theirs).items():
        where = f"{ours.__name__}.{name}"
        if name.startswith("_") or name in ABSENT[ours.__name__] or where in DIFFERENT or not callable(method):
            continue
        mine, wanted = arguments(getattr(ours, name)), arguments(method)
        if NEWEST:
            assert mine == wanted, where
        else:
            # The newest has more of them. One that was renamed (adam_params) is taken under both names.
            assert {p[0] for p in wanted} <= {p[0] for p in mine}, where
            assert {p[0]: p[2] for p in wanted}.items() - {("loss_type_input", "logprobs")} <= {
                (p[0], p[2]) for p in [*mine, ("adam_params", None, inspect.Parameter.empty)]
            }, where
        assert inspect.iscoroutinefunction(inspect.unwrap(method)) <= inspect.iscoroutinefunction(getattr(ours, name))


def test_the_constructor_takes_what_the_sdks_takes(tmp_path: Path) -> None:
    taken = inspect.signature(ServiceClient.__init__).parameters
    wanted = inspect.signature(vars(sdk_class("ServiceClient"))["__init__"]).parameters
    assert wanted.keys() <= taken.keys()
    assert list(taken)[:3] == list(wanted)[:3] == ["self", "user_metadata", "project_id"]
    with pytest.warns(FutureWarning, match="ignores unsupported arguments: max_retries"):
        ServiceClient({"team": "blue"}, base_url="https://example.com", api_key="tml-x", store=tmp_path, max_retries=3)


def test_one_line_puts_it_in_the_place_of_the_sdk(tmp_path: Path, tiny: str) -> None:
    own = tinker.ServiceClient
    with local.install({"Some/Model": tiny}, store=tmp_path, device="cpu"):
        from tinker import ServiceClient as Imported

        assert Imported is tinker.ServiceClient is sdk_class("ServiceClient")
        service = tinker.ServiceClient(base_url="https://not.asked", user_metadata={"who": "me"})
        client = service.create_lora_training_client(base_model="Some/Model", rank=2)
        assert isinstance(client, tinker.TrainingClient)
        assert isinstance(service.create_sampling_client(base_model="Some/Model"), tinker.SamplingClient)
        assert client.get_info().model_data.model_name == "Some/Model"
        rest = sdk_class("RestClient")()
        assert rest.get_training_run(client.model_id).result().base_model == "Some/Model"
        names = [model.model_name for model in service.get_server_capabilities().supported_models]
        assert "Some/Model" in names
        service.close("success").result()
    assert tinker.ServiceClient is own is sdk_class("ServiceClient")
    local.install(store=tmp_path)
    assert tinker.ServiceClient is not own
    local.uninstall()
    assert tinker.ServiceClient is own
