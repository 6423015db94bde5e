"""Files, bases and overrides become a checked config, or one line that says what is wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from video_gn.config import Config, differences, load_config, parse_config, to_yaml
from video_gn.errors import UserError

RULE = settings(max_examples=50, deadline=None)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "exp.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message(path: Path, *overrides: str) -> str:
    """The one line of an error."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert "\r" not in text
    return text


def test_defaults_are_the_papers(write: Write) -> None:
    """Table 8's first row and the baseline's recipe, worked out in the facts: none may change unnoticed."""
    config = load_config(write("{}", "gn_8x32.yaml"))
    assert config.output_dir == "runs/gn_8x32"
    model = config.model
    assert (model.arch, model.blocks, model.width, model.temporal, model.stem) == ("resnet50", None, 64, "i3d", "dense")
    assert (model.norm, model.groups, model.channels_per_group) == ("gn", 32, None)
    assert (model.num_classes, model.dropout) == (400, 0.5)
    data = config.data
    assert (data.frames, data.stride, data.crop, data.short_side, data.flip) == (32, 2, 224, (256, 320), 0.5)
    assert [value * 255 for value in data.mean] == pytest.approx([114.75] * 3)
    assert [value * 255 for value in data.std] == pytest.approx([57.375] * 3)
    optim = config.optim
    assert (optim.lr, optim.reference_batch, optim.momentum, optim.nesterov) == (0.01, 64, 0.9, True)
    assert (optim.weight_decay, optim.norm_weight_decay, optim.decay) == (1e-4, 0, 0.1)
    assert optim.milestones == (41, 82)  # 150k and 300k steps of 64 clips of 234,643 videos: 40.9 and 81.8 epochs
    assert config.train.epochs == 109  # 400k steps
    assert (config.train.clips_per_gpu, config.train.global_batch) == (8, None)
    assert config.train.precise_bn_batches == 200
    test = config.test
    assert (test.views, test.clips, test.clip_starts, test.short_side) == ("full", 10, "spread", 256)


def test_a_file_says_what_differs(write: Write) -> None:
    default = load_config(write("{}"))
    text = "seed: 3\nmodel: {norm: bn, blocks: [1, 1, 1, 1]}\ndata:\n  root: /videos # with a comment\n  frames: 64"
    changed = list(differences(default, load_config(write(text))))
    assert changed == [
        ("seed", 0, 3),
        ("model.blocks", None, (1, 1, 1, 1)),
        ("model.norm", "gn", "bn"),
        ("data.root", ".", "/videos"),
        ("data.frames", 32, 64),
    ]


@pytest.mark.parametrize(
    ("name", "folder"),
    [("exp.yaml", "runs/exp"), ("a b.yml", "runs/a b"), ("v1.2.yaml", "runs/v1.2"), ("größe.yaml", "runs/größe")],
)
def test_the_runs_folder_is_named_after_the_file(write: Write, name: str, folder: str) -> None:
    path = write("seed: 1", name)
    assert load_config(path).output_dir == folder
    assert load_config(str(path)).output_dir == folder
    assert load_config(path, ["output_dir=elsewhere"]).output_dir == "elsewhere"
    assert load_config(write("output_dir: here", name)).output_dir == "here"


def test_the_base_names_no_folder_for_the_run(write: Write) -> None:
    write("seed: 1", "base.yaml")
    assert load_config(write("base: base.yaml", "exp.yaml")).output_dir == "runs/exp"


