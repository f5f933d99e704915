"""Tests of the configuration as objects: training/schema.py, and digest, differences and file of config.py."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from training.config import (
    build,
    config_digest,
    differences,
    parse,
    to_dict,
    write_config,
)
from training.model import GPTConfig
from training.optimizer import OPTIMIZERS
from training.scheduler import SHAPES
from training.schema import (
    OPTIMIZER_NAMES,
    SCHEDULER_NAMES,
    ConfigError,
    DPOConfig,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainerConfig,
)

ROOT = Path(__file__).resolve().parents[2]


def test_names_are_those_that_the_package_knows():
    assert set(OPTIMIZER_NAMES) == set(OPTIMIZERS)
    assert set(SCHEDULER_NAMES) == {*SHAPES, "onecycle"}


@pytest.mark.parametrize("changes", [{}, {"n_head": 5}, {"n_head": 32}, {"n_layer": 0}, {"dropout": 1.0}])
def test_model_section_is_accepted_and_refused_as_the_model_does(changes):
    def message(config_class):
        try:
            values = {spec.name: getattr(ModelConfig(), spec.name) for spec in fields(ModelConfig)}
            config_class(**{**values, **changes})
        except ValueError as error:
            return str(error).replace("an integer >=", ">=")
        return "accepted"

    assert message(ModelConfig) == message(GPTConfig)


def test_sections_refuse_wrong_types_from_python_too():
    with pytest.raises(ConfigError, match="lr must be a number, got 'fast'"):
        OptimizerConfig(lr="fast")
    with pytest.raises(ConfigError, match="threads must be an integer, got True"):
        TrainerConfig(threads=True)
    with pytest.raises(FrozenInstanceError):
        PretrainConfig().optimizer.lr = 1.0


def test_warmup_is_a_twentieth_of_the_run_unless_given():
    assert PretrainConfig().scheduler.warmup_steps == 50
    assert PretrainConfig(trainer=TrainerConfig(max_steps=10)).scheduler.warmup_steps == 0


def test_digest_depends_on_what_decides_the_numbers_and_on_nothing_else():
    base = PretrainConfig()
    digests = {config_digest(base)}
    for name, value in {"lr": 1.0, "seed": 1, "max_steps": 999, "batch_size": 1, "n_head": 2}.items():
        digests.add(config_digest(build(PretrainConfig, {name: value})))
    assert len(digests) == 6
    elsewhere = {"output_dir": "x", "resume": "auto", "use_wandb": True, "device": "cpu", "threads": 2}
    assert config_digest(build(PretrainConfig, elsewhere)) == config_digest(base)
    whole, real = (replace(base, optimizer=OptimizerConfig(lr=lr)) for lr in (1, 1.0))
    assert config_digest(whole) == config_digest(real)
    same = replace(base, optimizer=OptimizerConfig(optimizer="AdamW"), logger=LoggerConfig(True))
    assert config_digest(same) == config_digest(base)


def test_digest_is_the_same_in_another_process():
    code = "from training.config import *; print(config_digest(parse('dpo', ['--lr', '1'])))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert out.stdout.strip() == config_digest(parse("dpo", ["--lr", "1e0"]))


def test_differences_name_what_changed_the_numbers():
    old = {**to_dict(PretrainConfig()), "lr": 0.1, "output_dir": "elsewhere", "of_a_newer_version": 1}
    del old["seed"]
    assert differences(old, PretrainConfig()) == ["lr: 0.1 → 0.005"]
    assert differences(to_dict(PretrainConfig()), PretrainConfig()) == []


def test_written_config_is_read_back_as_the_same_run(tmp_path):
    argv = ["--lr", "1e-5", "--data", "1: [é]", "--max_grad_norm", "null", "--use_amp", "--resume", "auto"]
    config = parse("dpo", argv)
    path = write_config(config, tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "config.yaml"
    again = parse("dpo", ["--config", str(path)])
    assert again == replace(config, trainer=replace(config.trainer, resume=None))
    assert config_digest(again) in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]


def test_config_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"^Cannot write to .*file: File exists; choose another --output_dir\.$"
    ):
        write_config(PretrainConfig(), tmp_path / "file")


def test_dict_is_plain_values_that_a_checkpoint_takes(tmp_path):
    import torch

    torch.save(to_dict(DPOConfig()), tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == to_dict(DPOConfig())
