"""Which packages there are, and in which folder each lies; everything else is in pyproject.toml.

`moevit/` holds the command line, the public interface and the contracts. The top-level folders named in
`MAPPED` install as `moevit.<folder>`. Every folder with an `__init__.py` below any of them is installed, so a
new subpackage needs no entry anywhere.
"""

from setuptools import find_packages, setup

MAPPED = ("hw", "sim", "compiler", "models", "boards")

package_dir = {"moevit": "moevit"}
packages = ["moevit", *(f"moevit.{name}" for name in find_packages("moevit"))]
for folder in MAPPED:
    package_dir[f"moevit.{folder}"] = folder
    packages += [f"moevit.{folder}", *(f"moevit.{folder}.{name}" for name in find_packages(folder))]

setup(packages=packages, package_dir=package_dir)
