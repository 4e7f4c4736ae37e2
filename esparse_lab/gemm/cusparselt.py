"""The one file that knows cuSPARSELt, through the bindings of nvmath-python.

The library multiplies on the sparse tensor cores of compute capability 8.0 and later: it stores a
2:4 weight as its kept values and two index bits for each, and has several kernels ("algorithms")
for each shape. Which is fastest is not known beforehand, and its default is often the slowest, so a
caller chooses among `algorithms`.

Shapes as the library wants them, for y = x Wᵀ + b with x [tokens, columns] and W [rows, columns]:
A = W (structured, row-major), B = xᵀ [columns, tokens], D = yᵀ [rows, tokens]. A tensor that lies
token by token in memory is then "column order"; one that lies feature by feature is "row order".
"""

import ctypes
import importlib
import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from esparse_lab.errors import EsparseError, InputError
from esparse_lab.masks import Pattern
from esparse_lab.storage import require_nm

TWO_FOUR = Pattern(2, 4)
COLUMN_ORDER, ROW_ORDER = 1, 2  # cusparseOrder_t
NO_TRANSPOSE = 0  # cusparseOperation_t
CUDA_TYPES = {
    torch.float16: 2,
    torch.bfloat16: 14,
    torch.int8: 3,
    torch.float8_e4m3fn: 28,
    torch.float32: 0,
    torch.int32: 10,
}
"""cudaDataType of a torch dtype."""
OUTPUTS = {
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.int8: torch.float16,
    torch.float8_e4m3fn: torch.bfloat16,
}
"""What a product of two such operands is written as; the keys are the dtypes that are offered."""
LINEAR_DTYPES = (torch.float16, torch.bfloat16)
"""Those whose product has their own dtype, as a layer of a model needs."""
MULTIPLES = {torch.float16: 16, torch.bfloat16: 16, torch.int8: 32, torch.float8_e4m3fn: 32}
"""Rows and columns of a weight must be multiples of this."""
TOKEN_MULTIPLE = {torch.float16: 8, torch.bfloat16: 8, torch.int8: 16, torch.float8_e4m3fn: 16}
"""And the number of tokens of this; `padded_tokens` rounds up."""


@dataclass(frozen=True)
class Algorithm:
    """One way of computing a product.

    Attributes:
        config: the library's number of the kernel.
        split_k: into how many parts the sum over input channels is split; 1 for whole.
        split_mode: name of the library's way of adding the parts; "" for its own choice.
    """

    config: int = 0
    split_k: int = 1
    split_mode: str = ""

    @property
    def way(self) -> str:
        """What crashes together: a kernel, or a way of splitting whatever the kernel."""
        if self.split_k == 1:
            return f"kernel {self.config}"
        return f"in {self.split_k}, {self.split_mode}"


@dataclass(frozen=True)
class Product:
    """What the library must know to plan y = x Wᵀ.

    Attributes:
        rows, columns: shape of the weight: outputs and inputs.
        tokens: number of rows of x; a multiple of `TOKEN_MULTIPLE`.
        dtype: of weight and x.
        x_by_feature, y_by_feature: the tensor lies transposed in memory, [features, tokens].
    """

    rows: int
    columns: int
    tokens: int
    dtype: torch.dtype
    x_by_feature: bool = False
    y_by_feature: bool = False

    @property
    def out_dtype(self) -> torch.dtype:
        """Of y."""
        return OUTPUTS[self.dtype]


def unavailable(device: torch.device | None = None) -> str:
    """Why cuSPARSELt cannot be used here, with what to do about it; empty when it can."""
    if not torch.cuda.is_available():
        return "no CUDA device is present"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}; sparse "
            "tensor cores begin at 8.0"
        )
    if importlib.util.find_spec("nvmath") is None:
        return "nvmath-python is not installed: pip install 'esparse_lab[gemm]'"
    try:
        _library()
    except (ImportError, OSError, RuntimeError) as error:
        return f"cuSPARSELt does not load ({error}): pip install nvidia-cusparselt-cu13"
    return ""


