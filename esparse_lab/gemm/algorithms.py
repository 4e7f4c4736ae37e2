"""Which algorithm is fastest for a product, kept on disk so that a second start searches nothing.

One file for each device, driver and library version: what was found under one says nothing about
another, so another's file is not read.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from esparse_lab.atomic import write_atomically
from esparse_lab.downloads import cache_dir
from esparse_lab.errors import EsparseError
from esparse_lab.gemm import cusparselt
from esparse_lab.gemm.cusparselt import Algorithm, Product


@dataclass(frozen=True)
class Found:
    """What a search found for a product.

    Attributes:
        algorithm: the fastest that gave the right result.
        ms: its device time.
        default_ms: that of the library's own choice; None where that does not work.
        dense_ms: that of the dense product.
        tried: how many algorithms were timed.
    """

    algorithm: Algorithm
    ms: float
    default_ms: float | None
    dense_ms: float
    tried: int


class AlgorithmStore:
    """The searches of one device, in memory and in a JSON file.

    Args:
        device: whose results.
        path: the file; by default one in the cache, named by device, driver and library.
        made_on: what the results hold for; device, driver and libraries as they are here when None.
    """

    def __init__(
        self,
        device: torch.device,
        path: Path | None = None,
        *,
        made_on: dict[str, str] | None = None,
    ):
        self.made_on = made_on or _made_on(device)
        digest = hashlib.sha256(json.dumps(self.made_on, sort_keys=True).encode()).hexdigest()
        self.path = path or cache_dir() / "gemm" / f"algorithms-{digest[:16]}.json"
        self._found, self._crashed = self._read()

    def get(self, product: Product) -> Found | None:
        """What was found for exactly this product, or None."""
        return self._found.get(_key(product))

    def crashing(self, product: Product) -> frozenset[str]:
        """Ways to multiply (`Algorithm.way`) that crashed at any shape of this dtype and layout."""
        return self._crashed.get(_kind(product), frozenset())

    def put(self, product: Product, found: Found, crashed: Iterable[str] = ()) -> None:
        """Remember a search, on disk too; a file that cannot be written is a warning."""
        # Another process may have put some since; a bad file was told of at the start.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written, crashed_before = self._read()
        self._found = {**written, **self._found, _key(product): found}
        for kind, ways in [*crashed_before.items(), (_kind(product), crashed)]:
            self._crashed[kind] = self._crashed.get(kind, frozenset()).union(ways)
        content = {
            "made_on": self.made_on,
            "found": {key: asdict(value) for key, value in sorted(self._found.items())},
            "crashed": {key: sorted(value) for key, value in sorted(self._crashed.items())},
        }
        try:
            write_atomically(self.path, json.dumps(content, indent=1))
        except EsparseError as error:
            warnings.warn(f"The search is not kept: {error}", RuntimeWarning, stacklevel=2)

    def _read(self) -> tuple[dict[str, Found], dict[str, frozenset[str]]]:
        try:
            written = self.path.read_bytes()
        except OSError:
            return {}, {}
        try:
            content = json.loads(written)
            if content["made_on"] != self.made_on:
                warnings.warn(
                    f"{self.path} was made on {content['made_on']}, this is {self.made_on}: its "
                    "algorithms are not used.",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return {}, {}
            found = {
                key: Found(**{**entry, "algorithm": Algorithm(**entry["algorithm"])})
                for key, entry in content["found"].items()
            }
            return found, {key: frozenset(value) for key, value in content["crashed"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"{self.path} is damaged ({type(error).__name__}: {error}): algorithms are "
                "searched anew and the file is replaced.",
                RuntimeWarning,
                stacklevel=3,
            )
            return {}, {}


def _made_on(device: torch.device) -> dict[str, str]:
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": cusparselt.driver_version(),
        "library": cusparselt.library_version(device),
        "cuda": str(torch.version.cuda),
    }


def _key(product: Product) -> str:
    return f"{_kind(product)} {product.tokens}x{product.columns}x{product.rows}"


def _kind(product: Product) -> str:
    """A product without its sizes."""
    dtype = str(product.dtype).removeprefix("torch.")
    layout = "xf" * product.x_by_feature + "yf" * product.y_by_feature
    return " ".join(filter(None, [dtype, layout]))
