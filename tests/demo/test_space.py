"""The Space: pushed to a Hub with the wheel of the checkout, downloaded, installed and asked."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from local_hub import LocalHub
from PIL import Image

from hf_sam_adapt import __version__
from hf_sam_adapt.cli import main
from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.demo.catalog import built_in_folder
from hf_sam_adapt.hub import space


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "spaces/sam-adapt-demo"
WHEEL = f"hf_sam_adapt-{__version__}-py3-none-any.whl"


@pytest.fixture
def hub():
    with LocalHub() as running:
        yield running


def push(hub, home, folder=FOLDER, *flags):
    command = [sys.executable, "-m", "hf_sam_adapt.cli", "push", folder, "--repo", "me/demo", "--repo_type", "space"]
    environment = os.environ | hub.environment(home)
    return subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(url, process, seconds):
    """Seconds until a page answers."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        assert process.poll() is None, process.stdout.read()
        try:
            with urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return time.monotonic() - start
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise AssertionError(f"no answer within {seconds} seconds")


def test_what_is_no_space_is_said_before_a_request(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(space, "check_can_push", lambda *args: None)
    arguments = ["push", "--repo", "me/demo", "--repo_type", "space"]
    assert main([*arguments, str(tmp_path)]) == 2
    assert "is not a Space: it holds no README.md, app.py, requirements.txt" in capsys.readouterr().err
    elsewhere = Path(shutil.copytree(FOLDER, tmp_path / "elsewhere"))
    (elsewhere / "README.md").write_text("# no head\n")
    assert main([*arguments, str(elsewhere)]) == 2
    assert "names no sdk in its head" in capsys.readouterr().err
    shutil.copy(FOLDER / "README.md", elsewhere)
    assert main([*arguments, str(elsewhere)]) == 2
    assert "lies in no checkout" in capsys.readouterr().err
    monkeypatch.setattr(space, "checkout_of", lambda folder: ROOT)
    monkeypatch.setattr(space, "build_wheel", lambda checkout, folder: folder / "hf_sam_adapt-9.9-py3-none-any.whl")
    assert main([*arguments, str(elsewhere)]) == 2
    assert "does not name ./hf_sam_adapt-9.9-py3-none-any.whl" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.slow
def test_push_brings_the_wheel_along(hub, tmp_path):
    folder = tmp_path / "checkout"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "hf_sam_adapt", folder / "hf_sam_adapt")
    shutil.copytree(FOLDER, folder / "spaces/mine")
    (folder / "spaces/mine/.env").write_text("HF_TOKEN=hf_secret")
    (folder / "spaces/mine/run.log").write_text("secret")
    result = push(hub, tmp_path / "home", folder / "spaces/mine")
    assert result.returncode == 0, result.stderr
    files = hub.files("me/demo", kind="space")
    assert set(files) == {"README.md", "Dockerfile", "app.py", "requirements.txt", WHEEL}
    assert files["app.py"] == (FOLDER / "app.py").read_bytes()
    assert len(hub.repositories["space", "me/demo"].titles) == 2  # the Hub's own, and one commit
    assert not (folder / "build").exists()
    (tmp_path / WHEEL).write_bytes(files[WHEEL])
    names = zipfile.ZipFile(tmp_path / WHEEL).namelist()
    for inside in (
        "demo/page.py",
        "demo/adapters/radar-fields/adapter_model.safetensors",
        "sam/tiny_sam/model.safetensors",
    ):
        assert f"hf_sam_adapt/{inside}" in names
    assert "hf_sam_adapt/demo/adapters/three-domains/polyp/adapter_config.json" in names


def fake_wheel(folder):
    """A wheel with one file of the package, and what it needs."""
    needed = ["torch>=2.11", 'gradio>=6.30; extra == "demo"', 'datasets>=4.0; extra == "train"', "numpy>=1.26"]
    needed += ['pytest; extra == "dev"', 'hf-sam-adapt[train]; extra == "demo"']
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr("hf_sam_adapt/__init__.py", "")
        archive.writestr("x.dist-info/METADATA", "\n".join(f"Requires-Dist: {each}" for each in needed))
        archive.writestr("x.dist-info/RECORD", "")
    return folder / WHEEL


def test_the_same_folder_makes_a_gradio_space(tmp_path):
    files = space.space_files(FOLDER)
    made = space.gradio_files(files, fake_wheel(tmp_path), tmp_path)
    assert set(made) == {"README.md", "app.py", "requirements.txt", "hf_sam_adapt/__init__.py"}
    assert made["app.py"] == files["app.py"]
    head = space.metadata_load(made["README.md"])
    docker = space.metadata_load(files["README.md"])
    pins = dict(line.split("==") for line in files["requirements.txt"].read_text().split() if "==" in line)
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", pins["gradio"], "app.py")
    assert head["suggested_hardware"] == "zero-a10g" and "app_port" not in head
    assert head["title"] == docker["title"] and head["tags"] == docker["tags"]
    assert made["README.md"].read_text().endswith(files["README.md"].read_text().split("---\n", 2)[2].strip() + "\n")
    assert made["requirements.txt"].read_text().split() == [
        "torch>=2.11",
        "datasets>=4.0",
        "numpy>=1.26",
        *(f"{name}=={version}" for name, version in pins.items() if name not in ("gradio", "torch")),
    ]


