"""The part of the build that pyproject.toml cannot say: the oracles of the tests are shipped as text."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithOracles(build_py):
    """Copy tests/oracles/NAME.py to selfdistill/methods/oracles/NAME.py.txt, which `explain --code` prints, and those
    in folders below it likewise.

    They are no modules of the package: a recipe and its oracle share no code, and the oracles import the tests.
    """

    def _oracles(self) -> dict[str, str]:
        folder, oracles = Path(self.build_lib, "selfdistill", "methods", "oracles"), Path("tests", "oracles")
        sources = sorted(oracles.glob("**/[!_]*.py"))
        return {str(folder / f"{source.relative_to(oracles)}.txt"): str(source) for source in sources}

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout's own files are read
            return
        for target, source in self._oracles().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._oracles()]


setup(cmdclass={"build_py": BuildWithOracles})