def test_a_base_is_overridden_value_by_value(write: Write, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write("seed: 1\nmodel: {norm: bn, width: 32}\noptim: {milestones: [1, 2, 3]}\ntrain: {epochs: 7}", "base.yaml")
    path = write("base: ../base.yaml\nmodel: {norm: ln}\noptim: {milestones: [5]}\ndata: {frames: 8}", "sub/exp.yaml")
    config = load_config(path, ["train.epochs=9"])
    assert (config.model.norm, config.model.width) == ("ln", 32)  # sections merge
    assert config.optim.milestones == (5,)  # lists do not
    assert (config.seed, config.train.epochs, config.data.frames) == (1, 9, 8)


def test_a_base_has_no_base(write: Write) -> None:
    write("seed: 1", "root.yaml")
    write("base: root.yaml", "middle.yaml")
    assert "a base cannot have a base (root.yaml)" in message(write("base: middle.yaml"))
    assert "a base cannot have a base" in message(write("base: self.yaml", "self.yaml"))


def test_a_bad_base_is_named(write: Write, tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in message(write("base: none.yaml"))
    write("model: [", "bad.yaml")
    assert str(tmp_path / "bad.yaml") in message(write("base: bad.yaml"))
    write("- 1", "list.yaml")
    assert "mapping of sections" in message(write("base: list.yaml"))


def test_an_absolute_base(write: Write) -> None:
    base = write("seed: 5", "base.yaml")
    assert load_config(write(f"base: {base}")).seed == 5


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),  # YAML 1.1 takes this for a string
        ("optim.lr=.5", "optim.lr", 0.5),
        ("optim.weight_decay=0", "optim.weight_decay", 0.0),
        ("seed=12", "seed", 12),
        ("data.short_side=[300, 340]", "data.short_side", (300, 340)),
        ("data.mean=[0, 0.5, 1e-2]", "data.mean", (0, 0.5, 0.01)),
        ("optim.milestones=[]", "optim.milestones", ()),
        ("model.blocks=[1,2,3,4]", "model.blocks", (1, 2, 3, 4)),
        ("model.blocks=null", "model.blocks", None),
        ("train.global_batch=", "train.global_batch", None),
        ("train.channels_last=false", "train.channels_last", False),
        ("train.channels_last=true", "train.channels_last", True),
        ("train.channels_last=auto", "train.channels_last", "auto"),
        ("train.cuda_graph=true", "train.cuda_graph", True),
        ("optim.nesterov=true", "optim.nesterov", True),
        ("model.norm=none", "model.norm", "none"),  # not null
        ("data.root=/a b/c=d", "data.root", "/a b/c=d"),
        ("data.root='2024'", "data.root", "2024"),
        ("data.root=Größe", "data.root", "Größe"),
        ("model={norm: bn, dropout: 0}", "model.norm", "bn"),
    ],
)
def test_overrides_of_each_type(write: Write, override: str, place: str, value: Any) -> None:
    path = write("model: {blocks: [3, 3, 3, 3]}\ntrain: {global_batch: 16, channels_last: true}")
    got: Any = load_config(path, [override])
    for name in place.split("."):
        got = getattr(got, name)
    assert got == value
    assert type(got) is type(value)


def test_later_overrides_win_and_are_merged(write: Write) -> None:
    config = load_config(write("model: {width: 8}"), ["seed=1", "model={norm: bn}", "seed=2", "model.groups=4"])
    assert (config.seed, config.model.norm, config.model.groups, config.model.width) == (2, "bn", 4, 8)


@pytest.mark.parametrize("override", ["seed", "=3", "", "seed:3"])
def test_an_override_is_key_and_value(write: Write, override: str) -> None:
    text = message(write("{}"), override)
    assert repr(override) in text
    assert "key=value" in text


@pytest.mark.parametrize(
    "override", ["seed=[", "seed={a", "seed='", "seed=a: b: c", "seed=%", "seed=\0", "model={[1]: 2}"]
)
def test_an_override_that_is_no_yaml(write: Write, override: str) -> None:
    assert repr(override) in message(write("{}"), override)


@pytest.mark.parametrize(
    ("text", "place", "suggestion"),
    [
        ("model: {nrom: gn}", "model.nrom", "'norm'"),
        ("frames: 32", "frames", "'data.frames'"),  # right key, no section
        ("data: {milestones: [3]}", "data.milestones", "'optim.milestones'"),  # right key, wrong section
        ("clips_per_gpu: 4", "clips_per_gpu", "'train.clips_per_gpu'"),
        ("modle: {norm: gn}", "modle", "'model'"),
        ("train: {epoch: 3}", "train.epoch", "'epochs'"),
        ("optim: {qqq: 3}", "optim.qqq", "valid keys: name, lr, reference_batch, momentum"),
        ("qqq: 3", "qqq", "valid keys: output_dir, seed"),
        ("model..norm: bn", "model..norm", "unknown key"),  # dots are for the command line
    ],
)
def test_an_unknown_key_suggests_the_nearest(write: Write, text: str, place: str, suggestion: str) -> None:
    error = message(write(text))
    assert f"{place}: unknown key" in error
    assert suggestion in error
    assert "exp.yaml" in error


