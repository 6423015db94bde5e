"""The typed schema of a whole experiment, and how a YAML file becomes one.

A config file holds the sections below. It may name one other file by ``base:`` (relative to itself) whose values it
overrides; a base has no base of its own. ``a.b=c`` on the command line overrides both.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from video_gn.errors import UserError
from video_gn.norm import NORMS, NormOptions

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path; ~ at its start becomes the home folder."""


class Section(BaseModel):
    """Common rules: values cannot change after loading, unknown keys and infinities are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if not isinstance(value, bool) or name not in cls.model_fields:
                continue
            annotation = cls.model_fields[name].annotation
            if bool not in (annotation, *get_args(annotation)):
                raise ValueError(f"{name} is {str(value).lower()}, which stands for yes or no alone; give it a value")
        return values


class ModelConfig(Section):
    """The network. Defaults: the ResNet-50 I3D of the paper's section 4.3."""

    arch: str = "resnet50"
    """resnet50, resnet101, or vgg16 for images only: NETWORKS of video_gn/models."""
    blocks: tuple[Positive, Positive, Positive, Positive] | None = None
    """Blocks of res2 to res5 for a small net, in place of those of `arch`."""
    width: Positive = 64
    """Channels of the stem; a stage's output has 4, 8, 16, 32 times as many."""
    temporal: Literal["i3d", "c2d"] = "i3d"
    """`i3d`: inflated kernels (conv1 5x7x7, every other 1x1x1 becomes 3x1x1). `c2d`: all temporal kernels are 1."""
    stem: Literal["dense", "sparse", "slowfast"] = "dense"
    """`dense`: temporal stride 4 before res2 (32, 64 frames). `sparse`: 1 (8 frames). `slowfast`: as its zoo."""
    norm: Annotated[str, Field(json_schema_extra={"enum": [*NORMS]})] = "gn"
    """docs/norms.md says what each is. `frozen_bn` needs `init_from`."""
    groups: Positive = NormOptions.groups
    """GN: the number of groups G."""
    channels_per_group: Positive | None = NormOptions.channels_per_group
    """GN: channels of one group, instead of `groups`."""
    brn_r_max: Annotated[float, Field(ge=1)] = NormOptions.brn_r_max
    brn_d_max: NonNegative = NormOptions.brn_d_max
    brn_warmup: Annotated[int, Field(ge=0)] = NormOptions.brn_warmup
    """Batch Renorm: training forward passes as plain Batch Norm."""
    brn_ramp: Annotated[int, Field(ge=0)] = NormOptions.brn_ramp
    """Batch Renorm: training forward passes over which its bounds open after that."""
    init_from: UserPath | None = None
    """Weights to begin with: a file, or a name such as torchvision:resnet50 (docs/weights.md); 2D ones are inflated."""
    init_drop: tuple[str, ...] = ()
    """Patterns of keys of `init_from` to leave out, such as "*.running_*"."""
    num_classes: Positive = 400
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @field_validator("norm")
    @classmethod
    def _norm_is_known(cls, name: str) -> str:
        if name not in NORMS:  # not a Literal: the table may grow after this module was imported
            raise ValueError(f"{name!r:.60} is not known; choose one of {', '.join(NORMS)}")
        return name

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.norm == "frozen_bn" and self.init_from is None:
            raise ValueError("frozen_bn keeps the constants of a trained net; name it in model.init_from")
        return self


class ClassificationConfig(Section):
    """Options of task classification: one label per video."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training target that is spread over all classes."""


class MultilabelConfig(Section):
    """Options of task multilabel: any number of labels per video."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Score from which a label is predicted."""


