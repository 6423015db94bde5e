"""Installs video_gn: ``pip install -e .`` (see INSTALL.md)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "video_gn/__init__.py").read_text()).group(1)

setup(
    name="video_gn",
    version=VERSION,
    description="3D ConvNets with Group Normalization, trained and tested on video",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["video_gn", "video_gn.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.7",
        "numpy>=1.26",
        "av>=17,<20",  # each major version may change the API: raise the limit when the tests pass with the next
        "pyyaml>=6",
        "pydantic>=2.7",
        "tensorboard>=2.15",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "fsspec>=2024.2",
        "torchvision>=0.22",
        "pillow>=10",
        "torchmetrics>=1.4",
    ],
    extras_require={
        "torchcodec": ["torchcodec>=0.11"],
        "decord": ["decord>=0.6"],
        "export": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.20"],
        "safetensors": ["safetensors>=0.4"],
        "stores": ["aiohttp", "s3fs", "gcsfs"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "timm>=1.0",
            "pytorchvideo>=0.1.5",
            "onnx>=1.18",
            "onnxscript>=0.5",
            "onnxruntime>=1.20",
            "safetensors>=0.4",
            "scikit-learn>=1.4",
            "aiohttp",
            "ruff>=0.12",
            "mypy>=1.15",
            "types-PyYAML",
            "types-tqdm",
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",
        ],
    },
)