def test_unknown_keys_of_overrides_and_bases_too(write: Write) -> None:
    write("model: {nrom: gn}", "base.yaml")
    assert "did you mean 'norm'" in message(write("base: base.yaml"))
    assert "did you mean 'norm'" in message(write("{}"), "model.nrom=bn")
    assert "did you mean 'data.frames'" in message(write("{}"), "frames=8")
    assert "base: unknown key" in message(write("{}"), "base=base.yaml")


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("seed: 1\nseed: 1", "seed", 1),
        ("seed: 1\nmodel:\n  norm: gn\n  width: 8\n  norm: bn", "norm", 3),
        ("model: {norm: gn, 'norm': bn}", "norm", 1),
        ("model: {norm: gn}\nmodel: {width: 8}", "model", 1),
    ],
)
def test_a_key_written_twice_is_refused(write: Write, text: str, key: str, line: int) -> None:
    error = message(write(text))
    assert f"key '{key}' is written twice" in error
    assert f"line {line}," in error


def test_the_same_key_in_two_sections_is_none_twice(write: Write) -> None:
    config = load_config(write("data: {max_unreadable: 1, short_side: [256, 256]}\ntest: {max_unreadable: 2}"))
    assert (config.data.max_unreadable, config.test.max_unreadable) == (1, 2)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seed", "-1"),
        ("seed", "4294967296"),
        ("seed", "1.5"),
        ("seed", "abc"),
        ("device", "tpu"),
        ("output_dir", "null"),
        ("output_dir", "3"),
        ("model", "null"),
        ("model", "3"),
        ("model", "[]"),
        ("model.blocks", "[1, 1, 1]"),
        ("model.blocks", "[1, 1, 1, 1, 1]"),
        ("model.blocks", "[1, 1, 1, 0]"),
        ("model.width", "0"),
        ("model.norm", "GN"),
        ("model.norm", "null"),
        ("model.groups", "0"),
        ("model.channels_per_group", "0"),
        ("model.num_classes", "0"),
        ("model.dropout", "1"),
        ("model.dropout", "-0.1"),
        ("data.root", "null"),
        ("data.frames", "0"),
        ("data.frames", "8.5"),
        ("data.stride", "-1"),
        ("data.clips_per_video", "0"),
        ("data.clips_per_video", "1.5"),
        ("data.crop", "0"),
        ("data.short_side", "256"),
        ("data.short_side", "[256]"),
        ("data.short_side", "[256, 288, 320]"),
        ("data.flip", "1.01"),
        ("data.flip", ".nan"),
        ("data.mean", "[0.4, 0.4]"),
        ("data.mean", "[.inf, 0, 0]"),
        ("data.std", "[0.2, 0, 0.2]"),
        ("data.decoder", "opencv"),
        ("data.workers", "-1"),
        ("data.max_unreadable", "-1"),
        ("optim.lr", "0"),
        ("optim.lr", "-0.1"),
        ("optim.lr", ".inf"),
        ("optim.lr", ".nan"),
        ("optim.lr", "fast"),
        ("optim.lr", "[0.1]"),
        ("optim.momentum", "1"),
        ("optim.nesterov", "perhaps"),
        ("optim.weight_decay", "-1e-4"),
        ("optim.milestones", "40"),
        ("optim.milestones", "[0, 40]"),
        ("optim.milestones", "[40, .inf]"),
        ("optim.decay", "0"),
        ("optim.warmup_epochs", "-1"),
        ("optim.warmup_start", "1.1"),
        ("train.epochs", "0"),
        ("train.clips_per_gpu", "0"),
        ("train.global_batch", "0"),
        ("train.precision", "fp8"),
        ("train.channels_last", "2"),
        ("train.channels_last", "perhaps"),
        ("train.eval_every", "0"),
        ("train.log_every", "0"),
        ("train.precise_bn_batches", "-1"),
        ("test.views", "one"),
        ("test.clips", "0"),
        ("test.clip_starts", "linspace"),
        ("test.short_side", "0"),
        ("test.clips_per_batch", "0"),
        ("train.max_bad_steps", "-1"),
        ("checkpoint.every_epochs", "0"),
        ("checkpoint.every_minutes", "0"),
        ("checkpoint.keep", "1"),
    ],
)
def test_a_value_out_of_its_type_or_range(write: Write, place: str, value: str) -> None:
    """The error names the place, by override and in the file."""
    path = write("{}")
    assert f"exp.yaml: {place}" in message(path, f"{place}={value}")
    *sections, key = place.split(".")
    in_file = "".join(f"{section}: " + "{" for section in sections) + f"{key}: {value}" + "}" * len(sections)
    assert f"exp.yaml: {place}" in message(write(in_file))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seed", "4294967295"),
        ("model.dropout", "0"),
        ("data.stride", "0"),
        ("data.workers", "0"),
        ("data.flip", "0"),
        ("data.flip", "1"),
        ("data.short_side", "[224, 224]"),
        ("data.frames", "8"),  # the least of the dense stem
        ("optim.decay", "1"),
        ("optim.warmup_start", "1"),
        ("optim.milestones", "[40, 40]"),
        ("optim.milestones", "[0.5, 1.5]"),
        ("train.precise_bn_batches", "0"),
        ("test.short_side", "224"),
        ("train.epochs", "1"),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(write: Write, place: str, value: str) -> None:
    load_config(write("{}"), [f"{place}={value}"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.short_side=[320, 256]"], ["data:", "[320, 256]", "smallest, largest"]),
        (["data.crop=257", "test.short_side=400"], ["data:", "crop 257", "256"]),
        (["optim.milestones=[82, 41]"], ["optim:", "[82.0, 41.0]", "must rise"]),
        (["optim.momentum=0"], ["optim:", "nesterov: false"]),
        (["test.views=center", "test.short_side=223"], ["test.short_side 223", "data.crop 224"]),
        (["data.clips_per_video=3"], ["data.clips_per_video 3", "train.clips_per_gpu 8", "change one"]),
        (["data.clips_per_video=16"], ["data.clips_per_video 16", "train.clips_per_gpu 8", "change one"]),
        (
            ["data.kind=images", "data.frames=1", "data.clips_per_video=2"],
            ["data:", "an image is one clip", "clips_per_video is 2", "set clips_per_video: 1"],
        ),
    ],
)
def test_values_that_do_not_fit_each_other(write: Write, overrides: list[str], parts: list[str]) -> None:
    error = message(write("{}"), *overrides)
    assert all(part in error for part in parts), error


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.crop=256"],
        ["optim.momentum=0", "optim.nesterov=false"],
        ["data.frames=2", "model.stem=sparse"],
        ["data.frames=2", "model.stem=slowfast"],
        ["data.crop=64", "data.short_side=[64, 64]", "test.short_side=64"],
        ["data.clips_per_video=8"],
        ["data.clips_per_video=3", "train.clips_per_gpu=6"],
    ],
)
def test_values_that_just_fit(write: Write, overrides: list[str]) -> None:
    load_config(write("{}"), overrides)