class DataConfig(Section):
    """Where the videos or images are, and how clips are cut from them."""

    kind: Literal["videos", "images"] = "videos"
    """`images` trains the 2D net on an ImageFolder tree: `train_list` and `val_list` name its folders, frames is 1."""
    root: UserPath = "."
    """Folder that the entries of the lists are relative to, or a URL as s3://bucket/k400 (docs/object_stores.md)."""
    absolute_paths: bool = False
    """Entries of lists may be absolute paths or URLs, or lead out of `root` by `..`; else that is an error."""
    train_list: UserPath = "train.csv"
    """A list's path is tried as given, then under `root`."""
    val_list: UserPath = "val.csv"
    test_list: UserPath = "val.csv"
    class_names: UserPath | None = None
    """File with one class name a line (line number = label)."""
    frames: Positive = 32
    stride: Annotated[int, Field(ge=0)] = 2
    """Frames from one clip frame to the next, at native rate. 0 repeats one frame: the single-frame control."""
    clips_per_video: Positive = 1
    """Training clips from one decode of a video; must divide train.clips_per_gpu (docs/kinetics.md says when)."""
    crop: Annotated[int, Field(ge=32)] = 224
    """Side of the training crop, pixels."""
    short_side: tuple[Positive, Positive] = (256, 320)
    """Training scales the short side to a random integer of this range, ends included."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip of a training clip."""
    area: tuple[Fraction, Fraction] | None = None
    """Training crops a random share of the frame's area, aspect 3/4 to 4/3, in place of `short_side` and a crop."""
    color_jitter: Fraction = 0.0
    """Brightness, contrast and saturation times a random factor of 1 +- this, in random order."""
    lighting: NonNegative = 0.0
    """Standard deviation of a random shift along the principal colors of ImageNet (0.1 in fb.resnet.torch)."""
    rand_augment: tuple[Positive, Annotated[int, Field(ge=0, le=30)]] | None = None
    """RandAugment: [operations per clip, magnitude from 0 to 30], such as [2, 9]; not in validation."""
    random_erasing: Fraction = 0.0
    """Probability that a random rectangle of a training clip shows the mean color; not in validation."""
    mixup: NonNegative = 0.0
    """Average training clips of a micro-batch in pairs, by shares of Beta(this, this); 0: off (docs/recipes.md)."""
    cutmix: NonNegative = 0.0
    """Paste a rectangle of another clip of the micro-batch, of a share drawn alike; with mixup, each by even chance."""
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.225, 0.225, 0.225)
    """Of RGB in [0, 1]; the baseline's are 114.75 and 57.375 of 255."""
    decoder: Literal["auto", "torchcodec", "pyav", "decord"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 4
    """Decoding processes a rank; 0 decodes in the main process."""
    max_unreadable: Annotated[int, Field(ge=0)] = 10
    """More different unreadable training videos than this end the run."""
    quarantine: UserPath | None = None
    """Report of tools/prepare.py --check: its bad videos are left out of training and not scored (docs/bad_data.md)."""
    timeout: Annotated[float, Field(gt=0, le=2_000_000)] = 300
    """Seconds without a batch after which the workers are taken for hung."""

    @field_validator("rand_augment", mode="before")
    @classmethod
    def _rand_augment_is_a_pair(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, (list, tuple)) and len(value) == 2):
            raise ValueError(f"{value!r:.60} is not [operations, magnitude]; give such a pair as [2, 9], or null")
        return value

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if "::" in self.root:
            raise ValueError(f"root {self.root} is a chain of URLs; give one, and VIDEO_GN_COPIES for local copies")
        if self.kind == "images" and "://" in self.root:
            raise ValueError(f"images are read from a folder, not from {self.root}; set root to a folder")
        low, high = self.short_side
        if low > high:
            raise ValueError(f"short_side [{low}, {high}] must be [smallest, largest]")
        if self.area is not None and not 0 < self.area[0] <= self.area[1]:
            raise ValueError(f"area {list(self.area)} must be [smallest, largest], above 0")
        if self.kind == "images" and self.frames != 1:
            raise ValueError(f"an image is one frame, frames is {self.frames}; set frames: 1")
        if self.kind == "images" and self.clips_per_video != 1:
            raise ValueError(f"an image is one clip, clips_per_video is {self.clips_per_video}; set clips_per_video: 1")
        if self.crop > low and self.area is None:
            raise ValueError(f"crop {self.crop} is larger than the smallest short side {low}; change one")
        return self


class OptimConfig(Section):
    """The optimizer, its learning rate stated for a reference batch and scaled linearly to the global batch."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    reference_batch: Positive = 64
    """`lr` is for this global batch; the run's rate is lr * global_batch / reference_batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD."""
    nesterov: bool = True
    """SGD."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW."""
    weight_decay: NonNegative = 1e-4
    norm_weight_decay: NonNegative = 0.0
    """Weight decay of gamma and beta, whatever the norm."""
    clip_norm: PositiveFloat | None = None
    """Scale gradients down to this L2 norm over all weights where theirs is larger."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the weights with this decay per step (0.9999); it is what is scored."""
    body_lr: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Fine-tuning: the learning rate of all but the head, as a fraction of `lr`; 0 freezes all but the head."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that stay as they are (stem, res2, res4.0, ...): no gradients, norms in evaluation mode."""
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[PositiveFloat, ...] = (41, 82)
    """`steps`: epochs at which the rate is multiplied by `decay`."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: NonNegative = 0.0
    warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The rate rises linearly from this fraction during the warm-up."""

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} must rise")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set nesterov: false")
        return self


