"""Tests of the configuration: training/config.py, yaml_file.py and configs/*.yaml."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.config import (
    CONFIGS,
    options,
    parse,
    to_dict,
)
from training.schema import (
    DPOConfig,
    PretrainConfig,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def yaml_file(tmp_path):
    """yaml_file(text) -> the path of a file with it."""

    def write(text: str, name: str = "run.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def refusal(capsys, argv, command="pretrain") -> str:
    """What stands on stderr when argv is refused: one line, exit code 2, nothing on stdout."""
    with pytest.raises(SystemExit) as exit_:
        parse(command, argv)
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.rstrip("\n")


def test_defaults_are_those_of_the_classes_and_of_the_shipped_files():
    for command, config_class in CONFIGS.items():
        assert parse(command, []) == config_class()
        path = ROOT / "training" / "configs" / f"{command}.yaml"
        assert parse(command, ["--config", str(path)]) == config_class()
        text = path.read_text()
        missing = [name for name in to_dict(config_class(), "run", "place") if f"\n{name}: " not in text]
        assert not missing, "a shipped file shows every field"


@pytest.mark.parametrize("command", list(CONFIGS))
def test_every_field_can_be_set_by_flag_and_by_file(command, yaml_file):
    other = {
        int: 7,
        float: 0.25,
        str: "else",
        bool: None,
        "warmup_steps": 3,
        "optimizer": "sgd",
        "scheduler": "linear",
        "amp_dtype": "fp16",
        "n_head": 2,
        "n_embd": 32,
    }
    config = CONFIGS[command]()
    flat = to_dict(config)
    for _, spec, hint, default in options(type(config)):
        kind = hint if isinstance(hint, type) else hint.__args__[0]
        value = other.get(spec.name, other[kind])
        if kind is bool:
            value = not default
        text = str(value).lower() if kind is bool else str(value)
        want = {**flat, spec.name: value}
        if spec.name == "max_steps":
            want["warmup_steps"] = 0
        assert to_dict(parse(command, [f"--{spec.name}", text])) == want
        assert to_dict(parse(command, ["--config", yaml_file(f"{spec.name}: {text}")])) == want


def test_flags_of_before_keep_their_names():
    names = (
        "data output_dir device threads seed max_steps batch_size grad_accum_steps log_interval eval_interval "
        "val_fraction optimizer lr weight_decay max_grad_norm scheduler warmup_steps min_lr_ratio block_size n_layer "
        "n_head n_embd dropout"
    )
    assert set(names.split()) <= set(to_dict(PretrainConfig()))


def test_field_names_are_unique_across_the_sections():
    for config_class in CONFIGS.values():
        names = [spec.name for _, spec, _, _ in options(config_class)]
        assert len(names) == len(set(names))


def test_flag_wins_over_files_and_a_later_file_over_an_earlier_one_wherever_they_stand(yaml_file):
    first, second = yaml_file("lr: 1\nseed: 1\nthreads: 2", "a"), yaml_file("lr: 2\nseed: 2", "b")
    config = parse("pretrain", ["--lr", "3", "--config", first, f"--config={second}"])
    assert (config.optimizer.lr, config.trainer.seed, config.trainer.threads) == (3.0, 2, 2)


def test_number_without_a_point_is_a_number_in_a_file(yaml_file):
    """YAML 1.1 reads 1e-3 as text."""
    config = parse("pretrain", ["--config", yaml_file("lr: 1e-3\nweight_decay: 1")])
    assert config.optimizer.lr == 1e-3
    assert type(config.optimizer.weight_decay) is float


@pytest.mark.parametrize(
    ("argv", "want"), [(["--use_amp"], True), (["--use_amp=false"], False), (["--no_use_amp"], False)]
)
def test_switches_can_be_turned_on_and_off(argv, want, yaml_file):
    path = yaml_file(f"use_amp: {str(not want).lower()}")
    assert parse("pretrain", ["--config", path, *argv]).trainer.use_amp is want


def test_null_turns_clipping_off_and_text_null_is_no_path(yaml_file):
    config = parse(
        "pretrain", ["--max_grad_norm", "null", "--data", "null", "--config", yaml_file("patience: 3")]
    )
    assert (config.trainer.max_grad_norm, config.data.data, config.trainer.patience) == (None, None, 3)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("--max_step 3", "unknown flag --max_step: did you mean --max_steps?"),
        ("--output-dir x", "unknown flag --output-dir: did you mean --output_dir?"),
        ("--zzzz", "unknown flag --zzzz; see python -m training pretrain --help"),
        ("--config.lr 3", "unknown flag --config.lr; see python -m training pretrain --help"),
        ("--no_lr", "unknown flag --no_lr: did you mean --n_layer?"),
        ("--beta 1", "unknown flag --beta; see python -m training pretrain --help"),
        ("word", "unrecognized arguments: word"),
        ("--lr fast", "lr must be a number, got 'fast' (from --lr)"),
        ("--lr=fast", "lr must be a number, got 'fast' (from --lr)"),
        ("--lr nan", "lr must be a number, got 'nan' (from --lr)"),
        ("--lr .inf", "lr must be finite and >= 0, got inf (from --lr)"),
        ("--lr -1", "lr must be finite and >= 0, got -1.0 (from --lr)"),
        ("--lr", "--lr needs a value: a number"),
        ("--seed 1.5", "seed must be an integer, got '1.5' (from --seed)"),
        ("--seed true", "seed must be an integer, got 'true' (from --seed)"),
        ("--use_amp maybe", "use_amp must be true or false, got 'maybe' (from --use_amp)"),
        ("--batch_size 0", "batch_size must be >= 1, got 0 (from --batch_size)"),
        ("--max_grad_norm 0", "max_grad_norm must be finite and > 0, got 0.0 (from --max_grad_norm)"),
        ("--dropout 1", "dropout must be in [0, 1), got 1.0 (from --dropout)"),
        ("--val_fraction 0", "val_fraction must be in (0, 1), got 0.0 (from --val_fraction)"),
        ("--min_lr_ratio 2", "min_lr_ratio must be in [0, 1], got 2.0 (from --min_lr_ratio)"),
        ("--n_head 5", "n_embd must be divisible by n_head, got 96 and 5 (from --n_head)"),
        ("--n_head 32", "n_embd / n_head must be even, for rotary pairs, got 3 (from --n_head)"),
        ("--optimizer adanw", "unknown optimizer 'adanw': did you mean 'adamw'? (from --optimizer)"),
        ("--amp_dtype int8", "unknown amp_dtype 'int8': known are ['bf16', 'fp16'] (from --amp_dtype)"),
        (
            "--warmup_steps 4 --max_steps 3",
            "warmup_steps must be in [0, max_steps=3], got 4 (from --warmup_steps)",
        ),
        ("--config", "--config needs the path of a YAML file"),
        ("--config no.yaml", "cannot read the configuration no.yaml: No such file or directory"),
    ],
)
def test_bad_flag_is_one_line_with_flag_value_and_nearest_name(capsys, argv, sentence):
    assert refusal(capsys, argv.split()) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lrr: 3", "unknown key 'lrr' in {}: did you mean 'lr'?"),
        ("config: x", "unknown key 'config' in {}"),
        ("optimizer.lr: 3", "unknown key 'optimizer.lr' in {}: did you mean 'optimizer'?"),
        ("1: 2", "key 1 in {} is no name of a field"),
        ("? [a]\n: 3", "key [] in {} is no name of a field"),
        ("lr: 1\nseed: 1\nlr: 2", "key 'lr' is in {} twice, again in line 3"),
        ("lr: fast", "lr must be a number, got 'fast' (from {})"),
        ("lr: {a: 1}", "lr must be a number, got {{'a': 1}} (from {})"),
        ("lr: null", "lr must be a number, got null (from {})"),
        ("lr: .nan", "lr must be finite and >= 0, got nan (from {})"),
        ("seed: true", "seed must be an integer, got True (from {})"),
        ("log_interval: 5.0", "log_interval must be an integer, got 5.0 (from {})"),
        ("use_amp: 1", "use_amp must be true or false, got 1 (from {})"),
        ("data: 123", "data must be text or null, got 123 (from {})"),
        ("batch_size: 0", "batch_size must be >= 1, got 0 (from {})"),
        ("warmup_steps: 2000", "warmup_steps must be in [0, max_steps=1000], got 2000 (from {})"),
        ("lr: 'a", "{}, line 1: this is not YAML: found unexpected end of stream"),
        ("- lr", "{} must be a list of fields like 'lr: 0.003', got list"),
        (
            "!!python/object/apply:os.getcwd []",
            "{}, line 1: this is not YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.getcwd'",
        ),
    ],
)
def test_bad_file_is_one_line_with_file_value_and_nearest_name(capsys, yaml_file, text, sentence):
    path = yaml_file(text)
    assert refusal(capsys, ["--config", path]) == sentence.format(path)


def test_dpo_has_something_to_start_from_and_a_file_cannot_take_it_away(capsys, yaml_file):
    assert parse("dpo", []).start.init_from == "runs/sft/best_model.pt"
    path = yaml_file("init_from: null")
    assert parse("sft", ["--config", path]).start.init_from is None
    assert refusal(capsys, ["--config", path], "dpo") == f"init_from must be text, got null (from {path})"


def test_binary_file_is_one_line(capsys, tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe\0")
    assert (
        refusal(capsys, ["--config", str(tmp_path / "x")])
        == f"the configuration {tmp_path / 'x'} is not UTF-8 text"
    )


def test_value_that_a_flag_replaces_is_not_blamed_on_the_file(capsys, yaml_file):
    path = yaml_file("n_head: 4\nn_embd: 96")
    assert refusal(capsys, ["--config", path, "--n_head", "5"]).endswith("got 96 and 5 (from --n_head)")
    assert parse("pretrain", ["--config", yaml_file("warmup_steps: 2000"), "--max_steps", "4000"])


def test_help_lists_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("dpo", ["--lr", "fast", "--help"])
    assert exit_.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"--{name} " in out for name in to_dict(DPOConfig()))
    assert "the peak learning rate (type: float, default: 2e-05)" in out


def test_parsing_imports_no_torch_and_the_package_no_parser():
    code = (
        "import sys, training; assert 'jsonargparse' not in sys.modules and 'yaml' not in sys.modules\n"
        "from training.config import parse; parse('pretrain', ['--config', 'training/configs/pretrain.yaml'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_missing_parser_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit, match=r"^python -m training needs a package: pip install jsonargparse$"):
        parse("pretrain", [])