def test_all_problems_are_told_at_once(write: Write) -> None:
    error = message(write("seed: -1\nmodel: {nrom: gn, width: 0}"), "optim.lr=x")
    assert all(place in error for place in ("seed:", "model.nrom:", "model.width:", "optim.lr:"))


def test_a_long_value_is_cut(write: Write) -> None:
    assert len(message(write("seed: " + "x" * 5000))) < 400


def test_a_config_is_frozen(write: Write) -> None:
    config = load_config(write("{}"))
    for section, name in ((config, "seed"), (config.model, "width"), (config.data, "frames"), (config.test, "clips")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 8)
    assert config.seed == 0


@pytest.mark.parametrize("text", ["", "# nothing", "- a\n- b", "just text", "3", "null", "1: 2", "[]"])
def test_a_config_is_a_mapping(write: Write, text: str) -> None:
    assert "mapping of sections" in message(write(text))


@pytest.mark.parametrize(
    "text",
    [
        "model: {norm: gn",
        "\tseed: 1",
        "seed: 'a",
        "a: b: c",
        "? [1]\n: 2",
        "? {a: 1}\n: 2",
        "seed: 1\n--- \nseed: 2",
        "seed: *unknown",
        "seed: !python/name:os.system x",
        "seed: " + "[" * 3000,
        "seed: \x01",
    ],
)
def test_a_file_that_is_no_yaml(write: Write, text: str) -> None:
    assert "exp.yaml: not valid YAML" in message(write(text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "none.yaml: cannot read the config (No such file" in message(tmp_path / "none.yaml")
    assert "cannot read the config" in message(tmp_path)  # a folder
    (tmp_path / "latin.yaml").write_bytes("data: {root: Größe}".encode("latin-1"))
    assert "not UTF-8" in message(tmp_path / "latin.yaml")
    (tmp_path / "video.yaml").write_bytes(bytes(range(256)))
    assert "not UTF-8" in message(tmp_path / "video.yaml")


def test_anchors_and_a_byte_order_mark_are_read(write: Write) -> None:
    config = load_config(write("\ufeffdata: {short_side: &s [230, 300]}\noptim: {milestones: *s}"))
    assert config.optim.milestones == config.data.short_side == (230, 300)


def test_differences(write: Write) -> None:
    path = write("{}")
    one = load_config(path, ["output_dir=x"])
    assert list(differences(one, load_config(path, ["output_dir=x"]))) == []
    other = load_config(path, ["output_dir=y", "optim.lr=0.02", "data.short_side=[256, 256]", "model.blocks=[1,1,1,1]"])
    assert list(differences(one, other)) == [
        ("output_dir", "x", "y"),
        ("model.blocks", None, (1, 1, 1, 1)),
        ("data.short_side", (256, 320), (256, 256)),
        ("optim.lr", 0.01, 0.02),
    ]
    assert list(differences(one.optim, other.optim)) == [("lr", 0.01, 0.02)]
    assert list(differences(one.optim, other.optim, "optim.")) == [("optim.lr", 0.01, 0.02)]


def test_a_parsed_tree_is_left_as_it_was() -> None:
    """A checkpoint's config is read with overrides, and may be read again."""
    tree = {"output_dir": "x", "model": {"norm": "bn"}, "data": {"frames": 16}}
    config = parse_config(tree, ["model.norm=gn", "data.stride=4", "seed=1"])
    assert (config.model.norm, config.data.stride, config.data.frames) == ("gn", 4, 16)
    assert tree == {"output_dir": "x", "model": {"norm": "bn"}, "data": {"frames": 16}}


def test_a_parsed_tree_names_its_source() -> None:
    for tree in ({"output_dir": "x", "modle": {}}, {"output_dir": "x", "model": 3}, {}):
        with pytest.raises(UserError, match=r"^last\.pt: "):
            parse_config(tree, source="last.pt")


positive = st.integers(1, 10**6)
fraction = st.floats(0, 1)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85~"), max_size=12)
sections: dict[str, dict[str, st.SearchStrategy]] = {
    "model": {
        "arch": st.sampled_from(["resnet50", "resnet101"]),
        "blocks": st.none() | st.lists(positive, min_size=4, max_size=4),
        "norm": st.sampled_from(["bn", "gn", "ln", "in", "none"]),
        "channels_per_group": st.none() | positive,
        "dropout": st.floats(0, 1, exclude_max=True),
    },
    "data": {
        "root": text,
        "class_names": st.none() | text,
        "frames": st.integers(8, 999),
        "stride": st.integers(0, 9),
        "short_side": st.lists(st.integers(256, 999), min_size=2, max_size=2).map(sorted),
        "flip": fraction,
        "mean": st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3),
    },
    "optim": {
        "lr": st.floats(1e-300, 1e300),
        "nesterov": st.booleans(),
        "weight_decay": st.floats(0, 1),
        "milestones": st.lists(st.floats(1e-3, 1e6), max_size=4).map(sorted),
    },
    "train": {"epochs": positive, "global_batch": st.none() | positive, "precision": st.sampled_from(["fp32", "bf16"])},
}
trees = st.fixed_dictionaries(
    {"output_dir": text},
    optional={name: st.fixed_dictionaries({}, optional=fields) for name, fields in sections.items()}
    | {"seed": st.integers(0, 2**32 - 1)},
)


def loaded(data: bytes | str, overrides: tuple[str, ...] = ()) -> Config:
    """`load_config` of a file with this content; hypothesis does not mix with tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exp.yaml"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return load_config(path, overrides)


@given(trees)
@RULE
def test_written_as_yaml_and_read_again_it_is_the_same(tree: dict) -> None:
    config = loaded(yaml.safe_dump(tree))
    for name, value in tree.items():  # first: nothing was lost on the way in
        for key, wanted in value.items() if isinstance(value, dict) else ():
            got = getattr(getattr(config, name), key)
            assert got == (tuple(wanted) if isinstance(wanted, list) else wanted)
    written = to_yaml(config)
    again = loaded(written)
    assert again == config
    assert list(differences(config, again)) == []
    spelled = yaml.safe_load(written)
    assert list(spelled) == list(Config.model_fields)
    assert all(set(spelled[name]) >= set(fields) for name, fields in sections.items())  # every value


def test_the_home_folder_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    data = {name: f"~/{name}" for name in ("root", "train_list", "val_list", "test_list", "class_names", "quarantine")}
    config = parse_config({"output_dir": "~/runs/x", "data": data}, ["model.init_from=~/a~b.pt"])
    assert config.output_dir == "/home/me/runs/x" and config.model.init_from == "/home/me/a~b.pt"
    assert {name: getattr(config.data, name) for name in data} == {name: f"/home/me/{name}" for name in data}
    assert loaded(to_yaml(config)) == config
    named = parse_config(
        {"output_dir": "x", "data": {"root": "s3://a/~b"}, "model": {"init_from": "torchvision:resnet50"}}
    )
    assert (named.data.root, named.model.init_from) == ("s3://a/~b", "torchvision:resnet50")


def test_a_next_line_character_in_a_path_is_written_and_read() -> None:
    config = parse_config({"output_dir": "a\x85b"})
    assert loaded(to_yaml(config)) == config


def fails_well(data: bytes | str, overrides: tuple[str, ...] = ()) -> None:
    """A Config, or a UserError of one line that can be printed."""
    try:
        assert isinstance(loaded(data, overrides), Config)
    except UserError as error:
        assert "\n" not in str(error)
        assert "\r" not in str(error)
        str(error).encode()


keys = st.sampled_from(
    ["base", "seed", "model", "data", "optim", "norm", "frames", "short_side", "milestones", "lr", "x"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text | st.dates() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | st.integers(0, 3), inner, max_size=4),
    max_leaves=8,
)
tokens = ["model:", "data:", "seed: ", "norm: ", "lr: ", "\n", "\n  ", " ", "- ", "[", "]", "{", "}", ",", ": ", "? "]
tokens += [
    "&a ",
    "*a",
    "'",
    '"',
    "#",
    "1",
    "1e-4",
    ".nan",
    "~",
    "|",
    ">",
    "---",
    "%",
    "@",
    "!x ",
    "gn",
    "<<: ",
    "true",
    "\t",
]
soup = st.lists(st.sampled_from(tokens), max_size=14).map("".join)
printable = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(printable | soup | st.binary(max_size=40) | values.map(yaml.safe_dump))
@settings(max_examples=150, deadline=None)
def test_any_file_gives_a_config_or_a_user_error(data: bytes | str) -> None:
    fails_well(data)


@given(
    st.dictionaries(st.sampled_from(["model", "data", "optim", "train", "test", "seed", "base"]), values, min_size=1)
)
@settings(max_examples=100, deadline=None)
def test_any_values_of_known_sections_give_a_config_or_a_user_error(tree: dict) -> None:
    fails_well(yaml.safe_dump(tree))


@given(st.tuples(st.sampled_from(["seed=", "model.norm=", "data.short_side=", "model=", "..=", ""]), soup | printable))
@settings(max_examples=100, deadline=None)
def test_any_override_gives_a_config_or_a_user_error(parts: tuple[str, str]) -> None:
    fails_well("{}", ("".join(parts),))


FAULTS = {
    "a day that does not exist": "data: {root: 2024-13-45}",
    "a wrong bool": "optim: {nesterov: !!bool perhaps}",
    "a wrong int": "seed: !!int x",
    "a wrong timestamp": "seed: !!timestamp x",
    "hexadecimal without digits": "seed: 0x_",
    "an integer of 5,000 digits": "seed: " + "9" * 5000,
    "NUL in the base's name": 'base: "\\0"',
    "half a surrogate pair in the base's name": 'base: "\\ud800"',
    "a line break in a key": '"a\\nb": 1',
    "a line break in the base's name": 'base: "a\\nb"',
}


@pytest.mark.parametrize("data", FAULTS.values(), ids=FAULTS.keys())
def test_odd_files_give_a_user_error(data: str) -> None:
    fails_well(data)


@pytest.mark.parametrize(
    "override",
    [
        "data.root=2024-13-45",
        "optim.nesterov=!!bool perhaps",
        "seed=!!int x",
        "seed=0x_",
        "seed=" + "9" * 5000,
        "seed=" + "[" * 3000,
    ],
    ids=lambda override: override[:20],
)
def test_odd_overrides_give_a_user_error(override: str) -> None:
    fails_well("{}", (override,))


def test_a_key_written_twice_in_an_override_is_refused(write: Write) -> None:
    message(write("{}"), "model={norm: bn, norm: gn}")


@pytest.mark.parametrize("place", ["seed", "train.epochs", "optim.lr", "data.flip"])
def test_true_is_not_a_number(write: Write, place: str) -> None:
    message(write("{}"), f"{place}=true")


def test_the_exact_key_of_another_section_is_suggested_first(write: Write) -> None:
    assert "'test.clips'" in message(write("data: {clips: 3}"))  # not 'flip'