class TrainConfig(Section):
    """The training loop."""

    epochs: Positive = 109
    clips_per_gpu: Positive = 8
    """Clips of one forward pass: the batch that a norm sees."""
    global_batch: Positive | None = None
    """Clips of one optimizer step; default 8 x clips_per_gpu (the paper's 8 GPUs). Fewer GPUs accumulate gradients."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 autocast on a GPU that has it, else fp32. `fp16`, with a loss scale, is for GPUs without bf16."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory format NDHWC. `auto`: where that is faster: on a GPU, and on a CPU for narrow networks."""
    compile: bool = False
    """torch.compile the forward and backward pass: minutes at the start, and no gain so far (docs/benchmarks.md)."""
    cuda_graph: bool | Literal["auto"] = "auto"
    """Record forward and backward pass once as a CUDA graph, and replay it: 12 for 32 ms per step. `auto`: on one GPU.

    `true`: on several, too, whose gradients are then averaged after the backward pass; not yet run on several.
    """
    checkpoint_stages: tuple[str, ...] = ()
    """Stages, such as res2, that keep no activations and run again in the backward pass: less memory, more time."""
    eval_every: Positive = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    log_every: Positive = 20
    """Optimizer steps from one log line to the next."""
    max_bad_steps: Annotated[int, Field(ge=0)] = 10
    """More steps whose loss or gradient is not finite end the run; none of them is applied."""
    precise_bn_batches: Annotated[int, Field(ge=0)] = 200
    """Batch Norm: batches whose statistics are averaged before an evaluation; 0 keeps the running averages."""
    percentiles_of: str | None = None
    """Layer whose output's 1, 20, 80 and 99 % percentiles are logged at each evaluation (Figure 6), such as conv.12."""


class TestConfig(Section):
    """The test of a trained network: several clips per video, scores averaged."""

    views: Literal["center", "three", "full"] = "full"
    """`center`: one crop of data.crop; `three`: 3 crops of short_side; `full`: the whole frame, fully convolutional."""
    clips: Positive = 10
    clip_starts: Literal["spread", "baseline"] = "spread"
    """`spread`: from the first frame to the last; `baseline`: int(k N / K), as video-nonlocal-net."""
    short_side: Annotated[int, Field(ge=32)] = 256
    clips_per_batch: Positive = 8
    """Clips of one forward pass; changes memory and speed, never a score."""
    max_unreadable: Annotated[int, Field(ge=0)] = 0
    """More unreadable videos than this is an error, after the table."""


class CheckpointConfig(Section):
    """When checkpoints are written, and how many stay (docs/resume.md)."""

    every_epochs: Positive = 1
    every_minutes: PositiveFloat | None = 30.0
    """Within an epoch as well, this long after the last one; null: at the ends of epochs alone."""
    keep: Annotated[int, Field(ge=2)] = 2
    """The newest ones, last.pt and those before it; best.pt is one more."""


