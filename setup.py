"""Leaves the developers' tools of the kernels out of wheels; all else is in pyproject.toml."""

from setuptools import setup
from setuptools.command.build_py import build_py

TOOLS = ("aot", "build", "builds", "fuzz")


class BuildWithoutTools(build_py):
    """Copy every module but the tools; an editable install keeps them."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        if self.editable_mode or not package.startswith("ditaccel.kernels"):
            return found
        return [module for module in found if module[1] not in TOOLS]


setup(cmdclass={"build_py": BuildWithoutTools})