@cache
def _library():
    """The bindings, with the library that came as a wheel loaded first so that they find it."""
    for place in _wheel_libraries():
        ctypes.CDLL(str(place), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("nvmath.bindings.cusparseLt")


def _wheel_libraries() -> Iterator[Path]:
    for package in ("nvidia.cusparselt", "nvidia.cu13"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield from sorted(Path(folder).glob("lib/libcusparseLt.so.*"))


@cache
def _handle(device: int) -> int:
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # the library wants a context that exists
        return _library().init()


def library_version(device: torch.device) -> str:
    """Such as "0.8.0"."""
    number = _library().get_version(_handle(device_index(device)))
    return f"{number // 1000}.{number % 1000 // 100}.{number % 100}"


def driver_version() -> str:
    """The newest CUDA version that the driver knows, such as "13.0"."""
    from cuda.bindings import driver

    _, number = driver.cuDriverGetVersion()
    return f"{number // 1000}.{number % 1000 // 10}"


def padded_tokens(tokens: int, dtype: torch.dtype) -> int:
    """The least number of tokens that the library takes and that holds `tokens`."""
    multiple = TOKEN_MULTIPLE[dtype]
    return max(multiple, -(-tokens // multiple) * multiple)


def check_weight(
    weight: Tensor, name: str = "weight", dtypes: Iterable[torch.dtype] = tuple(OUTPUTS)
) -> None:
    """Raise `InputError` if it is of none of these dtypes, or its shape has no kernel."""
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.dtype not in dtypes:
        offered = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(
            f"{name} is {dtype}; cuSPARSELt multiplies {offered}. Convert the model first, for "
            "example model.to(torch.float16)."
        )
    multiple = MULTIPLES[weight.dtype]
    if any(size % multiple for size in weight.shape):
        raise InputError(
            f"{name} is {' x '.join(map(str, weight.shape))}; for {dtype} cuSPARSELt wants both "
            f"sizes to be multiples of {multiple}. Leave this layer dense."
        )


def compress(weight: Tensor, name: str = "weight") -> Tensor:
    """The library's stored form of a 2:4 weight.

    Args:
        weight: [rows, columns] on a CUDA device, at most two of every four neighbours not zero.
        name: what errors call it.

    Returns:
        Bytes, 9/16 of the dense weight's for 16-bit values (5/8 for 8-bit; more for tiny
        ones, which are padded), in a layout that is the library's own.

    Raises:
        InputError: if the library has no kernel for such a weight, or a group holds more than two.
    """
    check_weight(weight, name)
    require_nm(weight, TWO_FOUR, name)
    weight = weight.contiguous()
    with torch.cuda.device(weight.device):
        plan = _compressing(*weight.shape, weight.dtype, weight.device)
        size, scratch = _library().sp_mma_compressed_size(plan.handle, plan.plan)
        stored = torch.empty(size, dtype=torch.uint8, device=weight.device)
        buffer = torch.empty(max(scratch, 1), dtype=torch.uint8, device=weight.device)
        stream = torch.cuda.current_stream().cuda_stream
        _library().sp_mma_compress(
            plan.handle, plan.plan, weight.data_ptr(), stored.data_ptr(), buffer.data_ptr(), stream
        )
        torch.cuda.current_stream().synchronize()  # the buffer must outlive the kernel
    return stored


@lru_cache(maxsize=32)
def _compressing(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> "Plan":
    """A plan to compress weights of one shape with; making one takes longer than compressing."""
    return Plan(Product(rows, columns, TOKEN_MULTIPLE[dtype], dtype), device)


class Plan:
    """A prepared product: one shape, one layout, one algorithm. Costs milliseconds to make.

    Args:
        product: what is multiplied.
        device: where.
        algorithm: how; the library's own choice when None.
        bias: [rows], added to every token; it must outlive the plan.

    Raises:
        EsparseError: the library refuses the product or the algorithm.
    """

    def __init__(
        self,
        product: Product,
        device: torch.device,
        algorithm: Algorithm | None = None,
        bias: Tensor | None = None,
    ):
        lib = _library()
        self.product, self.device, self.algorithm = product, device, algorithm
        self.handle = _handle(device_index(device))
        self._made: list[tuple] = []
        value, out = CUDA_TYPES[product.dtype], CUDA_TYPES[product.out_dtype]
        n, k, m = product.rows, product.columns, product.tokens
        x_lead = m if product.x_by_feature else k
        y_lead = m if product.y_by_feature else n
        x_order = ROW_ORDER if product.x_by_feature else COLUMN_ORDER
        y_order = ROW_ORDER if product.y_by_feature else COLUMN_ORDER
        try:
            a = self._keep(
                lib.structured_descriptor_init(
                    self.handle, n, k, k, 16, value, ROW_ORDER, lib.Sparsity.SPARSITY_50_PERCENT
                ),
                lib.mat_descriptor_destroy,
            )
            b = self._keep(
                lib.dense_descriptor_init(self.handle, k, m, x_lead, 16, value, x_order),
                lib.mat_descriptor_destroy,
            )
            d = self._keep(
                lib.dense_descriptor_init(self.handle, n, m, y_lead, 16, out, y_order),
                lib.mat_descriptor_destroy,
            )
            compute = (
                lib.ComputeType.COMPUTE_32I
                if product.dtype == torch.int8
                else lib.ComputeType.COMPUTE_32F
            )
            self.descriptor = self._keep(
                lib.matmul_descriptor_init(
                    self.handle, NO_TRANSPOSE, NO_TRANSPOSE, a, b, d, d, compute
                ),
                lib.matmul_descriptor_destroy,
            )
            if bias is not None:
                self._add(bias)
            self.selection = self._keep(
                lib.matmul_alg_selection_init(self.handle, self.descriptor, lib.MatmulAlg.DEFAULT),
                lib.matmul_alg_selection_destroy,
            )
            self._plan()
        except lib.cuSPARSELtError as error:
            raise self._refusal(error) from error

    def change(self, algorithm: Algorithm) -> None:
        """Plan by another algorithm, in 1 ms: a new `Plan` takes 300 (choosing the default).

        What was set stays: do not go from a split sum to one whose ways are the library's choice.

        Raises:
            EsparseError: the library refuses the algorithm; the plan is of no use then.
        """
        self.algorithm = algorithm
        # The plan before is left to the process's end: to destroy it and plan on from the same
        # selection ended in a segmentation fault (0.8.0).
        self._made = [made for made in self._made if made[0] != _library().matmul_plan_destroy]
        try:
            self._plan()
        except _library().cuSPARSELtError as error:
            raise self._refusal(error) from error

    def _plan(self) -> None:
        lib = _library()
        if self.algorithm is not None:
            self._choose(self.algorithm)
        self.plan = self._keep(
            lib.matmul_plan_init(self.handle, self.descriptor, self.selection),
            lib.matmul_plan_destroy,
        )
        self.workspace_bytes = lib.matmul_get_workspace(self.handle, self.plan)

    def _refusal(self, error: Exception) -> EsparseError:
        how = self.algorithm or "its default algorithm"
        return EsparseError(f"cuSPARSELt refuses {self.product} with {how}: {error}")

    def _keep(self, made: int, destroy) -> int:
        self._made.append((destroy, made))
        return made

    def __del__(self):
        for destroy, made in reversed(getattr(self, "_made", [])):
            destroy(made)

    def _choose(self, algorithm: Algorithm) -> None:
        lib = _library()
        attributes = lib.MatmulAlgAttribute
        self._set(attributes.CONFIG_ID, algorithm.config)
        if algorithm.split_k != 1 or algorithm.split_mode:
            self._set(attributes.SPLIT_K, algorithm.split_k)
        if algorithm.split_mode:
            self._set(attributes.SPLIT_K_MODE, lib.SplitKMode[algorithm.split_mode])

    def _set(self, attribute: int, value: int) -> None:
        holder = ctypes.c_int32(value)
        _library().matmul_alg_set_attribute(
            self.handle, self.selection, attribute, ctypes.addressof(holder), 4
        )

    def get(self, attribute: str) -> int:
        """The value of an attribute of the chosen algorithm, such as "CONFIG_MAX_ID"."""
        holder = ctypes.c_int32(-1)
        _library().matmul_alg_get_attribute(
            self.handle,
            self.selection,
            _library().MatmulAlgAttribute[attribute],
            ctypes.addressof(holder),
            4,
        )
        return holder.value

    def _add(self, bias: Tensor) -> None:
        holder = ctypes.c_void_p(bias.data_ptr())
        _library().matmul_desc_set_attribute(
            self.handle,
            self.descriptor,
            _library().MatmulDescAttribute.BIAS_POINTER,
            ctypes.addressof(holder),
            ctypes.sizeof(holder),
        )

    def run(
        self, stored: int, x: int, y: int, workspace: int, stream: int, alpha: int, beta: int
    ) -> None:
        """Write alpha W x (+ bias) into y; all are addresses, alpha's and beta's of host floats.

        Raises:
            EsparseError: the library fails.
        """
        lib = _library()
        streams = ctypes.c_void_p(stream)
        at = ctypes.addressof(streams)
        try:
            lib.matmul(self.handle, self.plan, alpha, stored, x, beta, y, y, workspace, at, 1)
        except lib.cuSPARSELtError as error:
            raise EsparseError(f"cuSPARSELt fails at {self.product}: {error}") from error


def algorithms(product: Product, device: torch.device) -> Iterator[Algorithm]:
    """Every algorithm to try for a product, whole sums first. The library may refuse some."""
    count = Plan(product, device).get("CONFIG_MAX_ID")
    yield from (Algorithm(config) for config in range(count))


def split_versions(algorithm: Algorithm, product: Product) -> Iterator[Algorithm]:
    """The same kernel with its sum over input channels split, in each of the library's ways."""
    modes = [name for name in _library().SplitKMode.__members__ if name != "INVALID_MODE"]
    for mode, parts in itertools.product(modes, (1, 2, 4, 8)):
        if product.columns >= 64 * parts:
            yield replace(algorithm, split_k=parts, split_mode=mode)


def device_index(device: torch.device) -> int:
    """The number of a CUDA device; the current one's where the device has none."""
    return torch.cuda.current_device() if device.index is None else device.index