class Config(Section):
    """One experiment."""

    output_dir: UserPath
    """The run's folder; default runs/NAME of the config file's name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    resume: Literal["auto", "never"] = "auto"
    """`auto` resumes from the run folder's last intact checkpoint."""
    profile: bool = False
    """Write a trace of a few early steps into the run folder's profile/, for Perfetto or TensorBoard."""
    task: Literal["classification", "multilabel"] = "classification"
    """What a video's target is: one label, or any number of them (docs/multilabel.md)."""
    classification: ClassificationConfig = ClassificationConfig()
    multilabel: MultilabelConfig = MultilabelConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def dims(self) -> int:
        """Of the network: 3 for clips (T, H, W), 2 for images (H, W)."""
        return 2 if self.data.kind == "images" else 3

    @model_validator(mode="after")
    def _check(self) -> Config:
        for name, options in (("classification", self.classification), ("multilabel", self.multilabel)):
            if name != self.task and (given := [key for key, *_ in differences(type(options)(), options)]):
                raise ValueError(f"{name}.{given[0]} is an option of task {name}, and task is {self.task}; change one")
        if self.task != "classification" and self.data.kind == "images":
            raise ValueError(
                f"images have one label, their folder's, and task is {self.task}; set task: classification"
            )
        if self.train.clips_per_gpu % self.data.clips_per_video:
            raise ValueError(
                f"data.clips_per_video {self.data.clips_per_video} does not divide train.clips_per_gpu "
                f"{self.train.clips_per_gpu}, the clips of one forward pass; change one of them"
            )
        if (self.data.mixup or self.data.cutmix) and self.train.clips_per_gpu == self.data.clips_per_video:
            raise ValueError(
                "data.mixup and data.cutmix mix clips of different videos of a micro-batch, which holds one video with "
                f"train.clips_per_gpu {self.train.clips_per_gpu} and data.clips_per_video {self.data.clips_per_video}; "
                f"set train.clips_per_gpu to {2 * self.data.clips_per_video} or more, or both of them to 0"
            )
        if self.data.kind == "images" and (self.test.views, self.test.clips) != ("center", 1):
            raise ValueError(
                f"images are tested by test.views center and test.clips 1, not {self.test.views} and {self.test.clips}"
            )
        if self.test.views == "center" and self.test.short_side < self.data.crop:
            raise ValueError(f"test.short_side {self.test.short_side} is smaller than data.crop {self.data.crop}")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, its base and ``a.b=c`` overrides into a checked `Config`.

    Raises:
        UserError: the file is missing or malformed, a key is unknown, a value is out of its range.
    """
    path = Path(path)
    tree = read_yaml(path)
    base = tree.pop("base", None)
    if base is not None:
        base_path = path.parent / str(base)
        parent = read_yaml(base_path)
        if "base" in parent:
            raise UserError(f"{base_path}: a base cannot have a base ({parent['base']}); name one base only")
        if "output_dir" in parent:
            raise UserError(f"{base_path}: a base cannot set output_dir, its configs would share it; set it in each")
        tree = _merge(parent, tree)
    tree.setdefault("output_dir", f"runs/{path.stem}")
    return parse_config(tree, overrides, source=str(path))


def parse_config(tree: dict[str, Any], overrides: Sequence[str] = (), source: str = "config") -> Config:
    """Check a nested dict (of a file or of a checkpoint) after applying ``a.b=c`` overrides."""
    for override in overrides:
        tree = _merge(tree, _parse_override(override))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def differences(old: Section, new: Section, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) for every value that differs; keys are dotted."""
    for name in type(new).model_fields:
        a, b = getattr(old, name), getattr(new, name)
        if isinstance(b, Section):
            yield from differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def to_yaml(config: Config) -> str:
    """Return the resolved config as YAML, every value spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


# PyYAML's constructors let other exceptions through: a date 2024-13-45, `!!int x`, thousands of brackets.
_YAML_ERRORS = (yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError, RecursionError)


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, where PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is written twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises UserError if it does not, or writes a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the config ({error.strerror}); check its path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a config is a YAML file") from None
    except ValueError as error:  # no file can have such a name
        raise UserError(f"{path}: cannot read the config ({error}); check its path") from None
    try:
        tree = yaml.load(text, _UniqueKeyLoader)
    except _YAML_ERRORS as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path}: a config is a mapping of sections (model:, data:, ...), not {type(tree).__name__}")
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r} must be key=value, such as train.epochs=10")
    try:
        tree: Any = yaml.load(value, _UniqueKeyLoader)
    except _YAML_ERRORS:
        raise UserError(f"override {text[:200]!r}: the value is not valid YAML; quote it") from None
    for name in reversed(key.split(".")):
        tree = {name: tree}
    return tree


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: ValidationError) -> str:
    """All problems of a config on one line, each with its place."""
    problems = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "config"
        if item["type"] == "extra_forbidden":
            problems.append(f"{place}: unknown key{_nearest(item['loc'])}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = "" if item["type"] == "value_error" else f" (got {item['input']!r:.60})"
            problems.append(f"{place}: {message}{value}")
    return "; ".join(problems)


def _nearest(loc: tuple[int | str, ...]) -> str:
    """`` (did you mean 'x'?)`` for an unknown key, or the section that has a key of that name."""
    section: type[BaseModel] = Config
    for part in loc[:-1]:
        section = section.model_fields[str(part)].annotation  # type: ignore[assignment]
    key = str(loc[-1])
    places = {name: name for name in section.model_fields}
    for name, field in Config.model_fields.items():
        if key in getattr(field.annotation, "model_fields", {}):
            return f" (did you mean '{name}.{key}'?)"
    for match in difflib.get_close_matches(key, places, n=1):
        return f" (did you mean {match!r}?)"
    return f" (valid keys: {', '.join(places)})"
