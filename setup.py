"""What pyproject.toml cannot say: all sub-packages of the rooms, without the kernels' tools."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOMS = {"ditaccel": "ditaccel", **{f"ditaccel.{r}": r for r in ("kernels", "pipelines", "eval")}}
TOOLS = ("aot", "build", "builds", "fuzz", "hub")


class BuildWithoutTools(build_py):
    """Copy every module but the developers' tools of the kernels; editable installs keep them."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        if self.editable_mode or not package.startswith("ditaccel.kernels"):
            return found
        return [module for module in found if module[1] not in TOOLS]


setup(
    # The user-given top-level folders import as sub-packages: a bare top-level `kernels` would
    # shadow the Hub package of that name, which diffusers imports.
    package_dir=ROOMS,
    packages=[
        name
        for room, folder in ROOMS.items()
        for name in (room, *(f"{room}.{found}" for found in find_packages(folder)))
    ],
    cmdclass={"build_py": BuildWithoutTools},
)
