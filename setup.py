"""Everything about the package stands in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(key: str) -> list[str]:
    return [line.strip() for line in cfg[key].splitlines() if line.strip()]


extras = {key.removesuffix("_requirements"): lines(key) for key in cfg if key.endswith("_requirements")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    url=cfg["repository"] or None,
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_files=["LICENSE", "LICENSE-TEXT.md"],
    packages=find_packages(include=["gptbook", "gptbook.*"]),
    package_data={"gptbook": ["models/**/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": lines("console_scripts")},
    classifiers=[
        f"Development Status :: {cfg['status']}",
        "Intended Audience :: Education",
        "Intended Audience :: Developers",
        "Natural Language :: English",
        "Natural Language :: Chinese (Simplified)",
        f"Programming Language :: Python :: {cfg['min_python']}",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
