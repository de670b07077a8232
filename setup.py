"""Put the browser library into the built package; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BROWSER_LIBRARY = ("syncserver.js", "syncserver.d.ts")


class BuildWithBrowserLibrary(build_py):
    """Copy clients/javascript into ``syncserver/static`` of what is built.

    An editable install copies nothing: the checkout has the library in its own place.
    """

    def run(self) -> None:
        """Build the package, then add the library."""
        super().run()
        if not self.editable_mode:
            for source, target in self._library():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target), preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the copies too, so that installers know of them."""
        copies = [] if self.editable_mode else [str(target) for _, target in self._library()]
        return [*super().get_outputs(include_bytecode), *copies]

    def _library(self) -> list[tuple[Path, Path]]:
        static = Path(self.build_lib, "syncserver", "static")
        return [(Path("clients/javascript", name), static / name) for name in BROWSER_LIBRARY]


setup(cmdclass={"build_py": BuildWithBrowserLibrary})
