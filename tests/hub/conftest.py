"""This process's Hub client, pointed to a local Hub, with a clock that sleeps no time."""

import time
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants, hf_api
from local_hub import LocalHub


@pytest.fixture
def hub():
    with LocalHub() as running:
        yield running


@pytest.fixture
def connect(hub, monkeypatch, tmp_path):
    """Returns `connect(home)`: from now on the client's cache is in the folder `home`, for instance an empty one."""

    def to(home=None):
        home = tmp_path / "home" if home is None else home
        values = {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)  # behind huggingface_hub.file_exists
        monkeypatch.setenv("HF_TOKEN", hub.token)
        return hub

    yield to
    close_session()


@pytest.fixture
def connected(connect) -> LocalHub:
    return connect()


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Sleeps take no time, and are listed."""
    found, real = SimpleNamespace(sleeps=[], passed=0.0), time.monotonic

    def sleep(seconds: float) -> None:
        found.sleeps.append(seconds)
        found.passed += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: real() + found.passed)
    return found