def test_the_sdk_is_of_a_space(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(space, "check_can_push", lambda *args: None)
    monkeypatch.setattr(space, "build_wheel", lambda checkout, folder: fake_wheel(folder))
    assert main(["push", str(FOLDER), "--repo", "me/demo", "--space_sdk", "gradio"]) == 2
    assert "space_sdk: of a Space; add --repo_type space" in capsys.readouterr().err
    arguments = ["push", "--repo", "me/demo", "--repo_type", "space", "--space_sdk"]
    assert main([*arguments, "static", str(FOLDER)]) == 2
    assert "space_sdk: 'static' is not one of docker, gradio" in capsys.readouterr().err
    mine = Path(shutil.copytree(FOLDER, tmp_path / "mine"))
    (mine / "requirements.txt").write_text(f"./{WHEEL}[demo]\n")
    monkeypatch.setattr(space, "checkout_of", lambda folder: ROOT)
    assert main([*arguments, "gradio", str(mine)]) == 2
    assert "does not pin gradio; add gradio==VERSION" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.slow
def test_the_gradio_space_is_pushed_and_answers(hub, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    result = push(hub, tmp_path / "home", FOLDER, "--space_sdk", "gradio")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "space"
    for name, content in hub.files("me/demo", kind="space").items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert not (folder / "Dockerfile").exists() and list(folder.glob("*.whl")) == []
    # The package beside app.py is what runs, not the checkout's.
    (folder / "hf_sam_adapt/demo/page.py").open("a").write('\nTITLE = "Adapt SAM, the twin"\n')
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment |= {"GRADIO_SERVER_PORT": str(port), "SPACE_ID": "me/demo", "HF_HOME": str(tmp_path / "hf")}
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process, 180)
            with urlopen(f"http://127.0.0.1:{port}", timeout=5) as page:
                assert "Adapt SAM, the twin" in page.read().decode()
            image = tmp_path / "radar.png"
            Image.fromarray(draw_sample("speckle", "test", 20)[0]).save(image)
            client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
            handed = gradio_client.handle_file(image)
            mask, _, _ = client.predict(handed, "radar-fields", [], None, "", api_name="/segment")
            assert np.array(Image.open(mask)).any()
        finally:
            process.terminate()


def docker_steps():
    """The commands of the Dockerfile that do not need Docker: what RUN installs, and CMD."""
    text = (FOLDER / "Dockerfile").read_text()
    (install,) = re.findall(r"^RUN (pip install .*)$", text, re.MULTILINE)
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert re.search(r"^COPY .* \. \.$", text, re.MULTILINE)  # the whole folder, the wheel in it
    return shlex.split(install), json.loads(command)


@pytest.mark.slow
def test_the_command_answers_within_a_minute(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "hf_sam_adapt.cli", "demo", "--server_port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert wait_for(f"http://127.0.0.1:{port}", process, 120) < 60
            second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        finally:
            process.terminate()
    assert second.returncode == 2
    assert f"server_port: {port} is taken" in second.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was fetched or left behind


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_pushed_space_is_installed_and_answers(hub, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    result = push(hub, tmp_path / "home")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "space"
    folder.mkdir()
    for name, content in hub.files("me/demo", kind="space").items():
        (folder / name).write_bytes(content)

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv/bin"
    (pip, *install), (python, *serve) = docker_steps()
    done = subprocess.run([programs / pip, *install], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment |= {"GRADIO_SERVER_PORT": str(port), "SPACE_ID": "me/demo", "HF_HOME": str(tmp_path / "hf")}
    image = tmp_path / "radar.png"
    Image.fromarray(draw_sample("speckle", "test", 20)[0]).save(image)
    with subprocess.Popen(
        [programs / python, *serve],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process, 180)
            client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
            mask, _, about = client.predict(
                gradio_client.handle_file(image), "radar-fields", [], None, "", api_name="/segment"
            )
            with pytest.raises(gradio_client.exceptions.AppError, match="folders cannot be named here"):
                client.predict(gradio_client.handle_file(image), str(folder), [], None, "", api_name="/segment")
        finally:
            process.terminate()
    (record,) = predict(
        [str(image)], str(built_in_folder() / "radar-fields"), output_dir=tmp_path / "out", progress=False
    )
    assert np.array_equal(np.array(Image.open(mask)), np.array(Image.open(tmp_path / "out" / record["mask"])))
    assert about["foreground"] == pytest.approx(record["foreground"])
