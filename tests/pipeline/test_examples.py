"""The two suites of docs/suites.yaml that start from weights, through every stage on small data, export among them."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import photographs
import pytest
import torch
import yaml
from conftest import ROOT
from served import address, serving

from stages import distill, evaluate, export, fetch, fetch_weights, tabulate, train_teacher
from tripletkd.files import read_yaml
from tripletkd.pipeline.arguments import Options
from tripletkd.pipeline.stage import open_stage

SIDES = {"imagenet_resnet34_resnet18": 64, "cifar10_second_version": 32}
METHODS = {"imagenet_resnet34_resnet18": ["scratch", "kd", "dkd"], "cifar10_second_version": ["scratch", "kd_triplet"]}
CLASSES = (3, 400)  # of ImageNet's, for circles and squares


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """A file as torchvision's, at an address that the test has in its place."""
    from torchvision.models import ResNet34_Weights, resnet34

    torch.manual_seed(0)
    torch.save(resnet34(num_classes=1000).state_dict(), "resnet34.pth", _use_new_zipfile_serialization=False)
    content = Path("resnet34.pth").read_bytes()
    with serving() as server:
        server.files["/resnet34.pth"] = content
        monkeypatch.setattr(ResNet34_Weights.IMAGENET1K_V1.value, "url", f"{address(server)}resnet34.pth")
        yield content


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose params.yaml has the examples, with ninety photographs."""
    params, examples = (read_yaml(ROOT / name) for name in ("params.yaml", "docs/suites.yaml"))
    params["suites"] |= examples["suites"]
    for name, block in examples["methods"].items():
        params["methods"][name] |= block
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "tripletkd/published", tmp_path / "tripletkd/published")
    photographs.write(tmp_path / "imagenet", 60, 30)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(stage: ModuleType, words: list[str]) -> None:
    name = stage.__name__.removeprefix("stages.")
    stage.main(open_stage(name, words, options=Options(quiet=True), allow_teacher=True))


@pytest.mark.smoke
@pytest.mark.parametrize("suite", SIDES)
def test_an_example_suite_goes_through_every_stage(suite: str, weights: bytes) -> None:
    key, side, methods = f"suites.{suite}", SIDES[suite], METHODS[suite]
    short = [
        f"suite={suite}",
        f"{key}.seeds=[11]",
        f"{key}.recipe={{epochs: 1, batch_size: 20, schedule: {{decay_epochs: []}}}}",
        f"{key}.evaluate_every=1",
        f"{key}.teacher_floor=0",
        f"{key}.teacher.weights.sha256={hashlib.sha256(weights).hexdigest()}",
        f"run.methods=[{','.join(methods)}]",
        "run.ablations=[]",
        "claims=[]",
    ]
    if suite.startswith("imagenet"):
        short += [
            f"{key}.inputs.size={side}",
            f"{key}.inputs.test.resize={side + 8}",
            f"{key}.data.short_side={side + 8}",
        ]
        short += [f"+{key}.teacher.weights.classes={list(CLASSES)}"]
    else:
        short += [f"{key}.data={{source: folder, path: imagenet, name: null, image_size: {side}}}"]
    for stage in (fetch, fetch_weights, train_teacher):
        run(stage, short)
    for method in methods:
        for stage in (distill, evaluate, export):
            run(stage, [*short, f"method={method}"])
    run(export, [*short, "method=teacher"])
    run(tabulate, short)
    rows = json.loads(Path(f"results/{suite}/table.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["teacher", *methods]
    image = np.zeros((1, side + 9, side, 3) if suite.startswith("imagenet") else (1, side, side, 3), dtype=np.uint8)
    for method in ["teacher", *methods]:
        model = onnxruntime.InferenceSession(f"exports/{suite}/{method}/model.onnx")
        [probabilities] = model.run(["probabilities"], {model.get_inputs()[0].name: image})
        assert probabilities.shape == (1, len(CLASSES)) and probabilities.sum() == pytest.approx(1, abs=1e-5)
