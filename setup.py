"""Packaging of moco-transfer; tool settings are in pyproject.toml, tested versions in
constraints.txt.
"""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (HERE / "moco_transfer" / "__init__.py").read_text(encoding="utf-8")
).group(1)

CONFIGS = "moco_transfer.configs"

# Plain C without Python's headers, loaded through ctypes (moco_transfer/data/views/native.py).
# Optional: where there is no compiler the installation continues, and torch's operators do the same
# more slowly.
VIEW_KERNELS = Extension(
    "moco_transfer.data.views.view_kernels",
    sources=["moco_transfer/data/views/view_kernels.c"],
    extra_compile_args=[
        "-O3",
        "-fno-wrapv",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffinite-math-only",
        "-fno-signed-zeros",
    ],
    libraries=["m"],
    optional=True,
)

HOTCOCO_WHEELS = (
    'platform_python_implementation == "CPython" and (sys_platform == "darwin"'
    ' or sys_platform == "win32" and platform_machine == "AMD64"'
    ' or sys_platform == "linux" and platform_machine == "x86_64"'
    ' or sys_platform == "linux" and platform_machine == "aarch64")'
)

setup(
    name="moco-transfer",
    version=VERSION,
    description=(
        "MoCo pre-training and its transfer to detection and segmentation, compared with supervised"
        " and random initialisation"
    ),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # configs/ stands at the top of the tree, and inside the package in a wheel
    # (moco_transfer.config.path finds both).
    packages=[
        *find_packages(include=["moco_transfer", "moco_transfer.*"]),
        CONFIGS,
        f"{CONFIGS}.pretrain",
        f"{CONFIGS}.detection",
        f"{CONFIGS}.segmentation",
    ],
    package_dir={"moco_transfer": "moco_transfer", CONFIGS: "configs"},
    package_data={
        f"{CONFIGS}.pretrain": ["*.yaml"],
        f"{CONFIGS}.detection": ["*.yaml"],
        f"{CONFIGS}.segmentation": ["*.yaml"],
        "moco_transfer.cli": ["*.yaml", "examples/*.txt"],
        "moco_transfer.config": ["*.yaml"],
        "moco_transfer.convert": ["*.yaml"],
        "moco_transfer.data.annotations": ["*.yaml"],
        "moco_transfer.finetune": ["*.yaml"],
        "moco_transfer.finetune.torchvision_engine": ["*.yaml"],
        "moco_transfer.pretrain": ["*.yaml"],
        "moco_transfer.report": ["*.yaml", "templates/*"],
        "moco_transfer.report.html": ["*.yaml"],
        "moco_transfer.reproduce": ["*.yaml", "templates/*"],
        "moco_transfer.suggest": ["*.yaml"],
    },
    ext_modules=[VIEW_KERNELS],
    install_requires=[
        # A range: CUDA users keep the build they have. From 2.6 on, weights_only loading is safe.
        # Detectron2 is on no package index and is never required.
        "torch>=2.6",
        "torchvision>=0.21",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "pycocotools>=2.0.7",
        # Where it has wheels; elsewhere pycocotools evaluates.
        f"hotcoco>=1.3,<2; {HOTCOCO_WHEELS}",
        "opencv-python-headless>=4.8",
        "simplejpeg>=1.7",
        "numpy>=1.26",
        "Pillow>=10",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "tensorboard>=2.15",
        "jinja2>=3.1",
        "PyYAML>=6",
        "safetensors>=0.4",
        "argcomplete>=3.1",
    ],
    extras_require={
        # selenium drives an installed Chromium (Debian: chromium, chromium-driver); its tests skip
        # where there is none.
        "test": [
            "cityscapesScripts>=2.3",
            "hypothesis>=6.100",
            "ipykernel>=6",
            "jsonschema>=4",
            "nbclient>=0.10",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "scipy>=1.11",
            "selenium>=4.20",
            "shapely>=2",
            "submitit>=1.5",
            "tifffile>=2024.1.30",
            "webdataset>=0.2.86",
        ],
        "lint": ["ruff>=0.15", "mypy>=1.15", "codespell>=2.4"],
        "docs": [
            "mkdocs>=1.6",
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=0.29",
            "mkdocs-jupyter>=0.25",
        ],
        "bands": ["tifffile>=2024.1.30"],
        "browser": ["selenium>=4.20"],
        "shards": ["webdataset>=0.2.86"],
        "sbd": ["scipy>=1.11"],
        "cityscapes": ["cityscapesScripts>=2.3", "shapely>=2"],
        "slurm": ["submitit>=1.5"],
        "hub": ["huggingface-hub>=0.30"],
        "wandb": ["wandb>=0.19"],
        "mlflow": ["mlflow>=3"],
        "lightning": ["lightning>=2.5"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],
    },
    entry_points={"console_scripts": ["moco-transfer = moco_transfer.cli.main:main"]},
    classifiers=["Programming Language :: Python :: 3"],
)
